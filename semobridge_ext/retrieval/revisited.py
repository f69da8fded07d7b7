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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.rank_counts.op import Marked, blocks, rank_counts
from semobridge_ext.retrieval.checks import check_features, check_places
from semobridge_ext.retrieval.relevance import row_numbers
from semobridge_ext.runtime.choice import resolve
from semobridge_ext.runtime.plain_modes import plain_device
from semobridge_ext.runtime.rows import unit_columns

_NAME = "revisited_metrics"
_KINDS = ("easy", "hard", "junk")
# protocol: (positive lists, removed lists)
_PROTOCOLS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


class _Listed(NamedTuple):
    """Every listed image of every query, flat."""

    query: np.ndarray  # [M] int64, ascending
    row: np.ndarray  # [M] int64 gallery rows
    kind: np.ndarray  # [M] int64 places in _KINDS


def _flatten(given: dict[str, Any], n: int, g: int) -> _Listed:
    parts = {}
    for name, lists in given.items():
        if isinstance(lists, (str, bytes)) or not hasattr(lists, "__len__"):
            contract, remedy = f"hold {n} lists", "pass one list of gallery indices per query"
            raise TypeError(_errors.message(_NAME, name, contract, _errors.describe(lists), remedy))
        if len(lists) != n:
            contract, remedy = f"hold {n} lists", "pass one list of gallery indices per query"
            raise ValueError(_errors.message(_NAME, name, contract, f"{len(lists)}", remedy))
        remedy = "pass the gallery indices of each query as whole numbers"
        each = [row_numbers(_NAME, name, i, indices, remedy) for i, indices in enumerate(lists)]
        sizes = np.array([len(rows) for rows in each], dtype=np.int64)
        rows = np.concatenate([np.empty(0, dtype=np.int64), *each])
        query = np.repeat(np.arange(n), sizes)
        bad = np.flatnonzero((rows < 0) | (rows >= g))
        if bad.size:
            got, remedy = f"{rows[bad[0]]} for query {query[bad[0]]}", f"the gallery has {g} rows"
            raise ValueError(_errors.message(_NAME, name, f"lie in 0..{g - 1}", got, remedy))
        parts[name] = (query, rows)
    query = np.concatenate([part[0] for part in parts.values()])
    row = np.concatenate([part[1] for part in parts.values()])
    kind = np.repeat(np.arange(len(_KINDS)), [len(parts[name][1]) for name in _KINDS])
    order = np.lexsort((row, query))
    listed = _Listed(query[order], row[order], kind[order])
    _check_disjoint(listed)
    return listed


def _check_disjoint(listed: _Listed) -> None:
    """Of rows that stand ascending within each query."""
    twice = np.flatnonzero((np.diff(listed.query) == 0) & (np.diff(listed.row) == 0))
    if twice.size:
        got = f"gallery row {listed.row[twice[0]]} twice for query {listed.query[twice[0]]}"
        remedy = "an image is easy, hard or junk"
        raise ValueError(_errors.message(_NAME, "easy, hard and junk", "be disjoint", got, remedy))


class _Ranked(NamedTuple):
    """The listed images, best first within each query; equal scores beside one another."""

    query: np.ndarray  # [M] int64, ascending
    kind: np.ndarray  # [M]
    greater: np.ndarray  # [M] gallery rows above it
    equal: np.ndarray  # [M] gallery rows level with it
    first: np.ndarray  # [M] where its tie begins
    last: np.ndarray  # [M] ... and ends
    begin: np.ndarray  # [M] where its query begins


def _rank(query: Tensor, gallery: Tensor, listed: _Listed) -> _Ranked:
    sizes = torch.from_numpy(np.bincount(listed.query, minlength=len(query)))
    end = sizes.cumsum(0)
    marked, found = Marked(torch.from_numpy(listed.row), end - sizes, end), []
    for part in blocks(sizes):
        mine = Marked(marked.rows, marked.begin[part], marked.end[part])
        counts = rank_counts(query, gallery, torch.arange(part.start, part.stop), mine, in_order=True)
        found.append([t.numpy() for t in counts[1:] if t is not None])
    ascending, greater, equal, scores = (np.concatenate(fields) for fields in zip(*found, strict=True))
    order = np.lexsort((-scores, listed.query))
    # The counts come in ascending order of score; here the best of a query comes first.
    place = (end - sizes + end).numpy()[listed.query] - 1 - np.arange(len(order))
    values, owner = ascending[place], listed.query
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    tie = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(order))
    begin = (end - sizes).numpy()[owner]
    return _Ranked(owner, listed.kind[order], greater[place], equal[place], first[tie], last[tie], begin)


def _protocol(
    ranked: _Ranked,
    positive: Sequence[str],
    removed: Sequence[str],
    n: int,
    precision_at: Sequence[int],
) -> np.ndarray:  # [N, 1 + len(precision_at)] AP, P@k..; NaN: no positive
    is_positive = np.isin(ranked.kind, [_KINDS.index(name) for name in positive])
    is_removed = np.isin(ranked.kind, [_KINDS.index(name) for name in removed])
    positives = np.append(0, np.cumsum(is_positive))  # among the first i
    gone = np.append(0, np.cumsum(is_removed))
    at = np.flatnonzero(is_positive)
    first, last, begin, query = (f[at] for f in (ranked.first, ranked.last, ranked.begin, ranked.query))
    above = ranked.greater[at] - (gone[first] - gone[begin])
    tied = positives[last] - positives[first]
    others = ranked.equal[at] - (gone[last] - gone[first]) - tied
    among = positives[at] - positives[first] + 1  # the j-th of its tie
    rank = above + among - 1 + others * among / (tied + 1)
    j = positives[at] - positives[begin] + 1  # the j-th of its query
    before = np.where(rank > 0, (j - 1) / np.where(rank > 0, rank, 1), 1.0)
    count = np.bincount(query, minlength=n)
    table = np.full((n, 1 + len(precision_at)), np.nan)
    asked = count > 0
    sums = np.bincount(query, before + j / (rank + 1), n)
    table[asked, 0] = sums[asked] / (2 * count[asked])
    lowest = np.zeros(n)
    lowest[query] = rank  # the last of a query stays
    for i, k in enumerate(precision_at):
        cut = np.minimum(k, lowest + 1)
        hits = np.bincount(query[rank + 1 <= cut[query]], minlength=n)
        table[asked, 1 + i] = hits[asked] / cut[asked]
    return table


@plain_device()
def revisited_metrics(
    query: Any,  # [N, D]
    gallery: Any,  # [G, D]
    easy: Sequence[Any],
    hard: Sequence[Any],
    junk: Sequence[Any],
    *,
    precision_at: Sequence[int] = (1, 5, 10),
    per_query: bool = False,
) -> dict[str, dict[str, Any]]:
    """mAP and mP@k of ROxford and RParis, protocols Easy, Medium and Hard.

    Args:
        query: [N, D] float32, float64, bfloat16 or float16, a tensor or array; normalise for cosines.
        gallery: [G, D], any of these dtypes; read tile by tile. May be memory-mapped.
        easy, hard, junk: N sequences of gallery indices each, disjoint per query (the benchmark's
            ``gnd[i]["easy"]`` and so on).
        precision_at: the k of mP@k.
        per_query: adds ``"per_query"`` to each protocol: ``{"AP", "P@k"..}``, float64 tensors [N], arrays
            where ``query`` is one.

    Returns:
        ``{"easy", "medium", "hard"}``, each ``{"mAP", "mP@k".., "queries", "without_positive"}``:
        means over the queries that have a positive in the protocol (NaN if none has), fractions.

    Raises:
        TypeError: not a float tensor. ValueError: shapes that do not fit, an index outside the
            gallery, an image in two lists of a query. NotImplementedError: not on the CPU.

    Numerics: as `retrieval_metrics`, with the tie rule at the head of this module.

    Memory: O(block) and the lists; one pass over the gallery, and one over the listed images.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> gallery = torch.tensor([[1.0], [0.9], [0.5], [0.1]])
        >>> m = sb.revisited_metrics(torch.ones(1, 1), gallery, [[0]], [[2]], [[1]])
        >>> m["easy"]["mAP"], m["hard"]["mAP"], m["medium"]["mP@5"]
        (1.0, 1.0, 1.0)
    """
    as_array = _arrays.is_array(query)
    query, gallery = (
        _arrays.tensor(_NAME, name, rows) for name, rows in (("query", query), ("gallery", gallery))
    )
    precision_at = check_places(_NAME, "precision_at", precision_at)
    check_features(_NAME, query, gallery)
    if resolve(_NAME, query.device) != "native":
        remedy = "move the features to the CPU and use backend('auto')"
        raise NotImplementedError(
            _errors.message(_NAME, "query", "be on the CPU, for backend 'native'", query, remedy)
        )
    n, g = query.shape[0], gallery.shape[0]
    listed = _flatten({"easy": easy, "hard": hard, "junk": junk}, n, g)
    query, gallery = unit_columns(query.detach()), unit_columns(gallery.detach())
    ranked = _rank(query, gallery, listed)
    result: dict[str, dict[str, Any]] = {}
    for protocol, (positive, removed) in _PROTOCOLS.items():
        values = torch.from_numpy(_protocol(ranked, positive, removed, n, precision_at))
        valid = ~torch.isnan(values[:, 0])
        names = ["AP", *(f"P@{k}" for k in precision_at)]
        result[protocol] = {f"m{name}": float(values[valid, i].mean()) for i, name in enumerate(names)}
        result[protocol]["queries"] = int(valid.sum())
        result[protocol]["without_positive"] = int((~valid).sum())
        if per_query:
            each = {name: values[:, i] for i, name in enumerate(names)}
            result[protocol]["per_query"] = (
                {name: _arrays.array(value) for name, value in each.items()} if as_array else each
            )
    return result
