"""PreparedProjection: one set of operands per dtype of the sums, and the operator where it is due."""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.project_normalize import cpu as cpu_projection
from semobridge_ext._ops.project_normalize import prepared as prepared_projection
from semobridge_ext._ops.project_normalize.prepared import PreparedProjection
from semobridge_ext.ops import project_normalize
from tests.support.assertions import assert_same_bits
from tests.support.samples import DTYPES

F64 = torch.float64


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("offset", [None, torch.linspace(-1, 1, 7, dtype=F64)], ids=["plain", "offset"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_gives_the_bits_of_the_operator(dtype: torch.dtype, offset, backend: str):
    matrix, x = torch.randn(12, 7, dtype=F64), torch.randn(5, 12).to(dtype)
    prepared = PreparedProjection(matrix, offset, scale=1.5)
    compute = F64 if dtype is F64 else torch.float32
    bias = None if offset is None else offset.to(compute)
    with sb.backend(backend):
        want = project_normalize(x, matrix.to(compute), bias=bias, scale=1.5)
        assert_same_bits(prepared(x), want)
        leaf = x.clone().requires_grad_()
        assert_same_bits(prepared(leaf).detach(), want)
    assert prepared(leaf).requires_grad


def test_operands_are_packed_once_for_each_dtype_of_the_sums(monkeypatch: pytest.MonkeyPatch):
    packed: list[torch.dtype] = []

    class Spy(cpu_projection.Projection):
        __slots__ = ()

        def __init__(self, *matrices, compute, **options):
            packed.append(compute)
            super().__init__(*matrices, compute=compute, **options)

    monkeypatch.setattr(prepared_projection, "Projection", Spy)
    prepared = PreparedProjection(torch.randn(4, 3, dtype=F64))
    assert packed == []
    for _ in range(2):
        for dtype in DTYPES:
            prepared(torch.randn(2, 4).to(dtype))
    assert sorted(packed, key=str) == [torch.float32, F64]


def test_bridge_and_its_linear_map_agree_to_the_bit_where_the_projector_is_whole():
    bridge = sb.Bridge(torch.diag(torch.tensor([1.0] * 10 + [0.1] * 10)))  # half the rank: no thin form
    x = torch.randn(6, 20)
    assert_same_bits(bridge(x), sb.LinearMap.from_bridge(bridge)(x))
