"""What is relevant to each query, given as pairs or lists: marked rows of the gallery, and their metrics.

Labels say the same in fewer words where relevance is an equivalence: an image belongs to one class. Captions
of images, or queries with answers of several kinds, need the items themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.rank_counts import cpu
from semobridge_ext._ops.rank_counts.op import Marked, blocks, rank_counts
from semobridge_ext.retrieval import eager
from semobridge_ext.runtime.rows import compute_dtype, unit_columns

_PAIRS = "pass [M, 2] int64 of (query row, gallery row), or a list of one list of gallery rows per query"


def mark_relevant(function: str, relevant: Any, queries: int, gallery: int, same_set: bool) -> Marked:
    """The marked rows of pairs [M, 2], or of one list of gallery rows per query; repeated ones count once.

    Under `same_set` a query's own row is marked and excluded, as `mark_by_label` does, given or not.
    """
    if isinstance(relevant, (Tensor, np.ndarray)):
        pairs = _pairs(function, relevant)
    else:
        pairs = _listed(function, relevant, queries)
    _check_range(function, pairs, queries, gallery)
    exclude = None
    if same_set:
        exclude = torch.arange(queries, device="cpu")
        pairs = torch.cat([pairs, torch.stack([exclude, exclude], dim=1)])
    places = torch.unique(pairs[:, 0] * gallery + pairs[:, 1])  # ascending: by query, then by row
    end = torch.bincount(places // gallery, minlength=queries).cumsum(0)
    begin = torch.cat([end.new_zeros(1), end[:-1]])
    return Marked(places % gallery, begin, end, exclude)


def _pairs(function: str, relevant: Any) -> Tensor:  # [M, 2] int64 on the CPU
    found = relevant if isinstance(relevant, Tensor) else _arrays.shared(relevant)
    found = _arrays.whole(found)
    if not _errors.is_dense(found) or found.dtype is not torch.int64:
        remedy = "pass pairs of whole numbers, for example relevant.long()"
        raise TypeError(_errors.message(function, "relevant", "hold whole numbers", found, remedy))
    if found.dim() != 2 or found.shape[1] != 2:
        raise ValueError(_errors.message(function, "relevant", "be [M, 2]", found, _PAIRS))
    _errors.check_memory(function, "relevant", found)
    return found.detach().cpu().clone()


def _listed(function: str, relevant: Any, queries: int) -> Tensor:  # [M, 2] int64
    if isinstance(relevant, (str, bytes)) or not isinstance(relevant, Sequence):
        contract = "be pairs or a list of lists"
        raise TypeError(_errors.message(function, "relevant", contract, relevant, _PAIRS))
    if len(relevant) != queries:
        contract, got = f"hold {queries} lists, one per query", f"{len(relevant)}"
        raise ValueError(_errors.message(function, "relevant", contract, got, _PAIRS))
    rows = [row_numbers(function, "relevant", i, given, _PAIRS) for i, given in enumerate(relevant)]
    sizes = torch.tensor([len(part) for part in rows], dtype=torch.int64)
    flat = torch.from_numpy(np.concatenate(rows)) if rows else torch.empty(0, dtype=torch.int64)
    return torch.stack([torch.repeat_interleave(torch.arange(queries), sizes), flat], dim=1)


def row_numbers(function: str, argument: str, query: int, given: Any, remedy: str) -> np.ndarray:  # [m] int64
    """The gallery rows of one query, as whole numbers."""
    found = _arrays.whole(given, torch.device("cpu"))
    whole = _errors.is_dense(found) and found.dtype is torch.int64 and not found.is_meta
    if not whole or found.dim() != 1:
        got = f"{_errors.describe(given)} for query {query}"
        raise TypeError(_errors.message(function, argument, "hold lists of row numbers", got, remedy))
    return found.detach().cpu().numpy()


def _check_range(function: str, pairs: Tensor, queries: int, gallery: int) -> None:
    for column, (what, size) in enumerate((("query", queries), ("gallery", gallery))):
        values = pairs[:, column]
        wrong = ((values < 0) | (values >= size)).nonzero().flatten()
        if len(wrong):
            query, row = pairs[wrong[0]].tolist()
            got = f"the pair ({query}, {row}), {len(wrong)} such in all"
            contract, remedy = f"name {what} rows in 0..{size - 1}", "rows count from 0"
            raise ValueError(_errors.message(function, "relevant", contract, got, remedy))


def native(query: Tensor, gallery: Tensor, marked: Marked, recall_at: Sequence[int]) -> Tensor:
    """[N, 3 + len(recall_at)] float64 of the CPU's kernel: AP, AP@R, R-precision, Recall@k..; NaN: none."""
    query, gallery = unit_columns(query), unit_columns(gallery)
    parts = []
    for part in blocks(marked.sizes()):
        rows = torch.arange(part.start, part.stop, device="cpu")
        exclude = None if marked.exclude is None else marked.exclude[part]
        mine = Marked(marked.rows, marked.begin[part], marked.end[part], exclude)
        counts = rank_counts(query, gallery, rows, mine)
        parts.append(cpu.rank_metrics(counts.offsets, counts.greater, counts.equal, recall_at))
    return torch.cat(parts)


def plain(query: Tensor, gallery: Tensor, marked: Marked, recall_at: tuple[int, ...]) -> Tensor:
    """The same by PyTorch alone, on any device: one sorted ranking per query."""
    wide = compute_dtype(query.dtype, gallery.dtype)
    query, gallery = query.to(wide), gallery.to(wide)
    table = torch.empty(len(query), 3 + len(recall_at), dtype=torch.float64)
    for i, row in enumerate(query):
        scores = torch.mv(gallery, row).cpu()
        scores = torch.where(torch.isnan(scores), -torch.inf, scores)
        relevant = torch.zeros(len(scores), dtype=torch.bool)
        relevant[marked.rows[int(marked.begin[i]) : int(marked.end[i])]] = True
        if marked.exclude is not None:
            others = torch.arange(len(scores)) != i
            scores, relevant = scores[others], relevant[others]
        table[i] = torch.tensor(eager.metrics_of_ranking(scores, relevant, recall_at), dtype=torch.float64)
    return table
