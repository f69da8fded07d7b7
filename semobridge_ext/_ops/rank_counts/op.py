"""rank_counts: how many gallery rows stand above, and level with, each marked row of a query.

    greater[i] = #{j : ⟨q, g_j⟩ > ⟨q, g_i⟩}          equal[i] = #{j : ⟨q, g_j⟩ = ⟨q, g_i⟩}

The base of every retrieval metric here: the ranks of the relevant rows without a sorted gallery.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.rank_counts import cpu

MAX_ENTRIES = 1 << 21  # marked rows of one call: 100 MiB of outputs, tables and a thread's counters

QUERY_ENTRIES = 8  # ... and a query costs as much as these, however few rows it marks


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
    in_order: Tensor | None = None  # [M] the scores in the order of the marked rows


def blocks(sizes: Tensor) -> list[slice]:
    """Cuts queries into runs that one call takes: few enough rows and marked rows."""
    totals, most = sizes.cumsum(0).tolist(), cpu.query_block()
    cuts, begin, base = [], 0, 0
    for i in range(1, len(totals) + 1):
        if i == len(totals) or i - begin == most or totals[i] - base > MAX_ENTRIES:
            cuts.append(slice(begin, i))
            begin, base = i, totals[i - 1]
    return cuts


def rank_counts(
    queries: Tensor,  # [*, D], unit column stride
    gallery: Tensor,  # [G, D], unit column stride
    query_rows: Tensor,  # [N] int64, at most RANK_BLOCK
    marked: Marked,
    *,
    in_order: bool = False,
) -> RankCounts:
    """Native, CPU; the caller has checked everything. ``in_order`` gives that field as well."""
    offsets = torch.zeros(len(query_rows) + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(marked.sizes(), 0, out=offsets[1:])
    found = cpu.rank_counts(queries, gallery, query_rows, *marked, offsets, in_order)
    return RankCounts(offsets, *found)


def fits_at_once(sizes: Tensor) -> bool:
    """Whether `rank_counts_symmetric` takes queries with this many marked rows."""
    return int(sizes.sum()) + QUERY_ENTRIES * len(sizes) <= MAX_ENTRIES


def rank_counts_symmetric(
    gallery: Tensor,  # [G, D], unit column stride
    rows: Tensor,  # [G] int64, every row once, the N queries first
    marked: Marked,  # of the queries, each with at least one row; `fits_at_once`
) -> RankCounts:
    """The bits of `rank_counts` for queries that are gallery rows, at half of the product."""
    offsets = torch.zeros(len(marked.begin) + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(marked.sizes(), 0, out=offsets[1:])
    found = cpu.rank_counts(gallery, gallery, rows, *marked, offsets, symmetric=True)
    return RankCounts(offsets, *found)
