"""topk by PyTorch alone: every score of a block of queries, then their order."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.rows import compute_dtype

_BLOCK_SCORES = 1 << 24  # of one [block, G] array


def ranked(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D], the dtype of the queries
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k] int64
    """All queries at once; open to autograd and function transforms."""
    return _best(queries @ gallery.T, k, exclude)


def _best(
    scores: Tensor,  # [N, G]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k] int64
    ranks = torch.where(torch.isnan(scores), -torch.inf, scores)
    order = torch.argsort(ranks, dim=1, descending=True, stable=True)
    if exclude is not None:
        # From the excluded row's place on, every place belongs to the next row of the order.
        passed = (order[:, :k] == exclude.unsqueeze(1)).cumsum(1)
        order = order.gather(1, torch.arange(k, device=order.device) + passed)
    indices = order[:, :k]
    return scores.gather(1, indices), indices


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32 (float64 where an operand is), [N, k] int64
    """Block by block of queries; what a GPU cannot multiply as it is gets a copy in the scores' dtype."""
    compute = compute_dtype(queries.dtype, gallery.dtype)
    step = max(1, _BLOCK_SCORES // max(gallery.shape[0], 1))
    if not (half_products.served(queries) and queries.dtype is gallery.dtype):
        queries, gallery = queries.to(compute), gallery.to(compute)
    found = []
    for i in range(0, max(queries.shape[0], 1), step):
        left = None if exclude is None else exclude[i : i + step]
        found.append(_best(half_products.product(queries[i : i + step], gallery.T), k, left))
    scores, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, indices
