"""Matrix products into ready outputs on the CPU: by the core or by PyTorch, whichever is the faster one.

PyTorch's library makes no use of AVX-512 on every processor that has it; the core's product does. So large
products run there where the AVX-512 kernels do, and everything else by ``torch.mm``.
"""

from __future__ import annotations

from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import View, view

_LEAST = 1 << 18  # multiply-adds: below, the call is most of the time


def by_core(a: Tensor, b: Tensor) -> bool:
    """Whether the core multiplies these CPU matrices of one compute dtype, float32 or float64."""
    return (
        _C is not None
        and a.shape[0] * a.shape[1] * b.shape[1] >= _LEAST
        and _C.active_isa().startswith("avx512")
    )


def _operand(matrix: Tensor) -> tuple[View, bool]:
    """As the core takes it: its rows, or its columns as rows."""
    if matrix.stride(1) == 1 or matrix.shape[1] == 1:
        return view(matrix), False
    if matrix.stride(0) != 1 and matrix.shape[0] != 1:
        raise ValueError("matrix_product: an operand must have unit stride in its rows or in its columns")
    return view(matrix.T), True


def product_by_core(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """out [N, M] = or += a [N, K] · b [K, M], whose rows or whose columns lie together."""
    _C.matrix_product(*_operand(a), *_operand(b), view(out), accumulate, thread_count())
