"""The oracle of support_logits: Tip-Adapter's cache term as its paper writes it (docs/methods.md §6)."""

from __future__ import annotations

import torch
from torch import Tensor


def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    num_classes: int,
    *,
    beta: float = 1.0,
    weights: Tensor | None = None,  # [S]
) -> Tensor:  # [N, C]
    """``exp(−β(1 − Q Kᵀ)) · (w ∘ onehot(y))``: the whole [N, S] matrix, then one product.

    Args:
        queries: [N, D] floating point, unit rows (not checked).
        keys: [S, D] of the same dtype, unit rows (not checked).
        labels: [S] int64 in 0..C−1.
        num_classes: C.
        beta: sharpness β.
        weights: [S] w; None is 1.

    Returns:
        [N, C] of the same dtype.

    Raises:
        RuntimeError: labels out of range, or shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input. Differentiable in queries, keys and weights.

    Memory: O(N·S).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.support_logits(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 2, beta=0.0)
        tensor([[1., 1.],
                [1., 1.]])

    Tip-Adapter, arXiv 2111.03930, eq. 3-5; docs/methods.md §6.
    """
    affinity = (beta * (queries @ keys.T - 1)).exp()
    values = torch.nn.functional.one_hot(labels, num_classes).to(affinity.dtype)
    if weights is not None:
        values = values * weights.unsqueeze(-1)
    return affinity @ values
