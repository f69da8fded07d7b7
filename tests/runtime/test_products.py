"""Products by the core: against float64, in every layout, alike for any number of threads; and when."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.runtime import products
from semobridge_ext.runtime.backend import _C
from tests.support.assertions import assert_close

if _C is None:
    pytest.skip("the native module was not built", allow_module_level=True)

# Tails in every direction: a row more than the tiles of a set, a column past a panel, K past its block.
SIZES = ((1, 1, 1), (7, 3, 5), (13, 40, 33), (15, 513, 31), (57, 512, 64), (43, 1100, 97), (1200, 20, 40))


def multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """By the core, whatever the size and the instruction set."""
    products._by_core(a, b, out, accumulate=accumulate)


def operand(rows: int, cols: int, dtype: torch.dtype, transposed: bool, gap: int, seed: int) -> Tensor:
    """[rows, cols] whose rows, or whose columns, lie together, with `gap` values between them."""
    shape = (cols, rows + gap) if transposed else (rows, cols + gap)
    whole = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return whole[:, : shape[1] - gap].T if transposed else whole[:, : shape[1] - gap]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_layout_against_float64(isa: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, k, m = size
    for ta, tb, gap in itertools.product((False, True), (False, True), (0, 3)):
        a, b = operand(n, k, dtype, ta, gap, 1), operand(k, m, dtype, tb, gap, 2)
        want = a.double() @ b.double()
        whole = torch.full((n, m + gap), 7.0, dtype=dtype)
        out = whole[:, :m]
        multiply(a, b, out)
        assert_close(out, want, "op")
        assert (whole[:, m:] == 7).all(), "columns past out were written"
        before = torch.randn(n, m, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
        out.copy_(before)
        multiply(a, b, out, accumulate=True)
        assert_close(out, want + before.double(), "op")
        assert (whole[:, m:] == 7).all(), "columns past out were written"


@pytest.mark.parametrize("transposed", [False, True])
def test_alike_for_any_threads_and_in_any_company(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    a = operand(1201, 700, torch.float32, transposed, 0, 1)
    b = operand(700, 70, torch.float32, not transposed, 0, 2)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(products, "thread_count", lambda threads=threads: threads)
        found.append(torch.empty(1201, 70))
        multiply(a, b, found[-1])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    alone = torch.empty(1, 40)
    multiply(a[600:601], b[:, :40], alone)
    assert torch.equal(alone[0], found[0][600, :40])


@pytest.mark.parametrize("transposed", [False, True])
def test_nan_and_infinity_stay_in_their_row_and_column(transposed: bool) -> None:
    a = operand(70, 600, torch.float32, transposed, 0, 1)
    b = operand(600, 50, torch.float32, transposed, 0, 2)
    plain, out = torch.empty(70, 50), torch.empty(70, 50)
    multiply(a, b, plain)
    a[20, 530], b[3, 49] = float("nan"), float("inf")
    multiply(a, b, out)
    assert out[20].isnan().all() and not out[:, 49].isfinite().any()
    keep = torch.ones(70, 50, dtype=torch.bool)
    keep[20], keep[:, 49] = False, False
    assert torch.equal(out[keep], plain[keep])


def test_operands_may_begin_at_any_byte() -> None:
    memory = torch.zeros(4 * 30 * 40 + 1, dtype=torch.uint8)
    values = torch.randn(30, 40, generator=torch.Generator().manual_seed(4))
    loose = torch.frombuffer(memory.numpy().data, dtype=torch.float32, count=1200, offset=1).view(30, 40)
    loose.copy_(values)
    assert loose.data_ptr() % 4
    for left, right in ((loose, loose.T), (loose.T, loose)):
        aligned = (values, values.T) if left is loose else (values.T, values)
        out, want = (torch.empty(left.shape[0], right.shape[1]) for _ in range(2))
        multiply(left, right, out)
        multiply(*aligned, want)
        assert torch.equal(out, want)


def test_what_the_core_refuses() -> None:
    a, b = torch.ones(4, 3), torch.ones(3, 5)
    for wrong in ((a, b, torch.empty(4, 4)), (a, b.double(), torch.empty(4, 5)), (a, torch.ones(4, 5), b)):
        with pytest.raises(ValueError, match="matrix_product"):
            multiply(*wrong)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes that went to the core."""
    found: list[tuple[int, ...]] = []
    by_core = products._by_core

    def watched(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> None:
        found.append((*a.shape, b.shape[1]))
        by_core(a, b, out, accumulate=accumulate)

    monkeypatch.setattr(products, "_by_core", watched)
    return found


def test_large_products_are_the_cores_where_avx512_runs(isa: str, calls: list) -> None:
    a, b = operand(64, 64, torch.float32, False, 0, 1), operand(64, 64, torch.float32, True, 0, 2)
    want = a.double() @ b.double()
    assert_close(products.product(a, b), want, "op")
    out = torch.ones(64, 64)
    assert products.product(a, b, out) is out
    assert_close(out, want, "op")
    products.add_product(out, a, b)
    assert_close(out, 2 * want, "op")
    assert len(calls) == (3 if isa.startswith("avx512") else 0)
    with sb.backend("eager"):
        assert torch.equal(products.product(a, b), a @ b)
    assert len(calls) == (3 if isa.startswith("avx512") else 0)


def test_everything_else_is_pytorchs(calls: list) -> None:
    a, b = operand(80, 64, torch.float32, False, 0, 1), operand(64, 90, torch.float32, True, 0, 2)
    learned = a.clone().requires_grad_()
    products.product(learned, b).sum().backward()
    assert learned.grad is not None
    for x, y in (
        (a[:, :8], b[:8]),  # small
        (torch.randn(160, 128)[::2, ::2], b),  # neither rows nor columns lie together
        (a.bfloat16(), b.bfloat16()),
    ):
        want = x @ y
        assert torch.equal(products.product(x, y), want)
        out = torch.empty_like(want)
        products.product(x, y, out)
        assert torch.equal(out, want)
    columns = torch.empty(90, 80).T  # an output whose columns lie together
    products.product(a, b, columns)
    assert_close(columns, a.double() @ b.double(), "op")
    products.add_product(columns, a, b)
    assert_close(columns, 2 * (a.double() @ b.double()), "op")
    assert calls == []
    with pytest.raises(RuntimeError, match="dtype"):
        products.product(a, b.double())
