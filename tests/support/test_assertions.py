"""The asserters themselves: each must refuse what it is there to refuse."""

from __future__ import annotations

import pytest
import torch

from tests.support.assertions import (
    assert_close,
    assert_cosine,
    assert_figures,
    assert_row_relative,
    assert_same_bits,
    ulp,
)
from tests.support.comparer import WORST
from tests.support.samples import DTYPES
from tests.support.tolerances import LIMITS, TABLE


@pytest.fixture(autouse=True)
def _keep_worst():
    before = dict(WORST)
    yield
    WORST.clear()
    WORST.update(before)


@pytest.fixture
def want() -> torch.Tensor:
    return torch.randn(40, 20, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ulp_is_the_distance_to_the_next_value(dtype: torch.dtype):
    for value in (1.0, 1.5, -3.0, 0.1, 1e-3, 60000.0, 0.0):
        here = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
        step = torch.nextafter(here, torch.tensor(float("inf"), dtype=dtype)).double() - here.double()
        assert float(ulp(here.double(), dtype)) == float(step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_oracle_passes_and_truncated_fails(want: torch.Tensor, dtype: torch.dtype):
    assert_close(want.to(dtype), want, "op")
    if torch.finfo(dtype).bits == 16:
        steps = (want / ulp(want, dtype)).trunc() * ulp(want, dtype)
        with pytest.raises(AssertionError, match="times the bound"):
            assert_close(steps.to(dtype), want, "op")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named_first(want: torch.Tensor, poison: float):
    got = want.clone()
    got[3, 4] = poison
    for check in (lambda: assert_close(got, want, "op"), lambda: assert_row_relative(got, want, "tower")):
        with pytest.raises(AssertionError, match="NaN or inf"):
            check()
    with pytest.raises(AssertionError, match="oracle is not finite"):
        assert_close(want, got, "op")


def test_worst_index_is_printed(want: torch.Tensor):
    got = want.clone()
    got[7, 11] += 1e-3
    with pytest.raises(AssertionError, match=r"worst at \(7, 11\)"):
        assert_close(got, want, "op")


def test_oracle_without_signal_is_refused():
    zero = torch.zeros(4, 4, dtype=torch.float64)
    with pytest.raises(AssertionError, match="zero in 100%"):
        assert_close(zero, zero, "op")
    with pytest.raises(AssertionError, match="no signal"):
        assert_same_bits(zero, zero)
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_close(zero[:0], zero[:0], "op")
    with pytest.raises(AssertionError, match="zero row"):
        assert_row_relative(zero, zero, "tower")
    with pytest.raises(AssertionError, match="all zero, and no scale"):
        assert_figures(zero, zero, "tower")
    with pytest.raises(AssertionError, match="zero row"):
        assert_cosine(zero, zero, "tower", dtype=torch.float64)


def test_lean_is_refused(want: torch.Tensor):
    scale = want.abs().amax(-1, keepdim=True)
    got = want + 0.3e-13 * scale * want.sign()  # within every element's bound, all in one direction
    with pytest.raises(AssertionError, match="lean away from zero"):
        assert_close(got, want, "op")


def test_repeated_rows_are_no_further_samples():
    """70 roundings lean by chance as 4200 would not; a lean of all of them is found."""
    half = 2.0**-8  # half a unit in bfloat16's last place at 1
    offset = half * torch.linspace(0.01, 0.48, 70, dtype=torch.float64)
    want = torch.where(torch.arange(70) % 5 == 0, 1 + 2 * half - offset, 1 + offset)  # a fifth rounds up
    with pytest.raises(AssertionError, match="lean towards zero"):
        many = want + 1e-6 * torch.rand(60, 70, dtype=torch.float64)
        assert_close(many.to(torch.bfloat16), many, "op")
    assert_close(want.to(torch.bfloat16).expand(60, 70), want.expand(60, 70), "op")
    down = 1 + half * torch.linspace(0.4, 0.48, 70, dtype=torch.float64)
    with pytest.raises(AssertionError, match="lean towards zero"):
        assert_close(down.to(torch.bfloat16).expand(60, 70), down.expand(60, 70), "op")


def test_shape_and_oracle_dtype(want: torch.Tensor):
    with pytest.raises(AssertionError, match="shape"):
        assert_close(want[:3], want, "op")
    with pytest.raises(AssertionError, match="must be float64"):
        assert_close(want.float(), want.float(), "op")


def test_row_beyond_the_familys_limit(want: torch.Tensor):
    got = want.clone()
    got[7] *= 1 + 1e-3
    with pytest.raises(
        AssertionError, match=r"tower/float64 here row 7, of its length: 0\.001 is beyond 1e-12"
    ):
        assert_row_relative(got, want, "tower", context="here")
    assert assert_row_relative(got, want, "descent", dtype=torch.float32) == pytest.approx(1e-3)
    with pytest.raises(KeyError):
        assert_row_relative(got.half(), want, "tower")


def test_figures():
    nan, inf = float("nan"), float("inf")
    assert assert_figures([100.0, nan], [100.0 + 5e-4, nan], "tower", dtype=torch.float32) < 6e-6
    with pytest.raises(AssertionError, match="value 1: 5e-05 is beyond 1e-05"):
        assert_figures([100.0, 1.005], [100.0, 1.0], "tower", dtype=torch.float32)
    with pytest.raises(AssertionError, match="is beyond"):
        assert_figures(1e-4, 0.0, "tower", dtype=torch.float32, scale=1.0)
    for got, want in (([1.0, nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, nan]), ([1.0, inf], [1.0, nan])):
        with pytest.raises(AssertionError, match="at other places"):
            assert_figures(got, want, "tower")
    for want in ([1.0, inf], [nan, nan]):
        with pytest.raises(AssertionError, match="not finite"):
            assert_figures(want, want, "tower")
    for got, want in (([1.0], 1.0), ([], [])):
        with pytest.raises(AssertionError, match=r"oracle \("):
            assert_figures(got, want, "tower")


def test_cosines(want: torch.Tensor):
    got = 3 * want  # a length is no angle
    assert assert_cosine(got, want, "launched_cosine", dtype=torch.float64) < 1e-15
    got[7] = want[8]
    with pytest.raises(AssertionError, match=r"1 − cosine: .* is beyond"):
        assert_cosine(got, want, "launched_cosine", dtype=torch.float64)
    assert_cosine(got, want, "launched_cosine", dtype=torch.float64, share=0.9)
    got[3, 4] = float("nan")
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_cosine(got, want, "launched_cosine", dtype=torch.float64, share=0.9)


def test_only_what_holds_is_seen(want: torch.Tensor):
    WORST.clear()
    for broken, check in ((2 * want, assert_close), (want + 1, assert_row_relative)):
        with pytest.raises(AssertionError):
            check(broken, want, "op" if check is assert_close else "tower")
    assert not WORST
    assert_close(want.float(), want, "op")
    assert 0 < WORST["op", "float32"] < 1e-7


def test_same_bits(want: torch.Tensor):
    assert_same_bits(want, want.clone())
    other = want.clone()
    other[2, 3] = torch.nextafter(other[2, 3], torch.tensor(9.0, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"1 of 800 values differ, first at \(2, 3\)"):
        assert_same_bits(other, want)


def test_table_is_stated_in_full():
    names = {"float32", "float64", "bfloat16", "float16"}
    assert {dtype for _, dtype in TABLE} == names
    for (family, dtype), limit in TABLE.items():
        allowed = limit.ulps or limit.relative
        assert 0 < limit.seen <= allowed, f"{family}/{dtype}: seen {limit.seen}, allowed {allowed}"
    assert not {family for family, _ in TABLE} & {family for family, _ in LIMITS}, (
        "one name, one kind of error"
    )
    for key, (allowed, seen) in LIMITS.items():
        assert 0 < seen <= allowed, key
