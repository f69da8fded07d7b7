"""A projection and its norm on a CUDA device, prepared once and applied many times."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _backend
from semobridge_ext._backend import _C, DTYPE_CODES
from semobridge_ext.ops.cuda_views import place, row_view, view

FEW = 32  # rows: up to here M is read by warps; beyond, a tiled product is due


def is_direct_cuda(x: Tensor, frozen: Tensor) -> bool:
    """True where a call may go straight to the kernels asked for (see `projection.is_direct`)."""
    asked = _backend.requested()
    if asked == "triton":
        place = x.is_cuda or x.is_cpu  # its interpreter takes CPU tensors
    else:
        place = asked == "native" and x.is_cuda and _backend.HAS_CUDA and x.dtype is not torch.float64
    return (
        place
        and type(x) is Tensor
        and x.dtype in DTYPE_CODES
        and x.layout is torch.strided
        and not torch.compiler.is_compiling()
        and not x.is_neg()
        and not ((x.requires_grad or frozen.requires_grad) and torch.is_grad_enabled())
        and torch._C._functorch.peek_interpreter_stack() is None
        and frozen.device == x.device
    )


class CudaProjection:
    """``norm(x·matrix)``: one launch for a few rows (project_cuda.h), a product and an epilogue for many.

    Args:
        matrix: [K, M] on any device; kept in float32 on `device`.
        device: of the rows.

    Numerics: float32 sums; the result is in the dtype of the rows.

    Memory: two copies of the matrix; 4 bytes per output value while a call runs.
    """

    def __init__(self, matrix: Tensor, device: torch.device) -> None:
        self._matrix = matrix.detach().to(device, torch.float32).contiguous()
        self._transposed = self._matrix.T.contiguous()
        self._tickets: dict[int, Tensor] = {}  # by stream: launches of one stream follow each other

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        n, cols = rows.shape[0], self._matrix.shape[1]
        out = rows.new_empty(n, cols)
        if n > FEW:
            product = rows.to(torch.float32) @ self._matrix
            _C.normalize_rows_cuda(view(product), row_view(None), True, 1.0, view(out), 0, *place(rows))
        elif n > 0:
            raw = rows.new_empty(n, cols, dtype=torch.float32)
            device, stream = place(rows)
            if stream not in self._tickets:
                count = _C.project_tickets(FEW)
                self._tickets[stream] = torch.zeros(count, dtype=torch.int32, device=rows.device)
            _C.project_cuda(
                view(rows), view(self._transposed), row_view(None), True, 1.0, view(out), 0, raw.data_ptr(),
                self._tickets[stream].data_ptr(), device, stream,
            )  # fmt: skip
        return out.reshape(*x.shape[:-1], cols)
