"""_ops/quantize_rows: codes and bounds against float64, and the promise that the bounds make."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semobridge_ext._ops.quantize_rows.op import can_quantize, quantize_rows
from semobridge_ext._ops.quantize_rows.reference import quantize_rows as oracle
from semobridge_ext._ops.quantize_rows.reference import unpack
from tests.support.assertions import assert_same_bits
from tests.support.codes import in_the_middle, widest_error, widest_norm

HALVES = (torch.float32, torch.float16, torch.bfloat16)


def bounds_of(bounds: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    scale, norm, error = bounds.permute(1, 0, 2).reshape(3, -1)[:, :rows].double()
    return scale, norm, error


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (31, 5), (33, 64), (100, 129), (7, 768)], ids=str)
def test_codes_and_bounds(shape: tuple[int, int], dtype: torch.dtype, code_isa: str):
    rows = (torch.randn(shape) * torch.logspace(-8, 8, shape[0])[:, None].clamp(6e-4, 300)).to(dtype)
    codes, bounds = quantize_rows(rows)
    want, scale, left = oracle(rows)
    got = unpack(codes, *shape)
    stored, norm, error = bounds_of(bounds, len(rows))
    assert torch.equal(stored, scale)
    # A code may differ by one where the entry lies in the middle, as rounding has it.
    middle = in_the_middle(rows, scale)
    assert torch.equal(got[~middle], want.long()[~middle]) and int((got - want).abs().max()) <= 1
    whole = torch.linalg.vector_norm(got * stored[:, None], dim=1)
    missed = torch.linalg.vector_norm(rows.double() - got * stored[:, None], dim=1)
    assert bool((whole <= norm).all()) and bool((missed <= error).all())
    # And they are not wider than they must be.
    assert bool((norm <= widest_norm(whole)).all()) and bool((error <= widest_error(left, whole, rows)).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rows_of_which_nothing_is_known(dtype: torch.dtype, code_isa: str):
    rows = torch.randn(40, 24).to(dtype)
    rows[3, 7], rows[9, 0], rows[39, 23] = math.nan, math.inf, -math.inf
    if dtype is not torch.float16:
        rows[20] *= 1e25
    lost = [3, 9, 39] + ([20] if dtype is not torch.float16 else [])
    codes, bounds = quantize_rows(rows)
    _, _, error = bounds_of(bounds, 40)
    assert error[lost].isinf().all() and error.isfinite().sum() == 40 - len(lost)
    alone = rows.clone()
    alone[lost] = 0
    kept = [i for i in range(40) if i not in lost]
    assert torch.equal(unpack(codes, 40, 24)[kept], unpack(quantize_rows(alone).codes, 40, 24)[kept])


def test_zero_and_tiny_rows(code_isa: str):
    rows = torch.zeros(3, 16)
    rows[1], rows[2] = 1e-38, 1e-42
    codes, bounds = quantize_rows(rows)
    _, norm, error = bounds_of(bounds, 3)
    assert not unpack(codes, 3, 16).any() and not norm.any()
    length = torch.linalg.vector_norm(rows.double(), dim=1)
    assert bool((error >= length).all()) and bool((error <= widest_error(length, norm, rows)).all())


KINDS = ("plain", "spike", "flat", "signs", "half")


@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.sampled_from(["plain", "spike", "flat", "signs", "half"]),
    st.integers(0, 99),
)
def test_the_interval_holds(n: int, width: int, kind: str, seed: int):
    """Exact scores and float32 scores lie in the interval that codes and bounds give."""
    torch.manual_seed(seed)
    rows = torch.randn(n, width)
    if kind == "spike":
        rows[:, width // 2] *= 1e4
    elif kind == "flat":
        rows = torch.full((n, width), 0.37)
    elif kind == "signs":
        rows = 0.37 * (-1.0) ** torch.arange(width).expand(n, -1)
    elif kind == "half":
        rows = (torch.randint(0, 120, (n, width)) + 0.499) / 127
        rows[:, 0] = 1
    queries = torch.cat([rows[:5], torch.randn(4, width), torch.ones(1, width)])
    codes, bounds = quantize_rows(rows)
    scale, norm, error = bounds_of(bounds, n)
    own, of_query, rest = oracle(queries)
    middle = (own * of_query[:, None]) @ (unpack(codes, n, width).double() * scale[:, None]).T
    length = torch.linalg.vector_norm(queries.double(), dim=1)
    room = rest[:, None] * norm + length[:, None] * error
    for scores in (queries.double() @ rows.double().T, (queries @ rows.T).double()):
        assert bool(((scores - middle).abs() <= room).all())


def test_threads_and_strides_do_not_matter(code_isa: str):
    wide = torch.randn(300, 50)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(quantize_rows(wide[:, 3:44]))
    results.append(quantize_rows(wide[:, 3:44].contiguous()))
    for other in results[1:]:
        assert torch.equal(other.codes, results[0].codes)
        assert_same_bits(other.bounds, results[0].bounds)


def test_what_can_be_coded():
    assert can_quantize(torch.ones(1, 8)) and can_quantize(torch.ones(1, 131072).half())
    assert not can_quantize(torch.ones(1, 8).double()) and not can_quantize(torch.ones(1, 131073))
    assert not can_quantize(torch.ones(1, 8, device="meta"))
