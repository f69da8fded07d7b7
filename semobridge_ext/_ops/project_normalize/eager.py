"""project_normalize by PyTorch alone, for backend("eager") and for devices without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.half_products import Parts
from semobridge_ext.runtime.rows import compute_dtype


def _finished(
    n: Tensor,  # [N, M] the product
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    if bias is not None:
        n = n + bias.to(n.dtype)
    norms = torch.linalg.vector_norm(n, dim=-1)
    if normalize:
        divisor = norms.unsqueeze(-1)
        n = torch.where(divisor == 0, torch.zeros_like(n), n / divisor)
    return (n * scale).to(dtype), norms


def transformed(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    """``scale·norm(x·matrix + bias)`` and the norms, open to autograd and function transforms."""
    compute = compute_dtype(x.dtype)
    return _finished(x.to(compute) @ matrix.to(compute), bias, scale, normalize, x.dtype)


def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N], zeros without `normalize`
    """The operator's two outputs, in the dtypes of its schema whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        y, norms = _finished(half_products.product(x, matrix), bias, scale, normalize, x.dtype)
    return y, norms if normalize else torch.zeros_like(norms)


class Projection:
    """``scale·norm(x·matrix + bias)`` of rows on a GPU, with its operands made once.

    Args:
        matrix: [K, M] on any device. bias: [M] or None, likewise.
        device: of the rows.
        normalize: False skips the norm.
        scale: length of the rows that come out, or a plain factor.

    Numerics: float32 sums, float64 of float64 rows; rows of a half type meet the matrix in two parts
        (runtime/half_products.py).

    Memory: a copy of the matrix for each dtype of rows; a few arrays of the result's shape.
    """

    def __init__(
        self,
        matrix: Tensor,  # [K, M]
        bias: Tensor | None,  # [M]
        device: torch.device,
        *,
        normalize: bool = True,
        scale: float = 1.0,
    ) -> None:
        self._given, self._device = matrix.detach(), device
        self._bias = None if bias is None else bias.detach().to(device)
        self._scale, self._normalize = scale, normalize
        self._parts: dict[torch.dtype, Parts] = {}
        self._wide: dict[torch.dtype, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        rows = x.detach().reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            y, _ = _finished(self._product(rows), self._bias, self._scale, self._normalize, x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[1])

    def _product(self, rows: Tensor) -> Tensor:  # [N, K] -> [N, M]
        dtype, compute = rows.dtype, compute_dtype(rows.dtype)
        if half_products.served(rows):
            if dtype not in self._parts:
                self._parts[dtype] = half_products.on(half_products.split(self._given, dtype), self._device)
            return half_products.multiply(rows, self._parts[dtype])
        if compute not in self._wide:
            self._wide[compute] = self._given.to(self._device, compute)
        return half_products.product(rows, self._wide[compute])
