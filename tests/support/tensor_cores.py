"""What stands in on the CPU for products of half types with a float32 result, which only a GPU has."""

from __future__ import annotations

import pytest
from torch import Tensor

from semobridge_ext.runtime import half_products


class TensorCores:
    """Takes rows of a half type as a GPU would, and keeps what was multiplied."""

    def __init__(self) -> None:
        self.products: list[tuple[Tensor, Tensor]] = []

    def mm(self, x: Tensor, matrix: Tensor) -> Tensor:
        assert x.dtype is matrix.dtype and x.dtype in half_products.HALVES, "cuBLAS refuses mixed operands"
        self.products.append((x, matrix))
        return x.float() @ matrix.float()  # products of half types are exact in float32

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Rows, depth and columns of each product."""
        return [(*x.shape, matrix.shape[1]) for x, matrix in self.products]


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> TensorCores:
    """Makes CPU tensors of a half type `served`."""
    cores = TensorCores()
    monkeypatch.setattr(half_products, "served", lambda x: x.dtype in half_products.HALVES)
    monkeypatch.setattr(half_products, "_mm", cores.mm)
    return cores
