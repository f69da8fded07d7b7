"""The Triton kernels of the package: where they lie, and what a check of them needs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

import semobridge_ext
from tests.support.assertions import assert_close, name_of

_PACKAGE = Path(semobridge_ext.__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORST: dict[str, float] = {}
folder: Path | None = None  # holds the files to check in place of the package's


def all_files() -> list[Path]:
    """Every file of the package that defines a kernel."""
    return [path for path in sorted(_PACKAGE.rglob("*.py")) if "@triton.jit" in path.read_text()]


def _name(path: Path) -> str:
    return path.parent.name + {"triton": "", "triton_backward": "_bwd"}[path.stem]


FILES = {_name(path): path for path in all_files()}  # by the operator or engine, and of its check


def load(name: str):
    """The module of that name, defined anew."""
    file = folder / f"{name}.py" if folder else FILES[name]
    spec = importlib.util.spec_from_file_location(f"checked_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def close(name: str, got: Tensor, want: Tensor, family: str = "kernel") -> None:
    """tests/support/comparer.py, with the worst error of each name on record."""
    found = assert_close(got, want, family, context=name)
    key = f"{name}/{name_of(got.dtype)}"
    WORST[key] = max(WORST.get(key, 0.0), found.beyond)


def unit(rows: int, width: int, dtype: torch.dtype, extra: int = 0) -> Tensor:
    """Unit rows; `extra` columns lie between them in memory."""
    wide = torch.nn.functional.normalize(torch.randn(rows, width + extra, dtype=torch.float64), dim=1)
    return wide.to(dtype)[:, :width]
