"""rank_counts: how many gallery rows stand above, and level with, each marked row of a query.

    greater[i] = #{j : ⟨q, g_j⟩ > ⟨q, g_i⟩}          equal[i] = #{j : ⟨q, g_j⟩ = ⟨q, g_i⟩}

The base of every retrieval metric here: the ranks of the relevant rows without a sorted gallery.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.support_logits.op import compute_dtype
from semobridge_ext.runtime.backend import _C, DTYPE_CODES

MAX_ENTRIES = 1 << 21  # marked rows of one call: 60 MiB of outputs and counters


class Marked(NamedTuple):
    """Marked gallery rows per query: ``rows[begin[i]:end[i]]``, one of them perhaps excluded."""

    rows: Tensor  # [M] int64
    begin: Tensor  # [N] int64
    end: Tensor  # [N] int64
    exclude: Tensor | None = None  # [N] int64

    def sizes(self) -> Tensor:
        """Marked rows that count, [N]."""
        return self.end - self.begin - (0 if self.exclude is None else 1)


class RankCounts(NamedTuple):
    """Per query a run ``offsets[i]:offsets[i + 1]``, ascending in score."""

    offsets: Tensor  # [N + 1] int64
    scores: Tensor  # [M]
    greater: Tensor  # [M] int64
    equal: Tensor  # [M] int64


def blocks(sizes: Tensor) -> list[slice]:
    """Cuts queries into runs that one call takes: few enough rows and marked rows."""
    totals = sizes.cumsum(0).tolist()
    cuts, begin, base = [], 0, 0
    for i in range(1, len(totals) + 1):
        if i == len(totals) or i - begin == _C.RANK_BLOCK or totals[i] - base > MAX_ENTRIES:
            cuts.append(slice(begin, i))
            begin, base = i, totals[i - 1]
    return cuts


def rank_counts(
    queries: Tensor,  # [*, D], unit column stride
    gallery: Tensor,  # [G, D], unit column stride
    query_rows: Tensor,  # [N] int64, at most RANK_BLOCK
    marked: Marked,
    *,
    count: bool = True,
) -> RankCounts:
    """Native, CPU; the caller has checked everything. ``count=False`` gives the scores only."""
    n, compute, threads = len(query_rows), compute_dtype(queries, gallery), torch.get_num_threads()
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    torch.cumsum(marked.sizes(), 0, out=offsets[1:])
    total = int(offsets[-1])
    scores = torch.empty(total, dtype=compute)
    greater, equal = torch.empty(2, total, dtype=torch.int64)
    size = _C.rank_counts_workspace(offsets.data_ptr(), n, threads)
    workspace = torch.empty(size, dtype=torch.uint8)
    keep = [t.contiguous() for t in (query_rows, marked.rows, marked.begin, marked.end)]
    exclude = None if marked.exclude is None else marked.exclude.contiguous()
    _C.rank_counts(
        queries.data_ptr(), DTYPE_CODES[queries.dtype], queries.stride(0),
        gallery.data_ptr(), DTYPE_CODES[gallery.dtype], gallery.shape[0], gallery.stride(0),
        gallery.shape[1], n, *(t.data_ptr() for t in keep),
        0 if exclude is None else exclude.data_ptr(), offsets.data_ptr(),
        scores.data_ptr(), greater.data_ptr(), equal.data_ptr(), count,
        workspace.data_ptr(), threads,
    )  # fmt: skip
    return RankCounts(offsets, scores, greater, equal)
