"""How wide the bounds of codes may be: not much more than what they bound."""

from __future__ import annotations

import torch
from torch import Tensor

FLUSHED = 1.01e-35  # what a bound may hold for entries that count as zero
MIDDLE = 1e-4  # of a code: so near to the middle between two, either is right


def widest_norm(whole: Tensor) -> Tensor:
    """Of ‖scale·κ‖ in float64."""
    return whole * (1 + 1e-4)


def widest_error(left: Tensor, whole: Tensor, rows: Tensor) -> Tensor:
    """Of ‖ε‖ in float64, with twice the rounding of a float32 score of the rows."""
    rounding = (rows.shape[1] + 16) * 2**-24 * torch.linalg.vector_norm(rows.double(), dim=1)
    return left * (1 + 1e-4) + 2.2 * rounding + 1e-5 * whole + FLUSHED


def in_the_middle(rows: Tensor, scale: Tensor) -> Tensor:
    """Entries that lie between two codes."""
    return ((rows.double() / scale[:, None]).abs() % 1 - 0.5).abs() < MIDDLE
