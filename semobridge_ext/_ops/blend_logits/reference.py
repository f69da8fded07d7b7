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
    """``norm(mean of a class's rows)``: raw features give F̄, bridged ones F̂; no row, zero row.

    Args:
        features: [S, D] floating point, not normalised.
        labels: [S] int64 in 0..C−1.
        num_classes: C.

    Returns:
        [C, D] unit rows of the same dtype.

    Raises:
        IndexError: a label out of range. RuntimeError: shapes that do not fit each other.

    Numerics: in the dtype of the input. Differentiable in ``features``.

    Memory: O(C·D).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x = torch.tensor([[3.0, 0.0], [3.0, 8.0], [0.0, 2.0]])
        >>> sb.reference.prototypes(x, torch.tensor([0, 0, 1]), 2)
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])

    SeMoBridge, arXiv 2509.26036, §3.3.
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return scale_rows(sums / counts.unsqueeze(1).to(sums.dtype))


def class_weights(
    raw_prototypes: Tensor,  # [C, D], unit rows F̄
    text_features: Tensor,  # [C, D], unit rows t
    s: float = 0.0,
) -> Tensor:  # [C]
    """``w_c``: with s > 0, classes whose own text matches their prototype poorly count more.

    Args:
        raw_prototypes: [C, D] floating point, unit rows F̄.
        text_features: [C, D] of the same dtype, unit rows t.
        s: exponent of the weights; 0 makes them all 1.

    Returns:
        [C] of the same dtype.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: in the dtype of the input. Differentiable in both tensors.

    Memory: O(C²).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.class_weights(torch.eye(2), torch.eye(2), s=0.0)
        tensor([1., 1.])

    SeMoBridge, arXiv 2509.26036, §3.3.
    """
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
    """``λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]``.

    The defaults weigh the three terms equally and tune nothing.

    Args:
        z1: [N, C] floating point, query against text.
        z2: [N, C], query against bridged prototypes.
        z3: [N, C], bridged query against raw prototypes.
        weights: [C] w, from class_weights; None is s = 0.
        alpha: sharpness of z1.
        beta: sharpness of z2.
        gamma: sharpness of z3.
        lambdas: the three weights λ.

    Returns:
        [N, C] of the same dtype.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input. Differentiable in all tensors.

    Memory: a few arrays of [N, C].

    Example:
        >>> import torch, semobridge_ext as sb
        >>> one = torch.ones(1, 2)
        >>> sb.reference.blend_logits(one, one, one, lambdas=(1.0, 0.5, 0.5))
        tensor([[2., 2.]])

    SeMoBridge, arXiv 2509.26036, §3.3.
    """
    few_shot = lambdas[1] * torch.exp(-beta * (1 - z2)) + lambdas[2] * torch.exp(-gamma * (1 - z3))
    if weights is not None:
        few_shot = few_shot * weights
    return lambdas[0] * torch.exp(-alpha * (1 - z1)) + few_shot
