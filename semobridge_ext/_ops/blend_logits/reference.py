"""The oracle of SeMoBridge's blend of text and image similarities (arXiv 2509.26036, docs/methods.md §1).

F̄_c = norm(mean_k F_ck)        F̂_c = norm(mean_k bridged(F_ck)), bridged with normalize=False
z1 = norm(f)·tᵀ                 z2 = norm(f)·F̂ᵀ                z3 = norm(bridged(f))·F̄ᵀ
blend = λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]
w_c = exp(s·D_c)    D_c = log2((1+ε)/(p_cc+ε)), ε = 1e-6    p = softmax(F̄ tᵀ) over classes
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize.reference import scale_rows

_EPS = 1e-6


def prototypes(
    features: Tensor,  # [S, D], not normalised
    labels: Tensor,  # [S] int64 in 0..C-1
    num_classes: int,
) -> Tensor:  # [C, D]
    """``norm(mean of a class's rows)``: raw features give F̄, bridged ones F̂; no row, zero row."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return scale_rows(sums / counts.unsqueeze(1).to(sums.dtype))


def class_weights(
    raw_prototypes: Tensor,  # [C, D], unit rows F̄
    text_features: Tensor,  # [C, D], unit rows t
    s: float = 0.0,
) -> Tensor:  # [C]
    """``w_c``: with s > 0, classes whose own text matches their prototype poorly count more."""
    p = torch.softmax(raw_prototypes @ text_features.T, dim=1).diagonal()
    return torch.exp(s * torch.log2((1 + _EPS) / (p + _EPS)))


def blend_logits(
    z1: Tensor,  # [N, C], query against text
    z2: Tensor,  # [N, C], query against bridged prototypes
    z3: Tensor,  # [N, C], bridged query against raw prototypes
    *,
    weights: Tensor | None = None,  # [C], from class_weights; None is s=0
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    lambdas: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:  # [N, C]
    """The blend; the defaults weigh the three terms equally and tune nothing."""
    few_shot = lambdas[1] * torch.exp(-beta * (1 - z2)) + lambdas[2] * torch.exp(-gamma * (1 - z3))
    if weights is not None:
        few_shot = few_shot * weights
    return lambdas[0] * torch.exp(-alpha * (1 - z1)) + few_shot
