"""Exact top-k over a gallery that comes in parts and is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from semobridge_ext._ops.topk.op import topk


def topk_over(
    queries: Tensor,  # [N, D]
    parts: Iterable[Tensor],  # [G_i, D] each
    k: int,
) -> tuple[Tensor, Tensor]:  # scores and row numbers over all parts, [N, min(k, Σ G_i)]
    """The k largest inner products of every query; equal scores stand in order of row."""
    n, base = len(queries), 0
    scores, rows = torch.empty(n, 0), torch.empty(n, 0, dtype=torch.int64)
    for part in parts:
        found = topk(queries, part, min(k, len(part)))
        scores = torch.cat([scores, found.scores.float()], dim=1)
        rows = torch.cat([rows, found.indices + base], dim=1)
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
        scores, rows = scores.gather(1, order), rows.gather(1, order)
        base += len(part)
    return scores, rows
