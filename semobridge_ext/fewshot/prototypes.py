"""Class prototypes, the product's own formula (docs/methods.md §1)."""

from __future__ import annotations

import torch
from torch import Tensor


def prototypes(
    features: Tensor,  # [S, D], not normalised
    labels: Tensor,  # [S] int64 in 0..C-1
    num_classes: int,
) -> Tensor:  # [C, D]
    """``norm(mean of a class's rows)``: raw features give F̄, bridged ones F̂; no row, zero row."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    means = sums / counts.unsqueeze(1).to(sums.dtype)
    norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
    return torch.where(norms == 0, torch.zeros_like(means), means / norms)
