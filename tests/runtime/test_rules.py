"""What `auto` takes on a GPU where nothing was measured: the table, and the way from it to a call."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.choice import choose as choose_training
from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext._engines.tower_descent.choice import choose as choose_tower
from semobridge_ext._version import __version__
from semobridge_ext.runtime import rules, self_check
from semobridge_ext.runtime import thresholds as _thresholds
from semobridge_ext.runtime.choice import Kernels, resolve
from semobridge_ext.runtime.explain import choices
from tests.support.fake_gpu import CUDA, FakeGpu

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
OPS = {
    kernels.op
    for path in sorted(Path(sb.__file__).parent.glob("_ops/*/*.py"))
    if re.search(r"\bKernels\(", path.read_text())
    for kernels in vars(
        importlib.import_module(f"semobridge_ext._ops.{path.parent.name}.{path.stem}")
    ).values()
    if isinstance(kernels, Kernels)
}
LOOPS = {"tower_descent", "bridge_training"}


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("SEMOBRIDGE_THRESHOLDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    _thresholds.measured.cache_clear()


def automatic(op: str, dtype: torch.dtype = F32, size: int = 100) -> str:
    return resolve(op, CUDA, cuda=True, triton=True, work=(op, dtype, size))


def test_the_table_is_whole():
    assert set(rules.RULES) == {(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)} == set(rules.GAINS)
    for capability, rule in rules.RULES.items():
        assert set(rule) == OPS | LOOPS == set(rules.GAINS[capability])
        for pair in rule.values():
            for steps in pair:
                assert steps == sorted(steps) and steps[0][0] == 0, "every size has a choice"
                assert {backend for _, backend in steps} <= {"eager", "native", "triton"}
        for op, pair in rule.items():  # a reason for each
            for steps, gain in zip(pair, rules.GAINS[capability][op], strict=True):
                assert (gain is None) == (steps == [(0, "eager")]) and (gain is None or gain[0] <= gain[1])
    assert set(self_check._checks) == OPS | LOOPS, "what a rule takes can be checked"


def test_newer_architectures_take_the_nearest_older_rule(monkeypatch: pytest.MonkeyPatch):
    own = {(8, 0): (8, 0), (8, 9): (8, 9), (9, 0): (9, 0), (10, 0): (10, 0), (12, 0): (12, 0)}
    older = {(8, 6): (8, 0), (8, 7): (8, 0), (10, 3): (10, 0), (11, 0): (10, 0), (12, 1): (12, 0)}
    assert {found: rules.rule_for(found) for found in own | older} == own | older
    assert rules.rule_for((7, 5)) is None and rules.rule_for(None) is None
    monkeypatch.setattr(rules, "RULES", {(8, 0): {"a": ([(0, "native")],) * 2}, (9, 0): {}})
    assert rules.rule_for((8, 9)) == (8, 0) and rules.rule_for((10, 0)) == (9, 0)
    monkeypatch.setattr(rules, "capability", lambda device: (8, 6))
    assert rules.steps("a", CUDA, F32) == [(0, "native")] and rules.steps("b", CUDA, F32) == [(0, "eager")]
    monkeypatch.setattr(rules, "capability", lambda device: (9, 0))
    assert rules.steps("a", CUDA, F32) == [(0, "eager")]


def test_the_capability_of_a_device(monkeypatch: pytest.MonkeyPatch):
    ask = rules.capability.__wrapped__
    assert ask(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ask(CUDA) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ask(CUDA) == (9, 4)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert ask(CUDA) is None, "gfx942 is not sm_94"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_what_an_unmeasured_gpu_takes(
    dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    FakeGpu(monkeypatch, capability).passes(*OPS, *LOOPS)
    for op in OPS - {"support_logits"}:
        assert automatic(op, dtype, 1) == automatic(op, dtype, 10**9) == "native", op
    many = "eager" if dtype is F32 else "triton"
    assert automatic("support_logits", dtype, 10**9) == many and automatic("support_logits", dtype) == "eager"
    assert choose_tower("oti", CUDA, F32, dtype) == "cuda"
    with sb.backend("eager"):
        assert automatic("topk", dtype) == "eager" and choose_tower("oti", CUDA, F32, dtype) == "eager"


def test_architectures_have_their_own_rules(monkeypatch: pytest.MonkeyPatch):
    """The tables of today have the same steps for all: one is given another."""
    gpu = FakeGpu(monkeypatch, (12, 0))
    gpu.passes(*OPS)
    half = rules.RULES[12, 0]["support_logits"][1]
    late = [(0, "eager"), (1 << 24, "triton")], half
    monkeypatch.setitem(rules.RULES, (12, 0), rules.RULES[12, 0] | {"support_logits": late})
    assert automatic("support_logits", F32, 1 << 24) == "triton"
    assert automatic("support_logits", F32, (1 << 24) - 1) == "eager"
    gpu.capability = (9, 0)
    assert automatic("support_logits", F32, 1 << 24) == "eager"


def test_a_choice_costs_few_calls(monkeypatch: pytest.MonkeyPatch):
    """Of Python's functions: every call of an operator on a GPU pays for them before it launches anything."""
    FakeGpu(monkeypatch).passes("topk")
    automatic("topk", F16)  # the first one runs the self-check
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        automatic("topk", F16)
    finally:
        sys.setprofile(None)
    assert called[:2] == ["automatic", "resolve"] and "passed" in called
    assert len(called) <= 12, called


def test_training_takes_its_kernels(monkeypatch: pytest.MonkeyPatch):
    FakeGpu(monkeypatch).passes(*LOOPS)
    assert choose_training("SeMoBridgeT", CUDA, F32) == (CudaTrainingPieces, False, True)
    assert choose_training("SeMoBridgeT", CUDA, F64).pieces is TorchTrainingPieces
    assert choose_tower("oti", CUDA, F64) == "torch"


def test_what_is_absent_leaves_plain_pytorch(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu(monkeypatch, built=False)
    gpu.passes(*OPS, *LOOPS)
    assert automatic("topk") == "eager" and choose_tower("oti", CUDA, F32) == "torch"
    assert automatic("support_logits", F16, 10**9) == "triton", "Triton needs no nvcc"
    FakeGpu(monkeypatch, triton=False).passes(*OPS)
    assert automatic("support_logits", F16, 10**9) == "eager" and automatic("topk") == "native"
    assert resolve("topk", CUDA, triton=True, work=("topk", F32, 5)) == "eager", "no kernel for this call"
    FakeGpu(monkeypatch, (7, 5)).passes(*OPS)
    assert automatic("topk") == "eager" and automatic("topk", F64) == "eager"


def test_a_measurement_goes_before_the_rule(monkeypatch: pytest.MonkeyPatch):
    FakeGpu(monkeypatch).passes(*OPS, *LOOPS)
    calls = {"topk float32": [(10, "eager"), (1000, "native")], "tower_descent float32": [(1, "eager")]}
    _thresholds.write(_thresholds.path(), "Test GPU", __version__, calls)
    assert [automatic("topk", F32, n) for n in (1, 10, 1000)] == ["eager", "eager", "native"]
    assert automatic("topk", F16, 10) == "native", "not measured"
    assert choose_tower("oti", CUDA, F32) == "torch" and choose_tower("oti", CUDA, F32, F16) == "cuda"


def test_loops_are_chosen_as_they_were_measured(monkeypatch: pytest.MonkeyPatch):
    """They asked without the size and dtype that a measured choice goes by."""
    FakeGpu(monkeypatch, (7, 5))
    calls = {"tower_descent bfloat16": [(1, "native")], "bridge_training float32": [(1, "native")]}
    _thresholds.write(_thresholds.path(), "Test GPU", __version__, calls)
    assert choose_tower("oti", CUDA, F32, BF16) == "cuda" and choose_tower("oti", CUDA, F32) == "torch"
    assert choose_training("SeMoBridgeT", CUDA, F32).pieces is CudaTrainingPieces


def test_the_choices_are_told(monkeypatch: pytest.MonkeyPatch):
    assert set(choices().values()) == {"native (CPU; no usable GPU)"} and set(choices()) == OPS | LOOPS
    gpu = FakeGpu(monkeypatch)
    gpu.passes(*OPS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    why = "rule of sm_90: on paper {} times as fast as PyTorch"
    gains = {
        (9, 0): rules.GAINS[9, 0] | {"topk": ((1.5, 2.0), (1.5, 2.0)), "support_logits": (None, (3.0, 40.0))}
    }
    monkeypatch.setattr(rules, "GAINS", gains)
    found = choices()
    assert found["topk"] == f"native ({why.format('1.5 to 2')})"
    assert found["support_logits"] == (
        "float32: PyTorch (rule of sm_90: on paper no kernel is ahead of PyTorch); float16, bfloat16: "
        f"PyTorch, triton from 1048576 ({why.format('3 to 40')})"
    )
    self_check.register("topk", lambda device, dtype: [torch.ones(2) * len(sb.runtime.backend.requested())])
    with pytest.warns(RuntimeWarning, match="topk"):
        automatic("topk")
    assert choices()["topk"].startswith(
        "float32: PyTorch (native failed its self-check: differs from plain PyTorch by 2.0e-01 of"
    )
    calls = {"topk float32": [(1, "eager"), (1000, "native")]}
    _thresholds.write(_thresholds.path(), "Test GPU", __version__, calls)
    self_check._found.clear()
    assert choices()["topk"].startswith("float32: PyTorch, native from 1000 (calibrated); float16, bf")
    monkeypatch.setattr(sb.runtime.backend, "HAS_CUDA", False)
    assert choices()["symmetric_kl"].startswith(
        "float32: PyTorch (native was not built with CUDA) (rule of sm_90: on paper "
    )
    gpu.capability = (7, 0)
    assert choices()["blend_logits"] == "PyTorch (no rule for this architecture)"
    with sb.backend("eager"):
        assert choices()["topk"] == "eager (asked for)"
