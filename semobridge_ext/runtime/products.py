"""Matrix products of operands that change: by the core or by PyTorch, whichever is the faster one on a CPU.

PyTorch's library makes no use of AVX-512 on every processor that has it; the core's product does. So large
products of plain CPU matrices run there where the AVX-512 kernels do, and everything else, also what asks for
``backend("eager")``, by ``torch.mm``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C, requested
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import View, view

_LEAST = 1 << 18  # multiply-adds: below, the call is most of the time
_DTYPES = (torch.float32, torch.float64)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, K] · b [K, M], into ``out`` [N, M] where there is one; not for autograd.

    Numerics: by the core an element is a sum in chains of 512 fused multiply-adds, which depends neither on
    the rows and columns beside it nor on the threads.
    """
    if not by_core(a, b) or (out is not None and out.stride(1) != 1):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    out = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    _by_core(a, b, out, accumulate=False)
    return out


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out [N, M] += a [N, K] · b [K, M], as ``product`` makes it."""
    if by_core(a, b) and out.stride(1) == 1:
        _by_core(a, b, out, accumulate=True)
    else:
        out.addmm_(a, b)


def by_core(a: Tensor, b: Tensor) -> bool:
    """Whether the core multiplies them."""
    return (
        _C is not None
        and a.shape[0] * a.shape[1] * b.shape[1] >= _LEAST
        and a.dtype is b.dtype
        and a.dtype in _DTYPES
        and a.is_cpu
        and b.is_cpu
        and _together(a)
        and _together(b)
        and _C.active_isa().startswith("avx512")
        and requested() != "eager"
    )


def _together(matrix: Tensor) -> bool:
    """Whether its rows or its columns lie together, with nothing lazy about them."""
    return 1 in matrix.stride() and not matrix.is_neg() and not matrix.requires_grad


def _operand(matrix: Tensor) -> tuple[View, bool]:
    """As the core takes it: its rows, or its columns as rows."""
    rows = matrix.stride(1) == 1
    return view(matrix if rows else matrix.T), not rows


def _by_core(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> None:
    _C.matrix_product(*_operand(a), *_operand(b), view(out), accumulate, thread_count())
