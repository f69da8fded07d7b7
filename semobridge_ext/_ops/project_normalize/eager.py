"""project_normalize by PyTorch alone, for backend("eager") and for devices without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.rows import compute_dtype


def transformed(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    """``scale·norm(x·matrix + bias)`` and the norms, open to autograd and function transforms."""
    compute = compute_dtype(x.dtype)
    n = x.to(compute) @ matrix.to(compute)
    if bias is not None:
        n = n + bias.to(compute)
    norms = torch.linalg.vector_norm(n, dim=-1)
    if normalize:
        divisor = norms.unsqueeze(-1)
        n = torch.where(divisor == 0, torch.zeros_like(n), n / divisor)
    return (n * scale).to(x.dtype), norms


def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N], zeros without `normalize`
    """The operator's two outputs, in the dtypes of its schema whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        y, norms = transformed(x, matrix, bias, scale, normalize)
    return y, norms if normalize else torch.zeros_like(norms)
