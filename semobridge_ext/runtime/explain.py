"""What `auto` takes for each operator and loop on this machine, and why, in words."""

from __future__ import annotations

import torch

from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import rules as _rules
from semobridge_ext.runtime import self_check as _self_check
from semobridge_ext.runtime import thresholds as _thresholds
from semobridge_ext.runtime.choice import has_triton

OPS = tuple(sorted({op for rule in _rules.RULES.values() for op in rule}))
_DTYPES = (*_rules.SINGLE, *_rules.HALF)


def choices() -> dict[str, str]:
    """By operator or loop with kernels for GPUs: the backend on the current device, and where it is from."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    return {op: _choice(op, device) for op in OPS}


def _choice(op: str, device: torch.device | None) -> str:
    if _backend._C is None:
        return "PyTorch (the native core is missing)"
    if _backend.requested() != "auto":
        return f"{_backend.requested()} (asked for)"
    if device is None:
        return "native (CPU; no usable GPU)"
    told: dict[str, list[str]] = {}
    for dtype in _DTYPES:
        told.setdefault(_of_dtype(op, device, dtype), []).append(str(dtype).removeprefix("torch."))
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{', '.join(dtypes)}: {words}" for words, dtypes in told.items())


def _of_dtype(op: str, device: torch.device, dtype: torch.dtype) -> str:
    try:
        steps = _thresholds.steps(op, device, dtype)
    except ValueError:
        return "an error: the file of the measured choices is refused"
    why = "calibrated"
    if steps is None:
        steps, why = _rules.steps(op, device, dtype), _rules.reason(op, device, dtype)
    parts: list[str] = []
    for least, backend in steps:
        lacking = _lacking(op, backend, dtype, device)
        words = "PyTorch" if lacking or backend == "eager" else backend
        if least > 1:
            words += f" from {least}"
        parts.append(words + (f" ({lacking})" if lacking else ""))
    return f"{', '.join(parts)} ({why})"


def _lacking(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """Why a backend that was chosen does not run; "" where it does."""
    if backend == "native" and not _backend.HAS_CUDA:
        return "native was not built with CUDA"
    if backend == "triton" and not has_triton():
        return "Triton is not installed, or PyTorch is older than 2.6"
    failed = _self_check.failure(op, backend, dtype, device)
    return f"{backend} failed its self-check: {failed}" if failed else ""
