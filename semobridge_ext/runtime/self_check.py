"""A kernel that a rule takes is compared with plain PyTorch at its first use in a process.

Kernel means operator, backend, dtype and device. The check runs the operator's own small fixed call, under a
millisecond of the device's time, and waits for it once. A kernel that fails serves no call of the process;
plain PyTorch does, and one warning says so.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from semobridge_ext.runtime import backend as _backend

# Of the largest value of plain PyTorch's result. Both round their sums in another order, and half types their
# results; a wrong kernel is wrong by far more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}

# (device, dtype) -> results, by the backend asked for. A loop's reads `requested()`.
Check = Callable[[torch.device, torch.dtype], Sequence[Tensor]]
Kernel = tuple[str, str, torch.dtype, torch.device]  # operator, backend, dtype, device

_checks: dict[str, Check] = {}
_found: dict[Kernel, str] = {}  # "" where it passed, else in words what was wrong
_lock = threading.RLock()
running: ContextVar[bool] = ContextVar("semobridge_self_check", default=False)  # no tile is tuned meanwhile


def register(op: str, check: Check) -> None:
    """The fixed call of an operator; who offers kernels under a rule's name registers it."""
    _checks[op] = check


def passed(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel agrees with plain PyTorch, found out at the first question.

    While a CUDA graph is captured nothing can be compared: a kernel that was not checked before is then
    not taken, and the question stays open.
    """
    kernel = op, backend, dtype, device
    why = _found.get(kernel)
    if why is None:
        if torch.cuda.is_current_stream_capturing():
            return False
        with _lock:
            why = _found.get(kernel)
            if why is None:
                why = _found[kernel] = _compare(kernel)
                if why:
                    _warn(kernel, why)
    return not why


def failure(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """In words what a check found wrong; "" where it passed or has not run."""
    return _found.get((op, backend, dtype, device), "")


def _compare(kernel: Kernel) -> str:
    op, backend, dtype, device = kernel
    if op not in _checks:
        return "it has no check"
    results = []
    try:
        with _apart(device):
            for name in (backend, "eager"):
                with _backend.backend(name):
                    results.append([x.float() for x in _checks[op](device, dtype)])
            errors = [
                float((got - want).abs().max() / want.abs().max()) for got, want in zip(*results, strict=True)
            ]
    except Exception as error:  # whatever it is, plain PyTorch may still serve
        return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    worst = max(errors, key=lambda e: (e != e, e))  # NaN is the worst
    if worst <= TOLERANCE[dtype]:
        return ""
    return f"differs from plain PyTorch by {worst:.1e} of the largest value, more than {TOLERANCE[dtype]:.0e}"


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Without what the caller's surroundings would change: gradients, autocast, modes, a ban on waiting."""
    token = running.set(True)
    ban = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if ban:
        torch.cuda.set_sync_debug_mode(0)
    try:
        with (
            _disable_current_modes(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        running.reset(token)
        if ban:
            torch.cuda.set_sync_debug_mode(ban)


def _warn(kernel: Kernel, why: str) -> None:
    op, backend, dtype, device = kernel
    warnings.warn(
        f"{op}: the {backend} kernel failed its check on {device} in {str(dtype).removeprefix('torch.')}: it "
        f"{why.removeprefix('it ')}; plain PyTorch serves such calls in this process. Please report it with "
        "the output of: semobridge-ext info",
        RuntimeWarning,
        stacklevel=2,
    )


# -- inputs of the fixed calls -----------------------------------------------------------------------


def fixed(
    *shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:  # [*shape]
    """Eighths in [−2, 2]: the same values in every dtype, with products that TF32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-16, 17, shape, generator=generator, device="cpu") / 8).to(device, dtype)
