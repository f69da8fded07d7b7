"""retrieval_metrics by PyTorch alone: one sorted ranking per query, ties by their expected value."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.rows import compute_dtype


def metrics_of_ranking(
    scores: Tensor,  # [G] without NaN
    relevant: Tensor,  # [G] bool
    recall_at: tuple[int, ...],
) -> list[float]:
    """AP, AP@R, R-precision, Recall@k.. of one query; NaN where nothing is relevant."""
    count = int(relevant.sum())
    if count == 0:
        return [float("nan")] * (3 + len(recall_at))
    ranked, order = torch.sort(scores, descending=True, stable=True)
    up = -ranked  # ascending: a tie is where a score could be inserted
    first, last = torch.searchsorted(up, up), torch.searchsorted(up, up, right=True)
    hits = torch.nn.functional.pad(relevant[order].cumsum(0), (1, 0))  # relevant ones among the first i
    above, among = hits[first].double(), (hits[last] - hits[first]).double()
    tied = (last - first).double()
    place = torch.arange(len(scores), dtype=torch.float64)  # from 0
    inside = place - first.double()  # places of the tie before this one
    chance = among / tied  # that a relevant item is here
    earlier = inside * (among - 1) / (tied - 1).clamp(min=1)
    precision = chance * (above + 1 + earlier) / (place + 1)
    sums = precision.sum(), precision[:count].sum(), chance[:count].sum()
    left = tied - inside
    # A place misses if it draws none of the tie's relevant items from those left.
    miss = ((left - among) / left).clamp(min=0)
    return [float(s) / count for s in sums] + [1.0 - float(miss[:k].prod()) for k in recall_at]


def retrieval_metrics(
    query: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    query_labels: Tensor,  # [N] int64
    gallery_labels: Tensor,  # [G] int64
    own: Tensor | None,  # [N] int64, the gallery row that a query is
    recall_at: tuple[int, ...],
) -> Tensor:  # [N, 3 + len(recall_at)] float64 on the CPU
    """One query at a time; a NaN score ranks with −inf."""
    wide = compute_dtype(query.dtype, gallery.dtype)
    query, gallery = query.to(wide), gallery.to(wide)
    query_labels, gallery_labels = query_labels.cpu(), gallery_labels.cpu()
    table = torch.empty(len(query), 3 + len(recall_at), dtype=torch.float64)
    for i, row in enumerate(query):
        scores = torch.mv(gallery, row).cpu()
        scores = torch.where(torch.isnan(scores), -torch.inf, scores)
        relevant = gallery_labels == query_labels[i]
        if own is not None:
            others = torch.arange(len(gallery)) != own[i]
            scores, relevant = scores[others], relevant[others]
        table[i] = torch.tensor(metrics_of_ranking(scores, relevant, recall_at), dtype=torch.float64)
    return table
