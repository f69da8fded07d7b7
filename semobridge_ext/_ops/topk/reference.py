"""The oracle of topk: every score, then one stable sort per query."""

from __future__ import annotations

import torch
from torch import Tensor


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    *,
    exclude: Tensor | None = None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k]
    """The k largest inner products of every query, equal ones by lower index; NaN ranks with −inf.

    Args:
        queries: [N, D] of any float dtype; float64 for an oracle.
        gallery: [G, D] in the dtype of the queries.
        k: how many to return.
        exclude: [N] int64, a gallery row that the query must not return; -1 excludes none.

    Returns:
        Scores [N, k] in the dtype of the queries, descending, and indices [N, k] int64.

    Raises:
        RuntimeError: shapes or dtypes that PyTorch refuses; nothing is checked here.
    """
    scores = queries @ gallery.T
    rank = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = torch.sort(rank, dim=1, descending=True, stable=True).indices
    if exclude is not None:
        keep = order != exclude.unsqueeze(1)
        # A row without an exclusion gives up its last place, which k never reaches.
        keep[:, -1] &= ~keep.all(dim=1)
        order = order[keep].view(len(queries), -1)
    indices = order[:, :k]
    return scores.gather(1, indices), indices
