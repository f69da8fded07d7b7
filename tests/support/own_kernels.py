"""What an operator says about its own CUDA and Triton kernels: tests/ops/<op>/kernels.py, engines alike.

Such a file may hold

- ``case_<name>(module, rng)``: a CUDA kernel against float64, over the emulation and on a GPU
- ``CUDA_MUTATIONS``: how to break it, as in tests/cuda_emulation/test_mutations.py
- ``check_<name>()``: a Triton kernel against float64, interpreted and on a GPU; it imports PyTorch itself
- ``TRITON_RESULTS``: by check, how many results it compares
- ``TRITON_MUTATIONS``: as in tests/ops/triton/test_kernels.py
- ``triton_cases(Case)``: what bench/gpu/triton_resources.py compiles

and imports NumPy alone, so that it runs under a sanitizer too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_TESTS = Path(__file__).resolve().parents[1]


@cache
def modules() -> tuple[ModuleType, ...]:
    files = sorted(_TESTS.glob("*/*/kernels.py"))
    return tuple(importlib.import_module(".".join(("tests", *f.parts[-3:-1], "kernels"))) for f in files)


def functions(prefix: str) -> dict[str, Callable[..., Any]]:
    """Those named so, by the rest of their names."""
    return {
        name.removeprefix(prefix): function
        for module in modules()
        for name, function in vars(module).items()
        if name.startswith(prefix) and function.__module__ == module.__name__
    }


def tables(name: str) -> dict[Any, Any]:
    """The tables of that name, as one."""
    return {key: value for module in modules() for key, value in getattr(module, name, {}).items()}
