"""What the kernels of project_normalize take."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.choice import Kernels

WIDEST = 1024  # columns of a prepared matrix up to which what was measured, or a rule, chooses


def _rows(x: Tensor, *_: object) -> int:
    return x.numel() // max(x.shape[-1], 1)


def _prepared(x: Tensor, matrix: Tensor) -> bool:
    return x.dtype is not torch.float64


def _prepared_rows(x: Tensor, matrix: Tensor) -> int:
    """0 where the matrix is wider than any that is measured: `auto` then finds no measured choice."""
    return _rows(x) if matrix.shape[1] <= WIDEST else 0


KERNELS = Kernels("project_normalize", lambda *_: True, lambda *_: False, _rows)
# With the matrix prepared, CUDA has kernels of its own for few rows, in float32.
PREPARED = Kernels("prepared_projection", _prepared, lambda *_: False, _prepared_rows)
