"""Products of half types with float32 results: what a GPU multiplies, over a stand-in for its cores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.half_products import HALVES, multiply, product, split
from tests.support.assertions import assert_close
from tests.support.tensor_cores import TensorCores, tensor_cores

__all__ = ["tensor_cores"]
ROWS = 67


@pytest.fixture(autouse=True)
def few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_products, "SPLIT_ROWS", 64)


def wide(parts: half_products.Parts) -> Tensor:
    """The sum of the parts in float64."""
    given = parts.matrix.double()
    total = sum(given.chunk(parts.number, dim=int(parts.beside)))
    return total if parts.unscale is None else total * parts.unscale.double()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 3e4, 1e20])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_two_parts_are_the_matrix(dtype: torch.dtype, size: float, beside: bool):
    for given in (torch.float32, torch.float64):
        matrix = size * torch.randn(40, 30, dtype=given)
        parts = split(matrix, dtype, beside=beside)
        assert parts.number == 2 and parts.matrix.dtype is dtype and parts.beside is beside
        assert parts.matrix.shape == ((40, 60) if beside else (80, 30))
        error = (wide(parts) - matrix.double()).abs()
        # Half a unit of the second part; of small entries float16's smallest step, 2^-21 of the largest.
        bound = matrix.double().abs() * (2.0**-17 if dtype is torch.bfloat16 else 2.0**-22)
        step = 0.0 if dtype is torch.bfloat16 else 2.0**-21 * float(matrix.abs().max())
        assert (error <= bound + step).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_matrix_of_the_rows_own_dtype_is_one_part(dtype: torch.dtype):
    matrix = torch.randn(4, 3).to(dtype)
    parts = split(matrix, dtype)
    assert parts.number == 1 and parts.unscale is None and parts.matrix.data_ptr() == matrix.data_ptr()


def test_what_is_no_number_stays_in_the_first_part():
    matrix = torch.tensor([[torch.inf, 1.0, torch.nan], [-torch.inf, 3.0000001, 0.0]])
    for dtype in HALVES:
        high, low = split(matrix, dtype).matrix.chunk(2)
        assert high.isinf().sum() == 2 and high.isnan().sum() == 1 and torch.isfinite(low).all()
        for still in (torch.zeros(3, 2), torch.zeros(0, 2)):
            assert split(still, dtype).matrix.numel() == 2 * still.numel()


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_products_meet_the_oracle(dtype: torch.dtype, size: float, tensor_cores: TensorCores):
    """Half a unit of the half type beyond what rounding the exact result costs."""
    x, matrix = torch.randn(ROWS, 48).to(dtype), size * torch.randn(48, 40)
    exact = x.double() @ matrix.double()
    for parts in (split(matrix, dtype), split(matrix, dtype, beside=True)):
        got = multiply(x, parts)
        assert got.dtype is torch.float32
        if parts.beside:
            assert got.shape == (ROWS, 80)
            got = got[:, :40] + got[:, 40:]
        unit = torch.nn.functional.normalize(got, dim=1).to(dtype)
        assert_close(unit, torch.nn.functional.normalize(exact, dim=1), "cuda_op")
    assert tensor_cores.shapes == [(ROWS, 96, 40), (ROWS, 48, 80)]
    assert_close(product(x, matrix) / size, exact / size, "half_product", dtype=dtype)


def test_who_is_multiplied_as_it_is(tensor_cores: TensorCores):
    half, single = torch.randn(5, 8).bfloat16(), torch.randn(8, 6)
    product(half, single)
    product(half.float(), single), product(half.double(), single), product(half.float(), single.bfloat16())
    assert tensor_cores.shapes == [], "few rows do not pay for a split; float32 rows stay float32"
    product(half, single.bfloat16())
    assert tensor_cores.shapes == [(5, 8, 6)]
    assert product(half.double(), single).dtype is torch.float64
    many = half.repeat(13, 1)
    product(many, single), product(many, single.half())
    assert tensor_cores.shapes[1:] == [(65, 16, 6)] * 2
    assert product(half[:0], single.bfloat16()).shape == (0, 6)


def test_autocast_changes_nothing(tensor_cores: TensorCores):
    x, matrix = torch.randn(4, 8), torch.randn(8, 3)
    want, half = product(x, matrix), product(x.half(), matrix.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(x, matrix), want) and torch.equal(product(x.half(), matrix.half()), half)


def test_on_the_cpu_rows_are_widened():
    x, matrix = torch.randn(ROWS, 8).half(), torch.randn(8, 3)
    assert not half_products.served(x) and torch.equal(product(x, matrix), x.float() @ matrix)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pytorch_takes_the_products_of_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Shapes and dtypes on fake CUDA tensors: float32 comes out of half operands."""
    if "dtype" not in torch.ops.aten.mm.overloads():
        pytest.skip("this PyTorch has no torch.mm(out_dtype=)")
    asked = []
    monkeypatch.setattr(half_products, "_capable", lambda *given: (asked.append(given), True)[1])
    with FakeTensorMode():
        x, matrix = (torch.empty(*s, device="cuda", dtype=dtype) for s in ((ROWS, 16), (16, 7)))
        assert half_products.served(x) and asked == [(x.device, dtype)]
        for right in (matrix, matrix.float(), matrix.double()):
            got = product(x, right)
            assert got.is_cuda and got.shape == (ROWS, 7) and got.dtype is torch.float32
        assert multiply(x, split(matrix.float(), dtype, beside=True)).shape == (ROWS, 14)
        scaled = split(matrix.float(), torch.float16)
        assert scaled.unscale is not None and scaled.unscale.is_cuda, "looking would wait for the device"


@pytest.mark.parametrize("major,answers", [(9, (True, True)), (7, (False, True)), (6, (False, False))])
def test_which_devices_take_them(major: int, answers: tuple, monkeypatch: pytest.MonkeyPatch):
    half_products._capable.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    device = torch.device("cuda", 0)
    assert tuple(half_products._capable(device, dtype) for dtype in HALVES) == answers
    half_products._capable.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not half_products._capable(device, torch.float16), "its products are not these"
    half_products._capable.cache_clear()
