"""Exact top-k over a gallery that comes in parts and is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from semobridge_ext._ops.topk.op import topk


def merged(
    scores: Tensor,  # [N, M], lists one behind the other, in order of the rows where scores are equal
    rows: Tensor,  # [N, M] int64
    k: int,
    exclude: Tensor | None = None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, min(k, M)], the same
    """The best of several lists by the order of `topk`: a NaN score ranks with −inf, equal ones stay."""
    ranks = torch.where(torch.isnan(scores), -torch.inf, scores)
    order = torch.argsort(ranks, dim=1, descending=True, stable=True)
    if exclude is not None:  # behind everything, whatever its score
        left_out = rows.gather(1, order) == exclude.unsqueeze(1)
        order = order.gather(1, left_out.to(torch.int8).argsort(dim=1, stable=True))
    order = order[:, :k]
    return scores.gather(1, order), rows.gather(1, order)


def topk_over(
    queries: Tensor,  # [N, D]
    parts: Iterable[Tensor],  # [G_i, D] each
    k: int,
) -> tuple[Tensor, Tensor]:  # scores and row numbers over all parts, [N, min(k, Σ G_i)]
    """The k largest inner products of every query; equal scores stand in order of row."""
    found = ((*topk(queries, part, min(k, len(part))), len(part)) for part in parts)
    return joined(len(queries), found, k)


def joined(
    queries: int,
    lists: Iterable[tuple[Tensor, Tensor, int]],  # scores and rows of a part, [N, k_i]; its size
    k: int,
) -> tuple[Tensor, Tensor]:  # as `topk_over`
    """The lists of parts, in their order, as one."""
    base = 0
    scores, rows = torch.empty(queries, 0), torch.empty(queries, 0, dtype=torch.int64)
    for part_scores, part_rows, size in lists:
        scores = torch.cat([scores, part_scores.float()], dim=1)
        rows = torch.cat([rows, part_rows + base], dim=1)
        scores, rows = merged(scores, rows, k)
        base += size
    return scores, rows
