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
    """``exp(−β(1 − Q Kᵀ)) · (w ∘ onehot(y))``: the whole [N, S] matrix, then one product."""
    affinity = (beta * (queries @ keys.T - 1)).exp()
    values = torch.nn.functional.one_hot(labels, num_classes).to(affinity.dtype)
    if weights is not None:
        values = values * weights.unsqueeze(-1)
    return affinity @ values
