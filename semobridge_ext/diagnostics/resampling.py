"""What `diagnose` measures of one set of features, and how far it could have come out otherwise.

Every figure is a ratio of sums over rows, a function of histograms by group of rows, of resampled means,
or of covariances by group: all of them can be resampled without the [N, N] cosines they came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _numbers
from semobridge_ext._ops.topk.op import topk
from semobridge_ext.retrieval.metrics import retrieval_metrics
from semobridge_ext.runtime.plain_modes import plain_modes

_BLOCK = 1 << 21  # cosines that exist at once: 8 MiB, and as much again for their bins
_DRAWS = 1 << 22  # resampled weights that exist at once
JACKKNIFE = 10  # groups of rows for the effective rank
HISTOGRAM_GROUPS = 64
PAIRED = ("inter-class cosine", "intra-class cosine", "overlap")  # means over pairs of rows


class Estimate(NamedTuple):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


class Plan(NamedTuple):
    """How rows are resampled: the same draws for every set of features, so that differences pair."""

    units: Tensor  # [N] int64, the unit of each row: its own number, or its class
    groups: Tensor  # [N] int64, group of each row in the histograms
    folds: Tensor  # [N] int64, group of each row in the jackknife
    resamples: int
    confidence: float
    seed: int


def make_plan(labels: Tensor, by_class: bool, resamples: int, confidence: float, seed: int) -> Plan:
    n = len(labels)
    if by_class:
        order = torch.randperm(
            int(labels.max()) + 1, generator=torch.Generator().manual_seed(_numbers.seed_of(seed))
        )
        return Plan(labels, labels, order[labels] % JACKKNIFE, resamples, confidence, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(_numbers.seed_of(seed)))
    groups, folds = order % min(n, HISTOGRAM_GROUPS), order % min(n, JACKKNIFE)
    return Plan(torch.arange(n), groups, folds, resamples, confidence, seed)


def draws(count: int, resamples: int, seed: int) -> Iterator[Tensor]:  # [b, count] float64
    """How often each of `count` units is drawn, a few resamples at a time."""
    generator, done = torch.Generator().manual_seed(_numbers.seed_of(seed)), 0
    step = max(1, _DRAWS // count)
    while done < resamples:
        b = min(step, resamples - done)
        picked = torch.randint(count, (b, count), generator=generator)
        ones = torch.ones(1, 1, dtype=torch.float64).expand(b, count)
        yield torch.zeros(b, count, dtype=torch.float64).scatter_add_(1, picked, ones)
        done += b


# -- one set of features -----------------------------------------------------------------------------


class Measured(NamedTuple):
    ratios: dict[str, tuple[Tensor, Tensor]]  # name: numerator and denominator by row, [N]
    histogram: Tensor  # [groups, 2, bins] int64, cosines between classes and within
    moments: tuple[Tensor, Tensor, Tensor]  # by fold: rows [F], sums [F, D], products [F, D, D]
    rows: Tensor  # [N, D] unit rows
    other: Tensor | None  # [M, D] unit rows of the other modality


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.detach().to("cpu"), dim=1)


@plain_modes()
def measure(
    rows: Tensor,  # [N, D] unit rows
    other: Tensor | None,
    labels: Tensor,
    plan: Plan,
    recall_at: tuple[int, ...],
    neighbours: int,
    bins: int,
) -> Measured:
    found = retrieval_metrics(rows, rows, labels, labels, same_set=True, recall_at=recall_at, per_query=True)
    per_query: dict[str, Tensor] = found["per_query"]
    valid = ~torch.isnan(per_query["AP"])
    ratios = {
        name: (torch.where(valid, per_query[key], 0.0), valid.double())
        for name, key in (("mAP", "AP"), *((f"Recall@{k}", f"Recall@{k}") for k in recall_at))
    }
    near = topk(rows, rows, neighbours, exclude=torch.arange(len(rows))).indices
    agree = (labels[near] == labels.unsqueeze(1)).double().mean(dim=1)
    ratios[f"neighbours@{neighbours}"] = agree, torch.ones_like(agree)
    histogram, sums, counts = _cosines(rows, labels, plan.groups, bins)
    for i, name in enumerate(("inter-class cosine", "intra-class cosine")):
        ratios[name] = sums[:, i], counts[:, i]
    return Measured(ratios, histogram, _moments(rows, plan.folds), rows, other)


def _cosines(
    rows: Tensor, labels: Tensor, groups: Tensor, bins: int
) -> tuple[Tensor, Tensor, Tensor]:  # [groups, 2, bins], [N, 2], [N, 2]
    """Histograms by group, and each row's sum and number of cosines, to other classes and its own."""
    n, number = len(rows), int(groups.max()) + 1
    histogram = torch.zeros(number * 2 * bins, dtype=torch.int64)
    sums = torch.empty(n, 2, dtype=torch.float64)
    counts = torch.empty(n, 2, dtype=torch.float64)
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        mine = torch.arange(part.start, part.stop)
        cosines = rows[part] @ rows.T
        same = labels[part].unsqueeze(1) == labels
        at = ((cosines + 1) * (bins / 2)).clamp_(0, bins - 1).to(torch.int32)
        at += ((groups[part].unsqueeze(1) * 2 + same) * bins).to(torch.int32)
        histogram += torch.bincount(at.flatten(), minlength=len(histogram))
        # A row's cosine with itself says nothing.
        itself = torch.arange(part.stop - part.start)
        histogram -= torch.bincount(at[itself, mine], minlength=len(histogram))
        within = (cosines * same).sum(dim=1, dtype=torch.float64)
        sums[part, 0] = cosines.sum(dim=1, dtype=torch.float64) - within
        sums[part, 1] = within - cosines[itself, mine].double()
        counts[part, 1] = same.sum(dim=1, dtype=torch.float64) - 1
        counts[part, 0] = n - 1 - counts[part, 1]
    return histogram.reshape(number, 2, bins), sums, counts


def _moments(rows: Tensor, folds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = [rows[folds == fold].double() for fold in range(int(folds.max()) + 1)]
    sizes = torch.tensor([float(len(p)) for p in parts], dtype=torch.float64)
    return sizes, torch.stack([p.sum(dim=0) for p in parts]), torch.stack([p.T @ p for p in parts])


# -- figures -----------------------------------------------------------------------------------------


def overlap_of(histogram: Tensor) -> Tensor:  # [.., 2, bins] -> [..]
    """Σ over bins of the smaller of the two shares: 1 where they coincide, 0 where they never meet."""
    shares = histogram.double() / histogram.double().sum(dim=-1, keepdim=True)
    return shares.amin(dim=-2).sum(dim=-1)


def spectrum_of_moments(sizes: Tensor, sums: Tensor, products: Tensor) -> Tensor:  # [D] descending
    total = sizes.sum()
    mean = sums.sum(dim=0) / total
    covariance = products.sum(dim=0) / total - torch.outer(mean, mean)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)


def effective_rank(spectrum: Tensor) -> float:
    """exp of the entropy of the variance's shares (Roy and Vetterli, 2007)."""
    shares = spectrum / spectrum.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def modality_gap(
    features: Tensor,  # [N, D]
    other: Tensor,  # [M, D] of the other modality
) -> float:
    """``‖mean norm(x) − mean norm(t)‖``, between 0 and 2 (docs/methods.md §8)."""
    return float(_gap(*(_mean(x) for x in (features, other))))


def _mean(rows: Tensor) -> Tensor:  # [N, D] -> [D] float64
    """Of the unit rows, block by block."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part in rows.split(1 << 12):
        total += unit(part).double().sum(dim=0)
    return total / len(rows)


def _gap(mean: Tensor, other_mean: Tensor) -> Tensor:  # [.., D] -> [..]
    return torch.linalg.vector_norm(mean - other_mean, dim=-1)


def values_of(m: Measured) -> dict[str, float]:
    values = {name: float(num.sum() / den.sum()) for name, (num, den) in m.ratios.items()}
    values["overlap"] = float(overlap_of(m.histogram.sum(dim=0)))
    if m.other is not None:
        values["modality gap"] = float(_gap(m.rows.double().mean(dim=0), m.other.double().mean(dim=0)))
    values["effective rank"] = effective_rank(spectrum_of_moments(*m.moments))
    return values


def resampled(m: Measured, plan: Plan) -> dict[str, Tensor]:
    """[resamples] values of every figure; of the effective rank, the values without each fold."""
    found: dict[str, list[Tensor]] = {}
    names = list(m.ratios)
    parts = torch.cat([torch.stack(m.ratios[name], dim=1) for name in names], dim=1)  # [N, 2·names]
    units = int(plan.units.max()) + 1
    totals = torch.zeros(units, parts.shape[1], dtype=torch.float64).index_add_(0, plan.units, parts)
    sizes = torch.bincount(plan.units, minlength=units).double()
    wide, centre = m.rows.double(), None
    if m.other is not None:
        centre = torch.zeros(units, wide.shape[1], dtype=torch.float64).index_add_(0, plan.units, wide)
    texts = None if m.other is None else draws(len(m.other), plan.resamples, plan.seed + 2)
    means = [] if texts is None or m.other is None else [w @ m.other.double() / len(m.other) for w in texts]
    text_means = torch.cat(means) if means else None
    done = 0
    for weights in draws(units, plan.resamples, plan.seed):
        sums = weights @ totals
        for i, name in enumerate(names):
            found.setdefault(name, []).append(sums[:, 2 * i] / sums[:, 2 * i + 1])
        if centre is not None and text_means is not None:
            mean = weights @ centre / (weights @ sizes).unsqueeze(1)
            gap = _gap(mean, text_means[done : done + len(weights)])
            found.setdefault("modality gap", []).append(gap)
        done += len(weights)
    groups = m.histogram.shape[0]
    flat = m.histogram.reshape(groups, -1).double()
    for weights in draws(groups, plan.resamples, plan.seed + 1):
        drawn = (weights @ flat).reshape(len(weights), 2, -1)
        found.setdefault("overlap", []).append(overlap_of(drawn))
    result = {name: torch.cat(values) for name, values in found.items()}
    # A cosine belongs to both its rows, and drawing a row anew changes it from either end: to first order
    # twice the change of drawing it as a query before a gallery that stays.
    values = values_of(m)
    for name, factor in (*((name, 2) for name in PAIRED), ("modality gap", 1)):
        if name in result:
            # Centred: a histogram of drawn rows is rougher, and a drawn mean further off, than the figure.
            result[name] = values[name] + factor * (result[name] - result[name].nanmean())
    result["effective rank"] = _without_each_fold(*m.moments)
    return result


def _without_each_fold(sizes: Tensor, sums: Tensor, products: Tensor) -> Tensor:
    """The effective rank with one fold left out; means and products come from the totals."""
    size, total, product = sizes.sum(), sums.sum(dim=0), products.sum(dim=0)
    values = []
    for i in range(len(sizes)):
        rest = (
            (size - sizes[i]).reshape(1),
            (total - sums[i]).unsqueeze(0),
            (product - products[i]).unsqueeze(0),
        )
        values.append(effective_rank(spectrum_of_moments(*rest)))
    return torch.tensor(values, dtype=torch.float64)


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t, by the Cornish-Fisher expansion about the normal one."""
    z = float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def interval(name: str, value: float, samples: Tensor, confidence: float) -> Estimate:
    """Percentile interval of the bootstrap; of the effective rank, the jackknife's with Student's t."""
    if name == "effective rank":
        folds = len(samples)
        spread = ((folds - 1) / folds * (samples - samples.mean()).square().sum()).sqrt()
        margin = _student((1 + confidence) / 2, folds - 1) * float(spread)
        return Estimate(value, value - margin, value + margin)
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(samples, tails).tolist()
    return Estimate(value, low, high)


def settings_of(plan: Plan, by_class: bool) -> dict[str, Any]:
    return {
        "resamples": plan.resamples, "resample": "classes" if by_class else "queries",
        "confidence": plan.confidence, "seed": plan.seed,
    }  # fmt: skip
