"""The oracle of project_normalize: one product, one norm."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_rows(
    n: Tensor,  # [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """``scale·n/‖n‖``, zero rows staying zero; ``scale·n`` without ``normalize``."""
    if not normalize:
        return n * scale
    norm = torch.linalg.vector_norm(n, dim=-1, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(n), n / norm) * scale


def project_normalize(
    x: Tensor,  # [.., K]
    matrix: Tensor,  # [K, M]
    *,
    bias: Tensor | None = None,  # [M] or [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """``scale·norm(x·matrix + bias)``."""
    n = x @ matrix
    if bias is not None:
        n = n + bias
    return scale_rows(n, scale, normalize)
