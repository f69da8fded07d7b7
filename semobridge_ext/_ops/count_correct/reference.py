"""The oracle of count_correct: the blend of docs/methods.md §1, one set of parameters at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def count_correct(
    z1: Tensor,  # [N, C], query against text
    z2: Tensor,  # [N, C], query against bridged prototypes
    z3: Tensor,  # [N, C], bridged query against raw prototypes
    labels: Tensor,  # [N] int64
    exponents: Tensor,  # [C], D_c
    s: float,
    sharpness: tuple[float, float, float],  # α, β, γ
    lambdas: tuple[float, float, float],
) -> int:
    """Rows whose label has the largest logit; the lower class wins a tie."""
    text, support, query = (
        weight * torch.exp(-sharp * (1 - z))
        for weight, sharp, z in zip(lambdas, sharpness, (z1, z2, z3), strict=True)
    )
    logits = text + (support + query) @ torch.diag(torch.exp(s * exponents))
    return int((logits.argmax(dim=1) == labels).sum())
