"""What the report says of one folder, as plain numbers: nothing here draws or writes."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.topk.op import topk
from semobridge_ext.diagnostics import resampling
from semobridge_ext.fewshot.held_out import nearest_mean_accuracy, nearest_text_accuracy
from semobridge_ext.retrieval.metrics import retrieval_metrics

BINS = 100
RESAMPLES, CONFIDENCE = 1000, 0.95
_SAMPLE = 4000  # rows of the histograms and spectra: 8 million pairs
_QUERIES = {"mAP": "AP", "Recall@1": "Recall@1"}  # figures that are means over all images
CHANGES = (*_QUERIES, "intra-class cosine", "inter-class cosine", "overlap", "effective rank")


class Rows(NamedTuple):
    """The labelled rows of one folder, and texts to compare them with where that means something."""

    features: Tensor  # [N, D] unit rows
    labels: Tensor  # [N]
    texts: Tensor | None  # [C, D] unit rows, of the labels 0 .. C-1


class Measured(NamedTuple):
    """A folder's figures for JSON, the resamples of some, and the row nearest to each that asked."""

    figures: dict[str, Any]
    samples: dict[str, Tensor]  # by name of CHANGES
    nearest: Tensor  # [M] int64


class Sample(NamedTuple):
    """Row numbers, sorted; the same in every folder."""

    asked: Tensor  # [M] of the images that ask in retrieval
    chosen: Tensor  # of histograms and spectra


def sample(count: int, queries: int, seed: int) -> Sample:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    asked, chosen = order[:queries].sort().values, order[:_SAMPLE].sort().values
    return Sample(asked, chosen)


def measure(rows: Rows, taken: Sample, shots: list[int], seeds: int) -> Measured:
    """Accuracy and gap of all rows, retrieval among all; cosines and spectrum of the chosen ones."""
    (x, y, texts), (asked, chosen) = rows, taken
    queries = None if len(asked) == len(x) else asked  # a set that is its own query needs half the products
    began = time.perf_counter()
    retrieval: dict[str, Any] = retrieval_metrics(x, x, y, y, same_set=True, queries=queries, per_query=True)
    retrieval["seconds"] = time.perf_counter() - began
    samples = _means(retrieval.pop("per_query"))
    plan = resampling.make_plan(y[chosen], False, RESAMPLES, CONFIDENCE, 0)
    m = resampling.measure(x[chosen], None, y[chosen], plan, (1,), 1, BINS)
    values, drawn = resampling.values_of(m), resampling.resampled(m, plan)
    values |= {name: float(retrieval[name]) for name in _QUERIES}
    samples = {name: samples[name] if name in samples else drawn[name] for name in CHANGES}
    accuracy = nearest_mean_accuracy(x, y, shots, seeds) if shots else {}
    spectrum = resampling.spectrum_of_moments(*m.moments)
    figures = {
        "width": x.shape[1],
        "retrieval": retrieval,
        "accuracy": {str(k): found for k, found in accuracy.items()},
        "zero_shot": None if texts is None else nearest_text_accuracy(x, y, texts),
        "cosines": _cosines(m.histogram, values),
        "gap": None if texts is None else resampling.modality_gap(x, texts),
        "spectrum": {
            "shares": (spectrum / spectrum.sum())[: min(len(chosen), x.shape[1])].tolist(),
            "effective_rank": values["effective rank"],
        },
        "intervals": {n: _interval(n, values[n], samples[n]) for n in CHANGES},
    }
    nearest = topk(x if queries is None else x[asked], x, 1, exclude=asked).indices[:, 0]
    return Measured(figures, samples, nearest)


def _interval(name: str, value: float, samples: Tensor) -> list[float]:
    return list(resampling.interval(name, value, samples, CONFIDENCE))


def change(base: Measured, other: Measured) -> dict[str, list[float]]:
    """By figure: other minus base, and the interval of the paired resamples."""
    old, new = base.figures["intervals"], other.figures["intervals"]
    return {n: _interval(n, new[n][0] - old[n][0], other.samples[n] - base.samples[n]) for n in CHANGES}


def _means(per_query: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resampled means over the queries; those without a relevant image have no part in them."""
    valid = ~torch.isnan(per_query["AP"])
    columns = torch.stack([per_query[key][valid].double() for key in _QUERIES.values()], dim=1)
    count = len(columns)
    drawn = torch.cat([w @ columns / count for w in resampling.draws(count, RESAMPLES, 0)])
    return dict(zip(_QUERIES, drawn.unbind(1), strict=True))


def _cosines(histogram: Tensor, values: dict[str, float]) -> dict[str, Any]:
    """Shares of the cosines of pairs within and between classes by bin, and their overlap."""
    inter, intra = histogram.sum(dim=0)  # a pair stands there twice, once from each end
    return {
        "intra": (intra / intra.sum()).tolist(),
        "inter": (inter / inter.sum()).tolist(),
        "pairs": [int(intra.sum()) // 2, int(inter.sum()) // 2],
        "intra_mean": values["intra-class cosine"],
        "inter_mean": values["inter-class cosine"],
        "overlap": values["overlap"],
    }


def by_class(
    names: list[str], labels: Tensor, asked: Tensor, nearest: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Of every class with two images, one of which asked, the worst of the first folder first.

    How many of its images that asked have one of their own class as the nearest, in each folder; and the
    classes that the others of the first folder lie next to.
    """
    many = torch.bincount(labels, minlength=len(names)).tolist()
    own_labels = labels[asked]
    sizes = torch.bincount(own_labels, minlength=len(names)).tolist()
    found = {folder: labels[rows] for folder, rows in nearest.items()}
    right = {
        folder: torch.bincount(own_labels[near == own_labels], minlength=len(names)).tolist()
        for folder, near in found.items()
    }
    first = next(iter(found))
    wrong: list[Counter[int]] = [Counter() for _ in names]
    for own, near in zip(own_labels.tolist(), found[first].tolist(), strict=True):
        if own != near:
            wrong[own][near] += 1
    rows = [
        {
            "name": names[c], "images": sizes[c], "right": {f: right[f][c] for f in found},
            "confused": [[names[k], many] for k, many in wrong[c].most_common(3)],
        }
        for c in range(len(names)) if many[c] > 1 and sizes[c]
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["right"][first] / row["images"], -row["images"]))
