"""The reading of mAP@R in the programs of Cross-the-Gap and IsoCLIP, for comparisons with their tables.

Where query and gallery set are one they count R before the query is removed, and so look at R + 1 places of
the ranking without it; the sum is still divided by the R items that are left. A query that has none counts
as 0. The place behind the R-th adds, by the rule for ties of metrics.py, for the tie of t items with m
relevant ones below g others of which a are relevant that holds it

    (1/R)·(m/t)·(a + 1 + (R − g)(m − 1)/(t − 1))/(R + 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.rank_counts.op import Marked, RankCounts, blocks, rank_counts
from semobridge_ext.runtime.rows import compute_dtype, unit_columns


def next_place(counts: RankCounts) -> Tensor:  # [N] float64
    """What place R + 1 adds to R·AP@R of each query."""
    sizes = counts.offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    place = sizes[owner]  # from 0
    inside = (counts.greater <= place) & (place < counts.greater + counts.equal)  # of the tie that holds it
    among = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, owner, inside.double())
    above = (counts.greater + counts.equal <= place).double()
    above = torch.zeros_like(among).index_add_(0, owner, above)
    # Every relevant row of that tie knows it; queries without one get nothing.
    first, tied = torch.zeros(2, len(sizes), dtype=torch.float64)
    first[owner[inside]] = counts.greater[inside].double()
    tied[owner[inside]] = counts.equal[inside].double()
    added = _added(sizes.double(), first, tied, above, among)
    return torch.where(among > 0, added, 0.0)


def _added(relevant: Tensor, first: Tensor, tied: Tensor, above: Tensor, among: Tensor) -> Tensor:
    earlier = (relevant - first) * (among - 1) / (tied - 1).clamp(min=1)
    return among / tied.clamp(min=1) * (above + 1 + earlier) / (relevant + 1)


def _native(query: Tensor, gallery: Tensor, marked: Marked) -> Tensor:
    query, gallery = unit_columns(query), unit_columns(gallery)
    out = torch.empty(len(query), dtype=torch.float64, device="cpu")
    for part in blocks(marked.sizes()):
        exclude = None if marked.exclude is None else marked.exclude[part]
        mine = Marked(marked.rows, marked.begin[part], marked.end[part], exclude)
        out[part] = next_place(rank_counts(query, gallery, torch.arange(len(query))[part], mine))
    return out


def _eager(query: Tensor, gallery: Tensor, marked: Marked) -> Tensor:
    wide = compute_dtype(query.dtype, gallery.dtype)
    query, gallery = query.to(wide), gallery.to(wide)
    out = torch.zeros(len(query), dtype=torch.float64)
    assert marked.exclude is not None
    for i, row in enumerate(query):
        others = torch.arange(len(gallery)) != marked.exclude[i]
        relevant = torch.zeros(len(gallery), dtype=torch.bool)
        relevant[marked.rows[int(marked.begin[i]) : int(marked.end[i])]] = True
        scores, relevant = torch.mv(gallery, row).cpu()[others], relevant[others]
        count = int(relevant.sum())
        if count == 0 or count >= len(scores):
            continue
        at = scores.sort(descending=True).values[count]
        above, among = scores > at, scores == at
        found = (torch.tensor(float(count)), above.sum(), among.sum(), above & relevant, among & relevant)
        out[i] = _added(*(v.sum().double() for v in found))
    return out


def published_values(
    values: Tensor,  # [N, 3 + number of Recall@k] float64: AP, AP@R, R-precision, Recall@k..
    query: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    marked: Marked,  # the relevant rows of each query, and its own
    *,
    native: bool,
) -> Tensor:
    """The same table as the published programs read it, of a set that is searched in itself."""
    added = (_native if native else _eager)(query, gallery, marked)
    values[:, 1] += added / marked.sizes().clamp(min=1)
    return values
