"""The oracle of quantize_rows, in float64 (docs/methods.md, "Exact search through an integer filter")."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [G, D] whole, [G], [G]
    """Codes, scales and norms of what the codes leave, of finite rows [G, D].

    The scale is the float32 number that is stored, so that what is left is exact.
    """
    x = rows.double()
    scale = (rows.float().abs().amax(1) / 127).double()
    codes = torch.where(scale > 0, x.T / scale, 0.0).round().clamp(-127, 127).T
    return codes, scale, torch.linalg.vector_norm(x - codes * scale[:, None], dim=1)


def unpack(codes: Tensor, rows: int, width: int) -> Tensor:  # [rows, width] int64
    """Panels of codes [panels, groups·32·4] uint8 as whole numbers, row by row."""
    panels = codes.view(len(codes), -1, 32, 4).to(torch.int64) - 128  # [panel][group][row][column]
    return panels.permute(0, 2, 1, 3).reshape(len(codes) * 32, -1)[:rows, :width]
