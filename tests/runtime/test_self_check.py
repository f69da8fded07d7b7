"""A rule's kernel against plain PyTorch at its first use: passing, wrong, raising, while capturing."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.backend import requested
from semobridge_ext.runtime.choice import resolve
from tests.support.fake_gpu import CUDA, FakeGpu

F32, F16 = torch.float32, torch.float16
CPU = torch.device("cpu")
OPS = sorted(set(self_check._checks) - {"tower_descent", "bridge_training"})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    monkeypatch.delenv("SEMOBRIDGE_THRESHOLDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return FakeGpu(monkeypatch)


def topk(dtype: torch.dtype = F32) -> str:
    return resolve("topk", CUDA, cuda=True, triton=True, work=("topk", dtype, 100))


def register(by: float | Exception, asked: list[str] | None = None) -> None:
    """The kernel of topk is off by that much of the largest value, or raises."""

    def check(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        if asked is not None:
            asked.append(requested())
        if requested() == "eager":
            return [torch.ones(4), torch.tensor([-8.0, 1.0])]
        if isinstance(by, Exception):
            raise by
        return [torch.ones(4), torch.tensor([-8.0, 1.0 + 8 * by])]

    self_check.register("topk", check)


def test_a_right_kernel_is_checked_once(gpu: FakeGpu):
    asked: list[str] = []
    register(1e-4, asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [topk() for _ in range(3)] == ["native"] * 3 and asked == ["native", "eager"]
        assert topk(F16) == "native" and len(asked) == 4, "another dtype is another kernel"
    assert requested() == "auto"


@pytest.mark.parametrize("by", [2e-3, -0.5, float("nan"), float("inf")])
def test_a_wrong_kernel_never_runs(by: float, gpu: FakeGpu):
    asked: list[str] = []
    register(by, asked)
    said = (
        r"^topk: the native kernel failed its check on cuda:0 in float32: it differs from plain PyTorch by "
    )
    with pytest.warns(RuntimeWarning, match=said + ".*Please report .*semobridge-ext info") as told:
        assert topk() == "eager"
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert topk() == "eager" and len(asked) == 2, "it is remembered, and said once"
    assert "differs" in self_check.failure("topk", "native", F32, CUDA)
    with sb.backend("native"):
        assert resolve("topk", CUDA, cuda=True) == "native", "who asks for it by name gets it"


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel image is available\nfor execution"), OSError("x"), AttributeError("y")]
)
def test_a_kernel_that_raises_never_runs(error: Exception, gpu: FakeGpu):
    register(error)
    with pytest.warns(
        RuntimeWarning, match=f"it raised {type(error).__name__}: .*plain PyTorch serves"
    ) as told:
        assert topk() == "eager"
    assert topk() == "eager" and "\n" not in str(told[0].message)


def test_an_operator_without_a_check_takes_no_kernel(gpu: FakeGpu):
    self_check._checks.pop("topk")
    with pytest.warns(RuntimeWarning, match="it has no check"):
        assert topk() == "eager"


def test_nothing_is_checked_in_a_capture(gpu: FakeGpu):
    asked: list[str] = []
    register(0.0, asked)
    gpu.capturing = True
    assert topk() == "eager" and asked == [], "unchecked: plain PyTorch"
    gpu.capturing = False
    assert topk() == "native" and len(asked) == 2, "the question stayed open"
    gpu.capturing = True
    assert topk() == "native", "checked before"


def test_the_caller_s_surroundings_do_not_matter(gpu: FakeGpu):
    seen: list[tuple] = []

    def check(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), gpu.waits,
                     self_check.running.get(), torch._C._len_torch_dispatch_stack()))  # fmt: skip
        return [torch.ones(2)]

    self_check.register("topk", check)
    gpu.waits = False  # set_sync_debug_mode("error")
    with torch.inference_mode(), torch._subclasses.fake_tensor.FakeTensorMode():
        assert topk() == "native"
    assert seen == [(False, False, True, True, 0)] * 2
    assert gpu.waits is False and not self_check.running.get()


def test_threads_share_one_check(gpu: FakeGpu):
    asked: list[str] = []
    register(0.0, asked)
    start = threading.Barrier(4)
    found: list[str] = []

    def ask() -> None:
        start.wait()
        found.append(topk())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["native"] * 4 and len(asked) == 2


def test_a_check_leaves_the_generator_alone():
    state = torch.get_rng_state()
    x = self_check.fixed(3, 4, device=CPU, dtype=F16)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(
        x, self_check.fixed(3, 4, device=CPU).half()
    )
    assert len(set(self_check.fixed(50, 4, device=CPU).flatten().tolist())) > 20


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", self_check.TOLERANCE)
def test_the_fixed_calls_agree_on_the_cpu(op: str, dtype: torch.dtype):
    """Their native kernels and plain PyTorch are other programs there too."""
    assert self_check._compare((op, "native", dtype, CPU)) == ""


@pytest.mark.parametrize("op", OPS)
def test_the_fixed_calls_notice_a_change(op: str):
    """One value of one result, by a hundredth of the largest."""
    results = self_check._checks[op](CPU, F32)
    for i, x in enumerate(results):
        assert float(x.float().abs().max()) > 0.1 and torch.isfinite(x).all()
        spoilt = [y.clone() for y in results]
        spoilt[i].view(-1)[x.numel() // 2] += 0.01 * float(x.abs().max())

        def check(device: torch.device, dtype: torch.dtype, spoilt=spoilt) -> list[Tensor]:
            return spoilt if requested() == "native" else results

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(self_check._checks, op, check)
            assert "differs from plain PyTorch" in self_check._compare((op, "native", F32, CPU))
