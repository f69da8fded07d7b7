"""The backend asked for: `native` (csrc), `triton`, `eager` (plain PyTorch), or `auto`."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from contextlib import AbstractContextManager, ContextDecorator
from contextvars import ContextVar, Token
from typing import Any

import torch

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


class _Asking(ContextDecorator, AbstractContextManager[None]):
    """One `with` block's request; around a function, that of each of its calls."""

    def __init__(self, name: str) -> None:
        self._name, self._used = name, False
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> None:
        self._used = True
        self._tokens.append(_requested.set(self._name))

    def __exit__(self, *error: object) -> None:
        _requested.reset(self._tokens.pop())

    def _recreate_cm(self) -> _Asking:  # of ContextDecorator: calls at once, in threads, share nothing
        self._used = True
        return type(self)(self._name)

    def __repr__(self) -> str:
        return f"backend({self._name!r}): asks for it inside a with block only"

    def __del__(self) -> None:
        if not self._used and not sys.is_finalizing():
            warnings.warn(
                f"backend: {self._name!r} must be asked for by a with block, got a call alone, which changes "
                f"nothing; write: with sb.backend({self._name!r}): ...",
                RuntimeWarning,
                stacklevel=2,
            )


def backend(name: str) -> AbstractContextManager[None]:
    """Asks for one backend inside a `with` block, in this thread or task only.

    Args:
        name: ``"auto"``, ``"native"``, ``"triton"`` or ``"eager"``.

    Returns:
        The context manager, which may decorate a function, too; by itself it asks for nothing, and warns
        (RuntimeWarning) when it goes unused.

    Raises:
        ValueError: unknown name, at this call already. RuntimeError or NotImplementedError come from the
            call that cannot be met, not from here.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> with sb.backend("eager"):
        ...     y = sb.ops.project_normalize(torch.eye(3), torch.eye(3))
        >>> torch.equal(y, torch.eye(3))
        True
    """
    return _Asking(_checked(name, "backend: name"))
