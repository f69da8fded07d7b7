"""What `auto` runs on a GPU where no kernel takes the call: the folded matrix, in the rows' own type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import semobridge_ext as sb
from semobridge_ext._ops.project_normalize import prepared
from semobridge_ext.bridging import bridge_module
from tests.support.assertions import assert_close
from tests.support.projections import chain
from tests.support.tensor_cores import TensorCores, tensor_cores

__all__ = ["tensor_cores"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::mm":
            self.found.append((args[0].shape, args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors take the way of CUDA tensors under ``auto`` with nothing measured and no rule."""
    for module in (bridge_module, prepared):
        monkeypatch.setattr(module, "direct", lambda x, other: "auto")
    monkeypatch.setattr(prepared, "direct_kernel", lambda *args, **named: "")


def run(call: Any, x: Tensor) -> tuple[Tensor, list]:
    with Products() as products:
        got = call(x)
    return got, products.found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bridge_multiplies_once(dtype: torch.dtype, tensor_cores: TensorCores):
    w, f = torch.randn(24, 16), torch.randn(2, 20, 16).to(dtype)
    b = sb.Bridge(w)
    for _ in range(2):
        got, products = run(b, f)
        deep = 16 if dtype is torch.float32 else 32  # both parts of the projector
        assert products == [((40, deep), (deep, 16))]
        assert_close(got, chain(f, w, inverse=b.inverse.detach()), "bridge")
    assert len(tensor_cores.shapes) == 2 * (dtype is not torch.float32)
    kept = {matrix.data_ptr() for _, matrix in tensor_cores.products}
    assert len(kept) <= 1, "the projector is cut once"
    assert b(f[:0]).shape == (0, 20, 16) and b(f[0, 0]).shape == (16,)
    assert (b(torch.zeros(3, 16, dtype=dtype)) == 0).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(b(f), got)


def test_an_edited_inverse_is_folded_anew(tensor_cores: TensorCores):
    w, f = torch.randn(12, 8), torch.randn(5, 8).bfloat16()
    b = sb.Bridge(w)
    b(f)
    with torch.no_grad():
        b.inverse.mul_(torch.rand(8, 1))
    assert_close(b(f), chain(f, w, inverse=b.inverse.detach()), "bridge")


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_maps_keep_their_operands(normalize: bool, dtype: torch.dtype, tensor_cores: TensorCores):
    matrix, offset = torch.randn(14, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    x = torch.randn(30, 14).to(dtype)
    mapped = sb.LinearMap(matrix, offset, normalize=normalize)
    got, products = run(mapped, x)
    half = dtype in (torch.bfloat16, torch.float16)
    assert products == [((30, 28), (28, 9)) if half else ((30, 14), (14, 9))]
    read = torch.float64 if dtype is torch.float64 else torch.float32
    want = x.double() @ matrix.to(read).double() + offset.to(read).double()
    assert_close(got, torch.nn.functional.normalize(want, dim=1) if normalize else want, "op")


def test_the_unnormalised_chain_stays_two_products(tensor_cores: TensorCores):
    """The norm between them cannot be folded: the operators are due."""
    b, f = sb.Bridge(torch.randn(12, 8), text_length=3.0), torch.randn(5, 8)
    want = chain(f, b.text_projection, inverse=b.inverse.detach(), text_length=3.0, normalize=False)
    assert_close(b(f, normalize=False), want, "bridge")
