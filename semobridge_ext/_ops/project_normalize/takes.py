"""What the kernels of project_normalize take."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.choice import Answer, Kernels

MAX_COLUMNS = {2: 2048, 4: 1024}  # of a Triton program, which holds whole rows; by an operand's bytes


def triton(x: Tensor, matrix: Tensor, *_: object) -> Answer:
    # float16 rows meet a float32 matrix in float32 parts (triton.py).
    single = x.dtype is torch.float32 or (x.dtype is torch.float16 and matrix.dtype is not torch.float16)
    most = MAX_COLUMNS[4 if single else 2]
    if matrix.shape[1] > most:
        return f"more than {most} columns of {'float32' if single else 'a half type'}"
    return "float64" if x.dtype is torch.float64 else True


def _rows(x: Tensor, *_: object) -> int:
    return x.numel() // max(x.shape[-1], 1)


def _prepared(x: Tensor, matrix: Tensor) -> bool:
    return x.dtype is not torch.float64


def _prepared_rows(x: Tensor, matrix: Tensor) -> int:
    """0 where the matrix is wider than any that is measured: `auto` then finds no choice."""
    return _rows(x) if matrix.shape[1] <= MAX_COLUMNS[4] else 0


KERNELS = Kernels("project_normalize", lambda *_: True, triton, _rows)
# With the matrix prepared, CUDA has kernels of its own for the product, in float32.
PREPARED = Kernels("prepared_projection", _prepared, triton, _prepared_rows)
