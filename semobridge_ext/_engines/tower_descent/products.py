"""What stands before and behind a product of few rows (csrc/tower_descent/cuda_few_rows.h).

Letters as in torch.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Norm

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
