"""What the Triton kernels take, and how torch.compile sees them; imports no Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import DTYPE_CODES, is_native, requested
from semobridge_ext.runtime.triton_operands import MAX_COLUMNS, MAX_LIST

Answer = bool | str  # True, or in words what has no kernel


def _dtypes(*tensors: Tensor) -> Answer:
    return "float64" if torch.float64 in [t.dtype for t in tensors] else True


def takes_projection(x: Tensor, matrix: Tensor) -> Answer:
    # float16 rows meet a float32 matrix in float32 parts (_ops/project_normalize/triton.py).
    single = x.dtype is torch.float32 or (x.dtype is torch.float16 and matrix.dtype is not torch.float16)
    most = MAX_COLUMNS[4 if single else 2]
    if matrix.shape[1] > most:
        return f"more than {most} columns of {'float32' if single else 'a half type'}"
    return _dtypes(x)


def takes_support(queries: Tensor, keys: Tensor) -> Answer:
    return _dtypes(queries, keys)


def takes_topk(queries: Tensor, gallery: Tensor, k: int) -> Answer:
    if k > MAX_LIST:
        return f"k > {MAX_LIST}"
    if gallery.shape[0] > (1 << 31) - 256:  # the last tile's rows are counted in 32 bits
        return "a gallery of 2³¹ rows"
    return _dtypes(queries, gallery)


def see_through(op: Any, takes: Callable[..., Answer], implementation: Callable[..., Any]) -> None:
    """Makes a registered operator dissolve into Triton launches while torch.compile traces it.

    That happens under ``backend("triton")`` and where ``takes(*args)``; the backend asked for while it
    traces is then fixed in the compiled code. Otherwise the operator stays whole and chooses when it runs.
    """
    if not hasattr(op, "register_torch_dispatch"):  # PyTorch 2.4
        return
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def decompose(mode: Any, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if requested() != "triton" or not args[0].is_cuda or takes(*args) is not True:
            return mode.__torch_dispatch__(function, types, args, kwargs)
        with mode:
            return implementation(*args, **(kwargs or {}))

    op.register_torch_dispatch(FunctionalTensorMode, decompose)


def in_transform() -> bool:
    """Inside torch.func: registered operators do not pass through it, the formula does."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def is_direct(x: Tensor, frozen: Tensor) -> bool:
    """True where a call may go straight to the native core, past the registered operator.

    That is a plain CPU tensor with no gradient wanted of it or of `frozen`, outside of tracing and of
    function transforms. The dispatcher would cost more than one image's whole bridge.
    """
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype in DTYPE_CODES
        and x.layout is torch.strided
        and not torch.compiler.is_compiling()
        and not x.is_neg()
        and not ((x.requires_grad or frozen.requires_grad) and torch.is_grad_enabled())
        and torch._C._functorch.peek_interpreter_stack() is None
        and frozen.is_cpu
        and is_native()
    )
