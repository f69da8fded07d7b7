"""Retrieval protocols on top of the ops: ROxford and RParis (Radenović et al., CVPR 2018).

A query has easy, hard and junk images. Easy: easy ones are positive, hard and junk ones are removed
from the ranking. Medium: easy and hard ones are positive, junk removed. Hard: hard ones are positive,
easy and junk removed. With R positives at ranks r_1 < r_2 < .. (the first rank is 0),

    AP = (1/R) Σ_j ((j − 1)/r_j + j/(r_j + 1))/2          (j − 1)/r_j read as 1 where r_j = 0
    P@k = #{j : r_j < k'}/k'                              k' = min(k, r_R + 1)

the trapezoid under the precision-recall curve that the benchmark's program computes. Ties: the j-th of
m positives tied with n negatives stands behind n·j/(m + 1) of them, its expected place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._ops.rank_counts.op import Marked, RankCounts, blocks, rank_counts
from semobridge_ext.retrieval.metrics import check_features
from semobridge_ext.runtime.choice import resolve
from semobridge_ext.runtime.rows import unit_columns

_NAME = "revisited_metrics"
# protocol: (positive lists, removed lists)
_PROTOCOLS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


def _as_lists(name: str, lists: Any, n: int, g: int) -> list[np.ndarray]:
    if len(lists) != n:
        contract, remedy = f"hold {n} lists", "pass one list of gallery indices per query"
        raise ValueError(_errors.message(_NAME, name, contract, f"{len(lists)}", remedy))
    result = []
    for i, indices in enumerate(lists):
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and (rows.min() < 0 or rows.max() >= g):
            bad = int(rows[(rows < 0) | (rows >= g)][0])
            got, remedy = f"{bad} for query {i}", f"the gallery has {g} rows"
            raise ValueError(_errors.message(_NAME, name, f"lie in 0..{g - 1}", got, remedy))
        result.append(rows)
    return result


def _check_disjoint(lists: dict[str, list[np.ndarray]]) -> None:
    for i, parts in enumerate(zip(*lists.values(), strict=True)):
        rows, counts = np.unique(np.concatenate(parts), return_counts=True)
        if (counts > 1).any():
            got = f"gallery row {int(rows[counts > 1][0])} twice for query {i}"
            remedy = "an image is easy, hard or junk"
            raise ValueError(_errors.message(_NAME, "easy, hard and junk", "be disjoint", got, remedy))


def _mark(lists: list[np.ndarray]) -> Marked:
    sizes = torch.tensor([len(rows) for rows in lists])
    end = sizes.cumsum(0)
    rows = np.concatenate(lists) if lists else np.empty(0, dtype=np.int64)
    return Marked(torch.from_numpy(rows), end - sizes, end)


def _run(query: Tensor, gallery: Tensor, lists: list[np.ndarray], count: bool) -> list[Any]:
    """(scores, greater, equal) of each query's marked rows as NumPy arrays, scores ascending."""
    marked, result = _mark(lists), []
    for part in blocks(marked.sizes()):
        rows = torch.arange(part.start, part.stop)
        mine = Marked(marked.rows, marked.begin[part], marked.end[part])
        counts: RankCounts = rank_counts(query, gallery, rows, mine, count=count)
        cuts = counts.offsets.tolist()
        fields = [t.numpy() for t in counts[1:]]
        result += [tuple(f[a:b] for f in fields) for a, b in pairwise(cuts)]
    return result


def _ranks(
    positive: np.ndarray,  # [R] scores
    removed: np.ndarray,  # [J] scores, ascending
    everything: tuple[np.ndarray, np.ndarray, np.ndarray],  # scores ascending, greater, equal
) -> np.ndarray:  # [R] expected ranks from 0, ascending
    scores, greater, equal = everything
    values, sizes = np.unique(positive, return_counts=True)
    ranks: list[float] = []
    for value, m in zip(values[::-1], sizes[::-1], strict=True):
        at = np.searchsorted(scores, value)
        low, high = np.searchsorted(removed, value), np.searchsorted(removed, value, side="right")
        above = greater[at] - (len(removed) - high)
        others = equal[at] - (high - low) - m
        ranks += [above + j - 1 + others * j / (m + 1) for j in range(1, m + 1)]
    return np.asarray(ranks, dtype=np.float64)


def _one_query(ranks: np.ndarray, precision_at: Sequence[int]) -> list[float]:
    if len(ranks) == 0:
        return [float("nan")] * (1 + len(precision_at))
    j = np.arange(1, len(ranks) + 1)
    before = np.where(ranks > 0, (j - 1) / np.where(ranks > 0, ranks, 1), 1.0)
    ap = float((before + j / (ranks + 1)).sum() / (2 * len(ranks)))
    cuts = [min(k, ranks[-1] + 1) for k in precision_at]
    return [ap, *(float((ranks + 1 <= k).sum() / k) for k in cuts)]


def revisited_metrics(
    query: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    easy: Sequence[Any],
    hard: Sequence[Any],
    junk: Sequence[Any],
    *,
    precision_at: Sequence[int] = (1, 5, 10),
    per_query: bool = False,
) -> dict[str, dict[str, Any]]:
    """mAP and mP@k of ROxford and RParis, protocols Easy, Medium and Hard.

    Args:
        query: [N, D] float32, float64, bfloat16 or float16; normalise for a cosine ranking.
        gallery: [G, D], any of these dtypes; read tile by tile. May be memory-mapped.
        easy, hard, junk: N sequences of gallery indices each, disjoint per query (the benchmark's
            ``gnd[i]["easy"]`` and so on).
        precision_at: the k of mP@k.
        per_query: adds ``"per_query"`` to each protocol: ``{"AP", "P@k"..}``, float64 tensors [N].

    Returns:
        ``{"easy", "medium", "hard"}``, each ``{"mAP", "mP@k".., "queries", "without_positive"}``:
        means over the queries that have a positive in the protocol (NaN if none has), fractions.

    Raises:
        TypeError: not a float tensor. ValueError: shapes that do not fit, an index outside the
            gallery, an image in two lists of a query. NotImplementedError: not on the CPU.

    Numerics: as `retrieval_metrics`, with the tie rule at the head of this module.

    Memory: O(block); two passes over the gallery, the second over the listed images only.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> gallery = torch.tensor([[1.0], [0.9], [0.5], [0.1]])
        >>> m = sb.revisited_metrics(torch.ones(1, 1), gallery, [[0]], [[2]], [[1]])
        >>> m["easy"]["mAP"], m["hard"]["mAP"], m["medium"]["mP@5"]
        (1.0, 1.0, 1.0)
    """
    check_features(_NAME, query, gallery)
    if resolve(_NAME, query.device) != "native":
        remedy = "move the features to the CPU and use backend('auto')"
        raise NotImplementedError(
            _errors.message(_NAME, "query", "be on the CPU, for backend 'native'", query, remedy)
        )
    n, g = query.shape[0], gallery.shape[0]
    given = {"easy": easy, "hard": hard, "junk": junk}
    lists = {name: _as_lists(name, value, n, g) for name, value in given.items()}
    _check_disjoint(lists)
    query, gallery = unit_columns(query.detach()), unit_columns(gallery.detach())
    union = [np.concatenate(parts) for parts in zip(*lists.values(), strict=True)]
    everything = _run(query, gallery, union, True)
    scores = {name: _run(query, gallery, rows, False) for name, rows in lists.items()}
    result: dict[str, dict[str, Any]] = {}
    for protocol, (positive, removed) in _PROTOCOLS.items():
        table = []
        for i in range(n):
            kept = np.concatenate([scores[name][i][0] for name in positive])
            junked = np.sort(np.concatenate([scores[name][i][0] for name in removed]))
            table.append(_one_query(_ranks(kept, junked, everything[i]), precision_at))
        values = torch.tensor(table, dtype=torch.float64)
        valid = ~torch.isnan(values[:, 0])
        names = ["AP", *(f"P@{k}" for k in precision_at)]
        result[protocol] = {f"m{name}": float(values[valid, i].mean()) for i, name in enumerate(names)}
        result[protocol]["queries"] = int(valid.sum())
        result[protocol]["without_positive"] = int((~valid).sum())
        if per_query:
            result[protocol]["per_query"] = {name: values[:, i] for i, name in enumerate(names)}
    return result
