"""estimate_num_classes: how many classes, old and new, a partly labelled set has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext.discovery.accuracy import assignment_solver
from semobridge_ext.discovery.checks import check_number
from semobridge_ext.discovery.class_names import encode_labels
from semobridge_ext.discovery.semi_supervised import Points, Seeds, clustered
from semobridge_ext.runtime.plain_modes import plain_modes

_NAME = "estimate_num_classes"
_TIMES = 10  # the largest count that is tried, in old classes


class NumClassesEstimate(NamedTuple):
    """An estimated number of classes, and what was tried.

    Args:
        num_classes: the count of the highest accuracy, the smaller one of equals.
        candidates: every count that was tried, ascending.
        accuracy: of each, a fraction: labelled images of the held-out classes in their class's cluster.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.NumClassesEstimate(3, [2, 3], [0.5, 1.0]).num_classes
        3
    """

    num_classes: int
    candidates: list[int]
    accuracy: list[float]


@plain_modes()
def estimate_num_classes(
    X: Any,  # [N, D]
    y: Any,
    *,
    max_classes: int | None = None,
    anchors: float = 0.0,
    draws: int = 10,
    points: int = 8,
    max_iter: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> NumClassesEstimate:
    """Estimates K, the number of old and new classes together, from features and some labels.

    For each K all unit rows are clustered by semi-supervised k-means. Its accuracy is the share of labelled
    images of held-out classes that one Hungarian assignment of the clusters without anchors to these classes
    puts right, the mean of the draws. The estimate is the K of the highest accuracy.

    k-means sees no label of the held-out classes, and these labels judge it: too few clusters join such
    classes, too many divide them, and both cost accuracy. Held out are all labelled classes, as in the
    authors' program, or all but ``anchors``, whose labelled images stay in clusters of their own. Counts from
    the number of labelled classes to ``max_classes`` are tried from coarse to fine: ``points`` on a geometric
    scale, then as many between the neighbours of the best, until these stand beside it.

    It is an estimate. It knows of the new classes only what they share with the old ones: where they are
    finer, coarser, or fewer images each, it is off, and nothing in the result shows it. The guide has
    what it says on sets whose count is known.

    Args:
        X: [N, D] image features, a floating-point tensor or array; rows are normalised.
        y: N labels: the class of a labelled image; None, or the number −1, for an unlabelled one. Two
            classes at least.
        max_classes: the largest count that is tried, at most N. None: ten times the number of labelled
            classes, at most N.
        anchors: share of the labelled classes that are anchors, drawn anew for each draw; two classes
            are held out at least. 0: none; k-means is plain, and all labelled images judge it.
        draws: runs with anchors and seeds of their own, over which accuracy is averaged.
        points: counts tried at once, ≥ 2.
        max_iter: of k-means, which ends before where at most a thousandth of the rows move.
        seed: of all draws.
        progress: a bar on standard error.

    Returns:
        NumClassesEstimate(num_classes, candidates, accuracy): an int, a list of ints and one of floats.

    Raises:
        ImportError: SciPy is missing.
        TypeError: no floating-point rows, or arguments of another kind.
        ValueError: NaN or infinite rows, another number of labels than rows, fewer than two labelled
            classes, numbers out of their range.

    Numerics: distances in float32 (float64 for float64 input), by ``topk``; sums of clusters in float64.
        Deterministic for one seed on a CPU; on CUDA the sums' order, and so a count near a tie, may change.
        Not differentiable.

    Memory: O(N·D + max_classes·D): a copy of the rows; no array of rows by clusters. Time: each count and
        draw takes up to ``max_iter``·N·K·D multiplications, about twenty to forty counts are tried.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> noise = torch.randn(160, 16, generator=torch.Generator().manual_seed(0))
        >>> x = torch.eye(16)[torch.arange(160) % 16] + 0.1 * noise  # 16 classes, 8 of them old
        >>> y = [i % 16 if i % 16 < 8 and i < 80 else None for i in range(160)]
        >>> found = sb.estimate_num_classes(x, y, max_classes=40)
        >>> 12 <= found.num_classes <= 20
        True

    Paper: Vaze et al., Generalized Category Discovery (arXiv 2201.02609), section 4: k-means over K, judged
        on the labelled images. Anchors beside held-out classes are Han et al.'s (arXiv 1908.09884).
    """
    _check(max_classes, anchors, draws, points, max_iter, seed)
    assignment_solver(_NAME)  # refused before the work
    x = _inputs.features(_NAME, "X", X)
    old, codes = encode_labels(_NAME, y, len(x), len(x))
    if len(old) < 2:
        remedy = "label images of two classes or more"
        raise ValueError(_errors.message(_NAME, "y", "label two classes", f"{old[0]!r} alone", remedy))
    most = min(_TIMES * len(old), len(x)) if max_classes is None else int(max_classes)
    if not len(old) <= most <= len(x):
        contract = f"be from {len(old)}, the labelled classes, to {len(x)}, the images"
        raise ValueError(_errors.message(_NAME, "max_classes", contract, most, "pass a count between"))
    judge = _Judge(x, codes, len(old), most, anchors, draws, max_iter, seed)
    return _searched(judge, len(old), most, points, progress)


def _check(max_classes: Any, anchors: Any, draws: Any, points: Any, max_iter: Any, seed: Any) -> None:
    if max_classes is not None:
        check_number(_NAME, "max_classes", max_classes, remedy="pass a count or None", least=2, whole=True)
    check_number(_NAME, "anchors", anchors, remedy="0 is usual", least=0, most=1)
    check_number(_NAME, "draws", draws, remedy="10 is usual", least=1, whole=True)
    check_number(_NAME, "points", points, remedy="8 is usual", least=2, whole=True)
    check_number(_NAME, "max_iter", max_iter, remedy="30 is usual", least=1, whole=True)
    check_number(_NAME, "seed", seed, remedy="pass a whole number", least=0, most=2**63 - 1, whole=True)


class _Judge:
    """Accuracy of held-out classes by number of clusters; each draw is made once for all numbers."""

    def __init__(
        self,
        x: Tensor,  # [N, D]
        codes: Tensor,  # [N], −1: unlabelled
        old: int,
        most: int,
        anchors: float,
        draws: int,
        max_iter: int,
        seed: int,
    ) -> None:
        self._points, self._max_iter = Points(x), max_iter
        self._codes, self._old = codes, old
        generator = torch.Generator().manual_seed(int(seed))
        count = min(int(anchors * old), old - 2)
        self._draws: list[tuple[Tensor, Seeds]] = []
        for _ in range(draws):
            chosen = torch.randperm(old, generator=generator)[:count].sort().values
            place = torch.full((old + 1,), -1, dtype=torch.int64)  # the last is that of −1
            place[chosen] = torch.arange(count)
            known = place[codes]
            held = ((codes >= 0) & (known < 0)).nonzero().flatten()
            self._draws.append((held, Seeds(self._points, known.to(x.device), most, generator)))

    def __call__(self, clusters: int) -> float:
        return fmean(self._accuracy(held, seeds, clusters) for held, seeds in self._draws)

    def _accuracy(self, held: Tensor, seeds: Seeds, clusters: int) -> float:
        """held: [n] labelled images of held-out classes."""
        codes = clustered(self._points, seeds, clusters, self._max_iter).cpu()[held]
        first = len(seeds.classes)  # clusters before it are the anchors', and no held-out class's
        table = np.zeros((clusters, self._old), dtype=np.int64)
        np.add.at(table, (codes.numpy(), self._codes[held].numpy()), 1)
        rows, columns = assignment_solver(_NAME)(table[first:], maximize=True)
        return float(table[first:][rows, columns].sum()) / len(held)


def _spread(low: int, high: int, points: int) -> list[int]:
    """Whole numbers from low to high on a geometric scale."""
    ratio = (high / low) ** (1 / (points - 1))
    return sorted({low, high, *(min(high, round(low * ratio**i)) for i in range(points))})


def _between(low: int, high: int, points: int) -> list[int]:
    """Whole numbers within low and high, evenly."""
    step = (high - low) / (points + 1)
    return sorted({round(low + step * i) for i in range(1, points + 1)} - {low, high})


def _rounds(judged: dict[int, float], low: int, high: int, points: int) -> Iterator[list[int]]:
    """Counts to try, round by round; what is judged meanwhile says where to go on."""
    yield _spread(low, high, points)
    while True:
        tried, best = sorted(judged), _best(judged)
        i = tried.index(best)
        left, right = tried[max(i - 1, 0)], tried[min(i + 1, len(tried) - 1)]
        fresh = [k for k in _between(left, right, points) if k not in judged]
        if not fresh:
            fresh = [k for k in (best - 1, best + 1) if left < k < right]
        if not fresh:
            return
        yield fresh


def _best(judged: dict[int, float]) -> int:
    return max(judged, key=lambda k: (judged[k], -k))


def _searched(judge: _Judge, low: int, high: int, points: int, progress: bool) -> NumClassesEstimate:
    from tqdm.auto import tqdm

    judged: dict[int, float] = {}
    total = points + math.ceil(math.log(max(high - low, 2), (points + 1) / 2)) * points
    with tqdm(total=total, unit="count", desc=_NAME, disable=not progress) as bar:
        for counts in _rounds(judged, low, high, points):
            for clusters in counts:
                judged[clusters] = judge(clusters)
                bar.update(1)
    tried = sorted(judged)
    return NumClassesEstimate(_best(judged), tried, [judged[k] for k in tried])
