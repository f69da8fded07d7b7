"""SeMoBridge's blend by PyTorch alone: prototypes, class exponents, cosines and logits.

F̄_c = norm(mean_k F_ck)          D_c = log2((1+ε)/(p_cc+ε)), ε = 1e-6, p = softmax(F̄ tᵀ) over classes
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext.runtime.rows import compute_dtype, unit_rows


def prototypes(
    features: Tensor,  # [S, D], not normalised
    labels: Tensor,  # [S] int64 in 0..C-1
    num_classes: int,
) -> Tensor:  # [C, D]
    """``norm(mean of a class's rows)``; a class without rows has a zero row."""
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    sums.index_add_(0, labels, features)
    shots = torch.bincount(labels, minlength=num_classes).clamp(min=1).to(sums.dtype)
    return unit_rows(sums / shots.unsqueeze(1))


def class_exponents(raw: Tensor, text: Tensor) -> Tensor:  # [C, D], [C, D] float64 -> [C]
    """``D_c``: large where a class's own text matches its prototype poorly."""
    p = torch.softmax(raw @ text.T, dim=1).diagonal()
    return torch.log2((1 + 1e-6) / (p + 1e-6))


def similarities(
    x: Tensor,  # [N, D]
    text: Tensor,  # [C, D] unit rows
    bridged: Tensor,  # [C, D] unit rows
    raw: Tensor,  # [C, D] unit rows
    projector: Tensor | None,  # [D, D]
) -> Similarities:
    """One product for each block, in the dtype of the sums whatever autocast says."""
    compute = compute_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(compute)
        t, f, r = (rows.to(x.device, compute) for rows in (text, bridged, raw))
        unit = unit_rows(x)
        query = unit if projector is None else unit_rows(x @ projector.to(x.device, compute))
        return Similarities(unit @ t.T, unit @ f.T, query @ r.T)


def similarities_of(
    z: Tensor,  # [N, 3·C + r] rows times all right operands side by side; r = 0: queries are not bridged
    x: Tensor,  # [N, D] the rows
    classes: int,
) -> Similarities:
    """The same from one product of the rows as they are: their lengths are divided out behind it."""

    def inverse(rows: Tensor) -> Tensor:  # [N, ..] -> [N, 1]
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=z.dtype)
        return torch.where(norms == 0, torch.zeros_like(norms), 1 / norms)

    text, bridged, raw, factor = z.split([classes] * 3 + [z.shape[1] - 3 * classes], dim=1)
    unit = inverse(x)
    return Similarities(text * unit, bridged * unit, raw * (inverse(factor) if factor.shape[1] else unit))


def class_weights(
    s: float,
    exponents: Tensor,  # [C] float64
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:  # [C]
    """``exp(s·D_c)``; None where all are 1."""
    return None if s == 0 else torch.exp(s * exponents).to(device, dtype)


def blend_logits(
    z: Similarities,
    params: BlendParams,
    exponents: Tensor | None = None,  # [C], for s ≠ 0
    weights: Tensor | None = None,  # [C], what becomes of them: class_weights
) -> Tensor:  # [N, C]
    """``λ1·exp(−α(1−z1)) + w·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]``, in the dtype of the cosines."""
    p = params
    few_shot = p.lambda2 * torch.exp(-p.beta * (1 - z.bridged_support))
    few_shot = few_shot + p.lambda3 * torch.exp(-p.gamma * (1 - z.bridged_query))
    if weights is None and exponents is not None:
        weights = class_weights(p.s, exponents, z.text.device, z.text.dtype)
    if weights is not None:
        few_shot = few_shot * weights
    return p.lambda1 * torch.exp(-p.alpha * (1 - z.text)) + few_shot
