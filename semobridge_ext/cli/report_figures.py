"""What the report says, as plain numbers: nothing here draws or writes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.retrieval.metrics import retrieval_metrics

BINS = 100
_SAMPLE = 4000  # rows of the histograms and spectra: 8 million pairs


class Rows(NamedTuple):
    """The labelled rows of one folder, and texts to compare them with where that means something."""

    name: str
    features: Tensor  # [N, D] unit rows
    labels: Tensor  # [N]
    texts: Tensor | None  # [C, D] unit rows, of the labels 0 .. C-1


def sample(count: int, seed: int) -> Tensor:
    """At most _SAMPLE row numbers, sorted."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:_SAMPLE].sort().values


def cosines(rows: Rows, chosen: Tensor) -> dict[str, Any]:
    """Histograms of the cosines of pairs within and between classes, and their overlap."""
    x, labels = rows.features[chosen], rows.labels[chosen]
    intra, inter = torch.zeros(BINS), torch.zeros(BINS)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(x), 500):
        scores = (x[start : start + 500] @ x.T).clamp(-1, 1)
        mine = torch.arange(start, start + len(scores)).unsqueeze(1)
        later = torch.arange(len(x)) > mine  # each pair once
        same = labels[start : start + 500].unsqueeze(1) == labels
        for i, (counts, pairs) in enumerate(((intra, later & same), (inter, later & ~same))):
            values = scores[pairs]
            counts += torch.histc(values, BINS, -1, 1)
            sums[i] += values.double().sum()
    shares = [counts / counts.sum().clamp_min(1) for counts in (intra, inter)]
    means = sums / torch.stack([intra.sum(), inter.sum()]).clamp_min(1)
    return {
        "intra": shares[0].tolist(), "inter": shares[1].tolist(),
        "pairs": [int(intra.sum()), int(inter.sum())],
        "intra_mean": float(means[0]), "inter_mean": float(means[1]),
        "overlap": float(torch.minimum(*shares).sum()),
    }  # fmt: skip


def spectrum(rows: Rows, chosen: Tensor) -> dict[str, Any]:
    """Shares of the variance along principal directions; effective rank is exp of their entropy."""
    x = rows.features[chosen].double()
    values = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    shares = values / values.sum()
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return {"shares": shares.tolist(), "effective_rank": float(entropy.exp())}


def gap(rows: Rows) -> float | None:
    """‖mean unit image − mean unit text‖."""
    if rows.texts is None:
        return None
    return float((rows.features.mean(dim=0) - rows.texts.mean(dim=0)).norm())


def retrieval(rows: Rows) -> dict[str, Any]:
    began = time.perf_counter()
    x, y = rows.features, rows.labels
    found = retrieval_metrics(x, x, y, y, same_set=True)
    return {**found, "seconds": time.perf_counter() - began}


def accuracy(rows: Rows, shots: list[int], seeds: int) -> dict[str, list[float]]:
    """Nearest class mean with K shots a class, tested on every other row, by seed.

    Classes with too few rows for the largest K and one test row take part nowhere, so that every K
    answers the same question.
    """
    sizes = torch.bincount(rows.labels)
    usable = sizes > max(shots)
    codes = torch.cumsum(usable, 0) - 1
    found: dict[str, list[float]] = {str(k): [] for k in shots}
    mine = usable[rows.labels].nonzero().squeeze(1)
    for seed in range(seeds):
        shuffled = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))]
        order = shuffled[torch.sort(rows.labels[shuffled], stable=True).indices]
        y = codes[rows.labels[order]]
        starts = torch.searchsorted(y, torch.arange(int(usable.sum())))
        place = torch.arange(len(y)) - starts[y]  # within its class
        test = place >= max(shots)
        x = rows.features[order]
        for k in shots:
            means = torch.zeros(int(usable.sum()), x.shape[1]).index_add_(0, y[place < k], x[place < k])
            guess = (x[test] @ normalize(means, dim=1).T).argmax(dim=1)
            found[str(k)].append(float((guess == y[test]).float().mean()))
    return found


def zero_shot(rows: Rows) -> float | None:
    """The nearest class text, over all classes and rows."""
    if rows.texts is None:
        return None
    hits = [
        (x @ rows.texts.T).argmax(dim=1) == y
        for x, y in zip(rows.features.split(4096), rows.labels.split(4096), strict=True)
    ]
    return float(torch.cat(hits).float().mean())


def usable_shots(labels: Tensor, wanted: list[int]) -> tuple[list[int], int]:
    """The shots that leave at least two classes a test row, and how many classes the largest leaves."""
    sizes = torch.bincount(labels)
    shots = [k for k in sorted(set(wanted)) if int((sizes > k).sum()) >= 2]
    return shots, int((sizes > max(shots)).sum()) if shots else 0
