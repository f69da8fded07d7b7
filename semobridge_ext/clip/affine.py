"""A projection with a bias as a linear map: rows get a one appended, the matrix its bias as the last row.

    x·W + b = (x, 1)·[W; b]

So what the family says of W holds for [W; b], one row taller (docs/methods.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


class NonlinearError(TypeError):
    """A tower ends in something that is no matrix, or not by its weights alone."""


class Affine(NamedTuple):
    """``x·matrix + bias``, the map that ends a tower; a bias of zeros is none."""

    matrix: Tensor  # [K, D]
    bias: Tensor | None  # [D]

    @property
    def rows(self) -> Tensor:  # [K, D], or [K + 1, D]
        return self.matrix if self.bias is None else torch.cat([self.matrix, self.bias.unsqueeze(0)])


def with_bias(function: str, name: str, matrix: Tensor, bias: Any) -> Tensor:  # [K, D] -> [K + 1, D]
    """The matrix with a given bias [D] as its last row; the matrix itself where that is None or zero."""
    if bias is None:
        return matrix
    b = _errors.check_float_tensor(function, name, _arrays.tensor(function, name, bias)).detach()
    if b.shape != matrix.shape[1:]:
        contract, remedy = f"be [{matrix.shape[1]}]", "pass one value per column of the matrix"
        raise ValueError(_errors.message(function, name, contract, b, remedy))
    _errors.check_finite(function, name, b, "reload the model's weights")
    if not bool((b != 0).any()):
        return matrix
    _errors.check_same_device(function, name, b, matrix.device)
    wide = torch.promote_types(matrix.dtype, b.dtype)
    return Affine(matrix.to(wide), b.to(wide)).rows


def with_one(rows: Tensor) -> Tensor:  # [N, K] -> [N, K + 1]
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
