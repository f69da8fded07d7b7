"""project_normalize on a CUDA device: a product by cuBLAS and its epilogue; and, prepared, one launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import compute_dtype
from semobridge_ext.runtime.views import place, row_view, view

FEW = 32  # rows: up to here M is read by warps; beyond, a tiled product is due
TILED = 16384  # rows of one tiled launch, 32 MiB of raw sums at 512 columns: they stay in an L2 of 40


class Projection:
    """``scale·norm(x·matrix + bias)`` in one launch: by warps for a few rows, on tensor cores for more.

    Args:
        matrix: [K, M] on any device; kept in float32 on `device`. bias: [M] or None, likewise.
        device: of the rows.
        normalize: False skips the norm.
        scale: length of the rows that come out, or a plain factor.

    Numerics: float32 sums. The matrix keeps 16 (bfloat16 rows) or 22 bits on tensor cores, below the rounding
        of the result (csrc/project_normalize/cuda_project_tile.h); many float32 rows are left to
        `torch.mm`, which follows torch's own setting of TF32. The result is in the dtype of the rows.

    Memory: two copies of the matrix; 4 bytes per output value while a call runs.
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
        self._matrix = matrix.detach().to(device, torch.float32).contiguous()
        self._bias = None if bias is None else bias.detach().to(device, torch.float32).contiguous()
        self._finish = row_view(self._bias), normalize, scale  # what follows the product
        self._transposed = self._matrix.T.contiguous()
        # float16 parts hold 2⁻²⁴ to 65504: the largest entry is brought to about 2⁸.
        largest = float(self._matrix.abs().amax()) if self._matrix.numel() else 0.0
        usable = 0.0 < largest < float("inf")
        self._half_scale = 2.0 ** (8 - math.frexp(largest)[1]) if usable else 1.0
        self._tickets: dict[tuple[str, int], Tensor] = {}  # by stream: its launches follow each other

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        n, cols = rows.shape[0], self._matrix.shape[1]
        out = rows.new_empty(n, cols)
        if 0 < n <= FEW:
            self._few(rows, out)
        elif n > TILED and rows.dtype is torch.float32:
            with torch.autocast(rows.device.type, enabled=False):  # the kernel reads float32
                product = rows @ self._matrix
            _C.normalize_rows_cuda(view(product), *self._finish, view(out), 0, *place(rows))
        else:
            for first in range(0, n, TILED):
                self._tiled(rows[first : first + TILED], out[first : first + TILED])
        return out.reshape(*x.shape[:-1], cols)

    def _few(self, rows: Tensor, out: Tensor) -> None:
        raw = torch.empty_like(out, dtype=torch.float32)
        device, stream = place(rows)
        tickets = self._ticket("few", _C.project_normalize_cuda_tickets(FEW), rows, stream)
        _C.project_normalize_cuda(
            view(rows), view(self._transposed), *self._finish, view(out), 0, raw.data_ptr(),
            tickets.data_ptr(), device, stream,
        )  # fmt: skip

    def _tiled(self, rows: Tensor, out: Tensor) -> None:
        raw = torch.empty_like(out, dtype=torch.float32)
        device, stream = place(rows)
        by = self._half_scale if rows.dtype is torch.float16 else 1.0
        tickets = self._ticket("tiled", _C.project_tile_cuda_tickets(TILED), rows, stream)
        _C.project_tile_cuda(
            view(rows), view(self._matrix), by, *self._finish, view(out), 0, raw.data_ptr(),
            tickets.data_ptr(), device, stream,
        )  # fmt: skip

    def _ticket(self, kind: str, count: int, rows: Tensor, stream: int) -> Tensor:
        """Counters that are zero between launches."""
        if rows.is_cuda and torch.cuda.is_current_stream_capturing():
            # A graph's own, zeroed by the graph itself: another one may be replayed first, or beside it.
            return torch.zeros(count, dtype=torch.int32, device=rows.device)
        kept = self._tickets.get((kind, stream))
        if kept is None:
            kept = self._tickets[kind, stream] = torch.zeros(count, dtype=torch.int32, device=rows.device)
        return kept


def normalize_rows(
    x: Tensor,  # [N, K], whose dtype the result has
    n: Tensor,  # [N, M] the product
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
    norms: Tensor,  # [N], written
) -> Tensor:  # [N, M]
    """The epilogue kernel behind cuBLAS's product, on the current stream."""
    y = torch.empty_like(n, dtype=x.dtype)
    if bias is not None:
        bias = bias.contiguous()
    _C.normalize_rows_cuda(view(n), row_view(bias), normalize, scale, view(y), norms.data_ptr(), *place(n))
    return y


def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M] compute dtype
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N] compute dtype, zeros without `normalize`
    """One call: the product by cuBLAS, then its epilogue."""
    compute = compute_dtype(x.dtype)
    norms = (torch.empty if normalize else torch.zeros)(x.shape[0], dtype=compute, device=x.device)
    with torch.autocast(x.device.type, enabled=False):  # the kernel reads the product as it is declared
        product = x.to(compute) @ matrix.to(compute)
    return normalize_rows(x, product, bias, scale, normalize, norms), norms
