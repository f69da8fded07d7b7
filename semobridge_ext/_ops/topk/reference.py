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
    """Scores descending, equal scores by lower index; a NaN score ranks with −inf.

    Args:
        queries: [N, D] floating point.
        gallery: [G, D] of the same dtype.
        k: how many rows per query, at most G, or G − 1 with ``exclude``.
        exclude: [N] int64, a gallery row that each query leaves out; −1 leaves out none.

    Returns:
        Scores [N, k] of the same dtype and rows [N, k] int64.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: scores in the dtype of the input. Differentiable in queries and gallery.

    Memory: O(N·G).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> gallery = torch.tensor([[1.0], [3.0], [3.0]])
        >>> sb.reference.topk(torch.ones(1, 1), gallery, 2)
        (tensor([[3., 3.]]), tensor([[1, 2]]))
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
