"""Ridge regression in closed form, the ridge chosen by what its predictions are for.

    W = (XᵀX + λI)⁻¹ XᵀY      b = ȳ − x̄W      λ = ridge·tr(XᵀX)/D

X and Y are centred, so the constant is not shrunk. One eigendecomposition serves every ridge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RIDGES = tuple(10.0 ** (k / 2) for k in range(-8, 5))  # what "auto" tries, in units of the mean eigenvalue


class Solution(NamedTuple):
    matrix: Tensor  # [D, M] float64
    offset: Tensor  # [M] float64

    def __call__(self, rows: Tensor) -> Tensor:  # [N, D] -> [N, M] float64
        return rows.to("cpu", torch.float64) @ self.matrix + self.offset


class RidgePath:
    """The solutions of one regression for every ridge."""

    def __init__(
        self,
        rows: Tensor,  # [N, D]
        values: Tensor,  # [N, M]
    ) -> None:
        x, y = (t.to("cpu", torch.float64) for t in (rows, values))
        self._mean, self._offset = x.mean(0), y.mean(0)
        x = x - self._mean
        self._scales, self._axes = torch.linalg.eigh(x.T @ x)
        self._scales = self._scales.clamp_min(0)
        self._moments = self._axes.T @ (x.T @ (y - self._offset))

    def at(self, ridge: float) -> Solution:
        loaded = self._scales + ridge * self._scales.mean()
        # Equal rows have no direction to regress on: the constant remains.
        inverse = torch.where(loaded > 0, 1 / loaded, 0.0)
        matrix = self._axes @ (inverse[:, None] * self._moments)
        return Solution(matrix, self._offset - self._mean @ matrix)


def held_out(count: int) -> Tensor:  # [count] bool
    """Every fifth row, at least one: rows that stand together are often of one class."""
    held = torch.arange(count) % 5 == 4
    held[-1] |= not bool(held.any())
    return held


def chosen(
    rows: Tensor,  # [N, D]
    values: Tensor,  # [N, M]
    ridge: float | None,  # None: the one with the least loss
    loss: Callable[[Tensor, Tensor], float],  # of predictions [n, M] for the rows that `held` marks
) -> tuple[Solution, float, float | None]:
    """The solution on all rows, its ridge, and the loss that it had on rows held out (None: not measured).

    Without a ridge, each of `RIDGES` is fitted without a fifth of the rows and judged on these.
    """
    least = None
    if ridge is None:
        held = held_out(len(rows))
        path = RidgePath(rows[~held], values[~held])
        losses = [loss(path.at(r)(rows[held]), held) for r in RIDGES]
        least = min(losses)
        ridge = RIDGES[losses.index(least)]
    return RidgePath(rows, values).at(ridge), ridge, least
