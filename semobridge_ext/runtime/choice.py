"""The one place that decides which program runs a call; imports no Triton.

An operator says in its own folder what its kernels take (`Kernels`); the backend asked for, the device, what
was measured there or the rule of its architecture, and the kernel's self-check do the rest.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import rules as _rules
from semobridge_ext.runtime import self_check as _self_check
from semobridge_ext.runtime import thresholds as _thresholds
from semobridge_ext.runtime.backend import DTYPE_CODES, _requested, requested

Answer = bool | str  # True, or in words what has no kernel
Work = tuple[
    str, torch.dtype, int
]  # what rules and measurements go by: the operator, dtype and size of a call


class Kernels(NamedTuple):
    """What the kernels of one operator take, asked with the operator's own arguments.

    Args:
        op: its name, under which rules and measurements choose, and its self-check is registered.
        cuda: whether a CUDA kernel takes the call.
        triton: whether a Triton kernel does.
        size: of the call, by which the choice goes.
    """

    op: str
    cuda: Callable[..., bool]
    triton: Callable[..., Answer]
    size: Callable[..., int]


def choose(kernels: Kernels, *args: Any, called: str | None = None) -> str:
    """The backend for one call of an operator: "native", "triton" or "eager".

    Args:
        kernels: of the operator.
        args: of the call; the first is a tensor, whose dtype and device count.
        called: the public function, for messages; default: the operator's name.
    """
    x = args[0]
    return resolve(
        called or kernels.op, x.device, cuda=kernels.cuda(*args), triton=kernels.triton(*args),
        work=(kernels.op, x.dtype, kernels.size(*args)),
    )  # fmt: skip


def resolve(
    called: str,
    device: torch.device,
    *,
    cuda: bool = False,
    triton: Answer = False,
    work: Work | None = None,
) -> str:
    """The backend for one call; an explicit request that cannot be met is an error.

    Args:
        called: the function, for messages.
        device: of its tensors.
        cuda: a CUDA kernel of the native core takes this call.
        triton: a Triton kernel takes this call; or in words what it does not take.
        work: what `auto` goes by on a GPU; None: it takes no kernel there.
    """
    name = requested()
    if name == "eager":
        return "eager"
    if name == "triton":
        _require_triton(called, device, triton)
        return "triton"
    if _backend._C is None:
        if name == "native":
            raise RuntimeError(
                f"{called}: backend 'native' was not built ({_backend.NATIVE_ERROR}); "
                "reinstall with: pip install --force-reinstall ."
            )
        return "eager"
    if device.type == "cpu":
        return "native"
    if name == "native":
        _require_native(called, device, cuda)
        return "native"
    return _automatic(device, cuda, triton, work)


def _automatic(device: torch.device, cuda: bool, triton: Answer, work: Work | None) -> str:
    """What `auto` takes off the CPU: as measured, else by rule, where it takes this call and is right."""
    if device.type != "cuda" or work is None:
        return "eager"
    op, dtype, size = work
    found = _thresholds.choose(op, device, dtype, size)
    ruled = found is None
    if found is None:
        found = _rules.at(_rules.steps(op, device, dtype), size)
    if found == "eager" or not (cuda and _backend.HAS_CUDA if found == "native" else triton is True):
        return "eager"
    if found == "triton" and not has_triton():
        return "eager"
    # A measured kernel was compared when it was measured.
    return found if not ruled or _self_check.passed(op, found, dtype, device) else "eager"


def _require_native(called: str, device: torch.device, cuda: bool) -> None:
    if device.type == "cuda" and _backend.HAS_CUDA and cuda:
        return
    if device.type == "cuda" and not _backend.HAS_CUDA:
        raise RuntimeError(
            f"{called}: backend 'native' was built without CUDA (no nvcc at installation); "
            "install the CUDA toolkit, then: SEMOBRIDGE_CUDA=on pip install --force-reinstall ."
        )
    what = "CUDA kernel for this call" if device.type == "cuda" else f"kernel for {device.type} tensors"
    raise NotImplementedError(
        f"{called}: backend 'native' has no {what}; use backend('auto') or move the tensors to the CPU"
    )


def has_triton() -> bool:
    """Triton itself, and a PyTorch whose operators can hold its launches."""
    return importlib.util.find_spec("triton") is not None and hasattr(torch.library, "triton_op")


def _require_triton(called: str, device: torch.device, kernel: Answer) -> None:
    if kernel is not True:
        raise NotImplementedError(
            f"{called}: backend 'triton' has no kernel for {kernel or 'this call'}; use backend('auto')"
        )
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(f"{called}: backend 'triton' needs Triton; pip install triton")
    if not hasattr(torch.library, "triton_op"):
        raise RuntimeError(
            f"{called}: backend 'triton' needs PyTorch 2.6, this is {torch.__version__}; "
            "pip install --upgrade torch, or use backend('auto')"
        )
    # Triton decides when it is imported whether its interpreter runs the kernels.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            f"{called}: backend 'triton' needs CUDA tensors, got {device.type}; move them to the GPU or "
            "use backend('auto')"
        )


# -- past the registered operators -------------------------------------------------------------------


def in_transform() -> bool:
    """Inside torch.func: registered operators do not pass through it, the formula does."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


_PLAIN = (Tensor, nn.Parameter)
# By name here: every look-up of an attribute is felt in one image's call.
_is_compiling = torch.compiler.is_compiling
_peek_transform = torch._C._functorch.peek_interpreter_stack
_tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_strided = torch.strided
_is_grad_enabled = torch.is_grad_enabled


def plain(*tensors: Tensor | None) -> bool:
    """Whether all that are given hold their values in memory: no subclass, nothing lazy, nothing freed."""
    for x in tensors:
        if x is not None and not (
            type(x) in _PLAIN
            and x.layout is torch.strided
            and not x.is_neg()
            and (x.data_ptr() != 0 or x.numel() == 0)
        ):
            return False
    return True


def direct(x: Tensor, other: Tensor) -> str:
    """Where a call may go past the registered operator; "" where the operator has to see it.

    It may with plain tensors on one device of which no gradient is wanted, outside of tracing, of modes
    that watch operators and of function transforms: the dispatcher would cost more than one image's
    whole bridge.

    Args:
        x: the rows. other: what they meet, which the caller knows to be `plain`.

    Returns:
        "cpu": straight to the native core. Otherwise the backend asked for, "auto", "native" or "triton",
        under which a kernel may exist (`direct_kernel`).
    """
    if (
        _is_compiling()
        or _peek_transform() is not None
        or _tracing_state() is not None
        or _modes() != 0
        or (type(x) is not Tensor and type(x) is not nn.Parameter)
        or x.layout is not _strided
        or x.dtype not in DTYPE_CODES
        or x.is_neg()
        or (x.data_ptr() == 0 and x.numel() != 0)
        or ((x.requires_grad or other.requires_grad) and _is_grad_enabled())
    ):
        return ""
    name = _requested.get() or requested()
    if x.is_cpu and other.is_cpu:
        if name == "triton":
            return name  # its interpreter takes CPU tensors
        return "cpu" if _backend._C is not None and name != "eager" else ""
    return name if name != "eager" and x.is_cuda and x.device == other.device else ""


def direct_kernel(asked: str, kernels: Kernels, *args: Any, called: str | None = None) -> str:
    """The kernel behind an answer of `direct` other than "cpu"; "" where the operator is due."""
    x = args[0]
    if asked == "auto":
        work = (kernels.op, x.dtype, kernels.size(*args))
        found = _automatic(x.device, kernels.cuda(*args), kernels.triton(*args), work)
        return "" if found == "eager" else found
    if asked == "triton":
        if x.is_cpu or x.is_cuda:
            _require_triton(called or kernels.op, x.device, kernels.triton(*args))
            return asked
        return ""
    return asked if x.is_cuda and _backend.HAS_CUDA and kernels.cuda(*args) else ""


def see_through(op: Any, takes: Callable[..., Answer], implementation: Callable[..., Any]) -> None:
    """Makes torch.compile trace an operator's Triton launches instead of the operator.

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
