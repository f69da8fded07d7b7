"""Which implementation runs: `native` (csrc), `triton`, `eager` (reference/), or `auto`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from semobridge_ext.runtime import thresholds as _thresholds

# PyTorch comes first: the native module takes its OpenMP runtime from the process.
NATIVE_ERROR: str | None
try:
    _C: Any = importlib.import_module("semobridge_ext._C")
    NATIVE_ERROR = None
except ImportError as error:  # pragma: no cover - a broken or missing build
    _C = None
    NATIVE_ERROR = str(error)

HAS_CUDA = hasattr(_C, "normalize_rows_cuda")
BACKENDS = ("auto", "native", "triton", "eager")
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {name!r}; use 'auto'")
    return name


_requested: ContextVar[str | None] = ContextVar("semobridge_backend", default=None)
_from_environment: str | None = None


def requested() -> str:
    """The backend asked for here: the innermost `backend(...)`, else SEMOBRIDGE_BACKEND, else auto."""
    global _from_environment
    name = _requested.get()
    if name is not None:
        return name
    if _from_environment is None:
        word = os.environ.get("SEMOBRIDGE_BACKEND") or "auto"
        _from_environment = _checked(word, "SEMOBRIDGE_BACKEND:")
    return _from_environment


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Asks for one backend inside a `with` block, in this thread or task only.

    Args:
        name: ``"auto"``, ``"native"``, ``"triton"`` or ``"eager"``.

    Raises:
        ValueError: unknown name. RuntimeError or NotImplementedError come from the call that cannot
            be met, not from here.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> with sb.backend("eager"):
        ...     y = sb.ops.project_normalize(torch.eye(3), torch.eye(3))
        >>> torch.equal(y, torch.eye(3))
        True
    """
    token = _requested.set(_checked(name, "backend: name"))
    try:
        yield
    finally:
        _requested.reset(token)


def is_native() -> bool:
    """True where a CPU tensor goes to the native core: the question of the one-image path, so cheap."""
    name = _requested.get()
    return _C is not None and (name or requested()) in ("auto", "native")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _require_triton(function: str, device: torch.device, kernel: bool | str) -> None:
    if kernel is not True:
        raise NotImplementedError(
            f"{function}: backend 'triton' has no kernel for {kernel or 'this call'}; use backend('auto')"
        )
    if not _has_triton():
        raise RuntimeError(f"{function}: backend 'triton' needs Triton; pip install triton")
    if not hasattr(torch.library, "triton_op"):
        raise RuntimeError(
            f"{function}: backend 'triton' needs PyTorch 2.6, this is {torch.__version__}; "
            "pip install --upgrade torch, or use backend('auto')"
        )
    # Triton decides when it is imported whether its interpreter runs the kernels.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            f"{function}: backend 'triton' needs CUDA tensors, got {device.type}; move them to the GPU or "
            "use backend('auto')"
        )


def resolve(
    function: str,
    device: torch.device,
    *,
    cuda: bool = False,
    triton: bool | str = False,
    work: tuple[torch.dtype, int] | None = None,
) -> str:
    """The implementation for one call; an explicit request that cannot be met is an error.

    Args:
        function: the caller, for messages.
        device: of its tensors.
        cuda: a CUDA kernel of the native core takes this call.
        triton: a Triton kernel takes this call; or in words what it does not take.
        work: dtype and size of the call, where its choice on a GPU may have been measured.
    """
    name = requested()
    if name == "eager":
        return "eager"
    if name == "triton":
        _require_triton(function, device, triton)
        return "triton"
    if _C is None:
        if name == "native":
            raise RuntimeError(
                f"{function}: backend 'native' was not built ({NATIVE_ERROR}); "
                "reinstall with: pip install --force-reinstall ."
            )
        return "eager"
    if device.type == "cpu":
        return "native"
    if name == "native":
        if device.type == "cuda" and HAS_CUDA and cuda:
            return "native"
        if device.type == "cuda" and not HAS_CUDA:
            raise RuntimeError(
                f"{function}: backend 'native' was built without CUDA (no nvcc at installation); "
                "install the CUDA toolkit, then: SEMOBRIDGE_CUDA=on pip install --force-reinstall ."
            )
        what = "CUDA kernel for this call" if device.type == "cuda" else f"kernel for {device.type} tensors"
        raise NotImplementedError(
            f"{function}: backend 'native' has no {what}; use backend('auto') or move the tensors to the CPU"
        )
    if device.type == "cuda" and work is not None:
        choice = _thresholds.choose(function, device, *work)
        if (choice == "native" and cuda and HAS_CUDA) or (
            choice == "triton" and triton is True and _has_triton()
        ):
            return choice
    return "eager"
