"""quantize_rows on the CPU: panels of codes, as the core's products read them (csrc/core/codes.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, view


def max_width() -> int:
    """Columns of the widest rows that can be coded."""
    return _C.MAX_CODE_WIDTH


def shapes(rows: int, width: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Of the codes and of the bounds."""
    panels = -(-rows // _C.PANEL)
    return (panels, _C.code_panel_bytes(width)), (panels, _C.CODE_BOUNDS, _C.PANEL)


def write(
    rows: Tensor,  # [G, D], unit column stride
    codes: Tensor,  # [panels, bytes] uint8
    bounds: Tensor,  # [panels, 3, 32] float32
) -> None:
    """Fills whole panels from the first on; places past the last row count for nothing."""
    _C.quantize_rows(view(rows), address(codes), address(bounds), thread_count())


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:  # [panels, bytes] uint8, [panels, 3, 32]
    rows = unit_columns(rows)
    of_codes, of_bounds = shapes(*rows.shape)
    codes = torch.empty(of_codes, dtype=torch.uint8, device="cpu")
    bounds = torch.empty(of_bounds, dtype=torch.float32, device="cpu")
    write(rows, codes, bounds)
    return codes, bounds
