"""project_normalize on a CUDA device: a product by cuBLAS and its epilogue; few prepared rows: one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.half_products import Parts
from semobridge_ext.runtime.rows import compute_dtype
from semobridge_ext.runtime.views import place, row_view, view

FEW = 32  # rows: up to here M is read by warps; beyond, a tiled product is due
ONE_PART = 4096  # rows of bfloat16 whose copy in float16 costs less than multiplying by a second part
BLOCK = 32 << 20  # bytes of a block's sums, which the next launch finds in an L2 of 40 MB


def block_rows(row_bytes: int) -> int:
    """Rows of a block whose sums take so many bytes each."""
    return max(1024, BLOCK // row_bytes // 128 * 128)


def one_part(rows: Tensor, bias: Tensor | None, normalize: bool) -> bool:
    """Whether rows meet the matrix as float16 rows that a norm brings back to their length."""
    return rows.dtype is torch.bfloat16 and rows.shape[0] >= ONE_PART and normalize and bias is None


class Projection:
    """``scale·norm(x·matrix + bias)``: one launch by warps for a few rows, cuBLAS and an epilogue for more.

    Args:
        matrix: [K, M] on any device. bias: [M] or None, likewise.
        device: of the rows.
        normalize: False skips the norm.
        scale: length of the rows that come out, or a plain factor.

    Numerics: float32 sums. Many rows of a half type meet the matrix in two parts
        (runtime/half_products.py), which keep 16 (bfloat16) or 22 bits, below the rounding of the result.
        `ONE_PART` rows of bfloat16 and more, where they are normalised and have no bias, meet one part of
        float16, which keeps 11 bits of an entry: an eighth of what rounding the result to bfloat16 costs.
        Products of float32 rows are `torch.mm`'s, which follows torch's own setting of TF32. The result is in
        the dtype of the rows.

    Memory: two copies of the matrix, and one for each half type that many rows had or were turned into;
        beside the result 32 MiB while a call runs.
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
        # Made where they are, then copied: a copy from the host is waited for, so that no stream is early.
        wide = self._given.to(torch.float32)
        self._matrix, self._transposed = (m.contiguous().to(device) for m in (wide, wide.T))
        self._bias = None if bias is None else bias.detach().to(torch.float32).contiguous().to(device)
        self._finish = row_view(self._bias), normalize, scale  # what follows the product
        self._normalize = normalize
        self._one: Parts | None = None
        self._parts: dict[torch.dtype, Parts] = {}
        self._tickets: dict[int, Tensor] = {}  # by stream: its launches follow each other

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        n, cols = rows.shape[0], self._matrix.shape[1]
        out = rows.new_empty(n, cols)
        if 0 < n <= FEW:
            self._few(rows, out)
        else:
            step, product = self._blocks(rows)
            for first in range(0, n, step):
                self._many(product, rows[first : first + step], out[first : first + step])
        return out.reshape(*x.shape[:-1], cols)

    def _few(self, rows: Tensor, out: Tensor) -> None:
        raw = torch.empty_like(out, dtype=torch.float32)
        device, stream = place(rows)
        tickets = self._ticket(rows, stream)
        _C.project_normalize_cuda(
            view(rows), view(self._transposed), *self._finish, view(out), 0, raw.data_ptr(),
            tickets.data_ptr(), device, stream,
        )  # fmt: skip

    def _blocks(self, rows: Tensor) -> tuple[int, Callable[[Tensor], Tensor]]:
        """How many rows are taken at once, and what multiplies them."""
        cols, served = self._matrix.shape[1], half_products.served(rows)
        if served and one_part(rows, self._bias, self._normalize):
            return block_rows(4 * cols), self._scaled_product
        return block_rows(4 * cols * (2 if served else 1)), self._product

    def _many(self, product: Callable[[Tensor], Tensor], rows: Tensor, out: Tensor) -> None:
        """A block; its sums are freed here, so that the next block's lie in the same place of L2."""
        sums = product(rows)
        _C.normalize_rows_cuda(view(sums), *self._finish, view(out), 0, *place(rows))

    def _product(self, rows: Tensor) -> Tensor:  # [N, K] -> [N, M] float32, or both parts [N, 2·M]
        if not half_products.served(rows):
            return half_products.product(rows, self._matrix)
        if rows.dtype not in self._parts:
            made = half_products.split(self._given, rows.dtype, beside=True)
            self._parts[rows.dtype] = half_products.on(made, self._device)
        return half_products.multiply(rows, self._parts[rows.dtype])

    def _scaled_product(self, rows: Tensor) -> Tensor:  # [N, K] bfloat16 -> [N, M] float32, of any length
        if self._one is None:
            made = half_products.rounded(self._given, torch.float16)._replace(unscale=None)
            self._one = half_products.on(made, self._device)
        scaled = torch.empty_like(rows, dtype=torch.float16, memory_format=torch.contiguous_format)
        _C.scale_rows_cuda(view(rows), view(scaled), *place(rows))
        return half_products.multiply(scaled, self._one)

    def _ticket(self, rows: Tensor, stream: int) -> Tensor:
        """Counters that are zero between launches."""
        count = _C.project_normalize_cuda_tickets(FEW)
        if rows.is_cuda and torch.cuda.is_current_stream_capturing():
            # A graph's own, zeroed by the graph itself: another one may be replayed first, or beside it.
            return torch.zeros(count, dtype=torch.int32, device=rows.device)
        kept = self._tickets.get(stream)
        if kept is None:
            kept = self._tickets[stream] = torch.zeros(count, dtype=torch.int32, device=rows.device)
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
    return normalize_rows(x, half_products.product(x, matrix), bias, scale, normalize, norms), norms
