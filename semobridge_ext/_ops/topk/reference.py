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
    """Scores descending, equal scores by lower index; a NaN score ranks with −inf."""
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
