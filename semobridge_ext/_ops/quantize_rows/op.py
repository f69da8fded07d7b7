"""quantize_rows: 8-bit codes of rows, with bounds of their inner products that hold for certain.

    x = scale·κ + ε,  κ in −127..127,  scale = max|x| / 127
    |⟨q, x⟩ − t·scale·⟨χ, κ⟩| ≤ ‖δ‖·‖scale·κ‖ + ‖q‖·‖ε‖          for a query q = t·χ + δ

What an exact search can leave out by it is never scored (docs/ops/quantize_rows.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.quantize_rows import cpu


class Codes(NamedTuple):
    """Rows as codes, in panels of 32 rows; `bounds` are scale, ‖scale·κ‖ and the error's bound."""

    codes: Tensor  # [panels, bytes] uint8
    bounds: Tensor  # [panels, 3, 32] float32

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + 4 * self.bounds.numel()


def can_quantize(rows: Tensor) -> bool:
    """Whether rows [G, D] have codes: in memory of the CPU, not float64, not wider than 131 072."""
    return rows.device.type == "cpu" and rows.dtype is not torch.float64 and rows.shape[1] <= cpu.max_width()


def quantize_rows(rows: Tensor) -> Codes:  # [G, D]
    """Native, CPU; the caller has checked everything."""
    return Codes(*cpu.quantize_rows(rows))


def shapes(rows: int, width: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Of the codes and of the bounds of that many rows."""
    return cpu.shapes(rows, width)


def empty_codes(rows: int, width: int) -> Codes:
    """Room for the codes of that many rows."""
    codes, bounds = shapes(rows, width)
    return Codes(torch.empty(codes, dtype=torch.uint8, device="cpu"), torch.empty(bounds, device="cpu"))
