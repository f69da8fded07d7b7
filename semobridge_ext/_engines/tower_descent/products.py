"""What stands before and behind a product of few rows (csrc/tower_descent/cuda_few_rows.h).

Letters as in torch.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Norm

# Of csrc/tower_descent/cuda_few_rows.cu: a tile of the result, the depth of a step along K in bytes of a
# row, and how many tiles of columns times parts of K a launch is cut into.
TILE_ROWS, TILE_COLS, STEP_BYTES, PARTS = 64, 32, 128, 128
BEHIND = ("store", "sum", "activate", "activate_grad", "norm_grad")


@dataclass(frozen=True)
class Before:
    """The left operand: rows, their norm, or with ``normed`` the gradient of a norm's input."""

    x: Tensor  # [N, K]
    norm: Norm | None = None
    state: Any = None  # the norm's mean and rstd [N]
    normed: Tensor | None = None  # [N, K] as the norm took them
    residual: Tensor | None = None  # [N, K] added to the gradient
    grad: Tensor | None = None  # [N, K] the gradient, written

    @property
    def kind(self) -> int:
        """Of ``Before`` in the header."""
        return 0 if self.norm is None else 1 if self.normed is None else 2

    @property
    def operand(self) -> Tensor:
        """The gradient that was multiplied, once the product is taken."""
        return self.x if self.grad is None else self.grad


@dataclass(frozen=True)
class Behind:
    """What becomes of the sums."""

    kind: str  # one of BEHIND
    y: Tensor  # [N, M] written
    norm: Norm | None = None  # norm_grad: whose input's gradient follows
    state: Any = None
    other: Tensor | None = None  # [N, M] added; the activation's argument; the norm's input
    second: Tensor | None = None  # [N, M] activate: act(y), written


class Tiles(NamedTuple):
    """How a launch is cut, for models on paper."""

    blocks: int
    weight: int  # bytes of the matrix
    cache: int  # bytes through L2: operands as often as tiles read them, and the parts of the sums
    trips: int  # loads of a block that wait for each other


class Rounds(NamedTuple):
    """How an attention is cut, likewise."""

    blocks: int
    trips: int
    alone: bool  # a block has a head's samples at once: in one launch it waits for nobody


def tiles_of(before: Before, weight: Tensor, behind: Behind) -> Tiles:
    """What the launch of this product moves."""
    (rows, k), cols, size = before.x.shape, weight.shape[1], before.x.element_size()
    down, across, steps = -(-rows // TILE_ROWS), -(-cols // TILE_COLS), -(-k * size // STEP_BYTES)
    splits = max(1, min(PARTS // across, steps))
    read = sum(t is not None for t in (before.x, before.normed, before.residual))
    written = sum(t is not None for t in (behind.y, behind.other, behind.second))
    parts = 2 * splits * down * across * TILE_ROWS * TILE_COLS * 4  # written and read
    cache = across * read * rows * k * size + down * weight.numel() * size + written * rows * cols * size
    trips = (
        -(-steps // splits) + 3 + (before.norm is not None)
    )  # the steps, the ticket, the sums, the statistics
    return Tiles(down * across * splits, weight.numel() * size, cache + parts, trips)
