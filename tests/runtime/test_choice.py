"""runtime/choice.py: which calls go past the dispatcher, and which kernel then runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import semobridge_ext as sb
from semobridge_ext._ops.project_normalize.takes import PREPARED
from semobridge_ext._version import __version__
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import thresholds as _thresholds
from semobridge_ext.runtime.choice import Kernels, choose, direct, direct_kernel

F32 = torch.float32


def test_plain_tensors_go_past_the_dispatcher():
    x, w = torch.randn(2, 3), torch.nn.Parameter(torch.randn(3), requires_grad=False)
    assert direct(x, w) == "cpu" and direct(x, x) == "cpu"
    with sb.backend("native"):
        assert direct(x, w) == "cpu"
    with sb.backend("eager"):
        assert direct(x, w) == ""
    with sb.backend("triton"):
        assert direct(x, w) == "triton"
    meta = x.to("meta")
    assert direct(meta, meta) == "" and direct(meta, w) == "" and direct(x, meta) == "", "other devices"


def test_what_an_operator_has_to_see():
    x, w = torch.randn(2, 3), torch.randn(3)
    assert direct(w.clone().requires_grad_(), w) == "" and direct(x, w.clone().requires_grad_()) == ""
    with torch.no_grad():
        assert direct(x, w.clone().requires_grad_()) == "cpu"
    others: dict[str, Tensor] = {
        "a subclass": torch.nn.Parameter(x), "integers": x.long(), "sparse": x.to_sparse(),
        "a negative view": torch.randn(2, 3, dtype=torch.complex64).conj().imag,
    }  # fmt: skip
    for name, other in others.items():
        assert direct(other, w) == "", name
    seen: list[str] = []
    torch.func.vmap(lambda row: (seen.append(direct(row, row)), row)[1])(x)
    assert seen == [""]
    with FakeTensorMode():
        assert direct(torch.empty(2), torch.empty(2)) == ""


def test_without_the_native_core_there_is_no_short_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_backend, "_C", None)
    assert direct(torch.ones(1), torch.ones(1)) == ""


def test_an_operator_is_asked_with_its_own_arguments():
    asked: list[tuple] = []

    def takes(*args: object) -> bool:
        asked.append(args)
        return False

    kernels = Kernels("the_op", takes, takes, lambda *args: 1)
    x = torch.ones(2, 3)
    assert choose(kernels, x, 7) == "native" and asked == [(x, 7), (x, 7)]
    with sb.backend("triton"):
        with pytest.raises(NotImplementedError, match=r"^the_op: backend 'triton' has no kernel"):
            choose(kernels, x, 7)
        with pytest.raises(NotImplementedError, match=r"^a_door: backend 'triton' has no kernel"):
            choose(kernels, x, 7, called="a_door")


def test_the_kernel_of_a_prepared_projection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("SEMOBRIDGE_THRESHOLDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_thresholds, "_name", lambda device: "Test GPU")
    monkeypatch.setattr(_backend, "HAS_CUDA", True)
    _thresholds.measured.cache_clear()
    steps = [(10, "native"), (1000, "triton")]
    calls = {"prepared_projection float32": steps, "prepared_projection float64": steps}
    _thresholds.write(_thresholds.path(), "Test GPU", __version__, calls)
    matrix, wide = torch.empty(4, 6), torch.empty(4, 1025)
    with FakeTensorMode():

        def kernel(asked: str, rows: int, right: Tensor = matrix, dtype: torch.dtype = F32) -> str:
            return direct_kernel(asked, PREPARED, torch.empty(rows, 4, device="cuda", dtype=dtype), right)

        assert [kernel("auto", n) for n in (1, 10, 999)] == ["", "native", "native"]
        assert kernel("native", 1) == "native" and kernel("native", 1, dtype=torch.float64) == ""
        assert kernel("auto", 50, dtype=torch.float64) == "", "the operator has a kernel, this has none"
        assert kernel("auto", 50, wide) == "", "no such width was measured"
        monkeypatch.setattr(_backend, "HAS_CUDA", False)
        assert kernel("auto", 50) == "" and kernel("native", 1) == ""
    _thresholds.measured.cache_clear()
