"""The oracle of project_normalize: one product, one norm."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_rows(
    n: Tensor,  # [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """``scale·n/‖n‖``, zero rows staying zero; ``scale·n`` without ``normalize``.

    Args:
        n: [.., M] of any float dtype; float64 for an oracle.
        scale: length of the rows that come out.
        normalize: False leaves the norm out.

    Returns:
        [.., M] in the dtype of `n`.

    Raises:
        RuntimeError: what PyTorch refuses; nothing is checked here.
    """
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
    """``scale·norm(x·matrix + bias)``.

    Args:
        x: [.., K] of any float dtype; float64 for an oracle.
        matrix: [K, M] in the dtype of `x`.
        bias: [M] or [.., M], or None.
        scale: length of the rows that come out.
        normalize: False leaves the norm out.

    Returns:
        [.., M] in the dtype of `x`.

    Raises:
        RuntimeError: shapes or dtypes that PyTorch refuses; nothing is checked here.
    """
    n = x @ matrix
    if bias is not None:
        n = n + bias
    return scale_rows(n, scale, normalize)
