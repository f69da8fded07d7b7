"""bench/gpu/measure.py whole, on CPU tensors under a stand-in for the device: right results, every line."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import semobridge_ext as sb
from tests.support import cuda_stand_in
from tests.support.scripts import BENCH, load_script
from tests.support.source_tree import need_source


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    need_source()
    monkeypatch.syspath_prepend(str(BENCH / "gpu"))
    cuda_stand_in.install(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    torch.set_num_threads(1)
    return load_script("gpu/measure")


def run(measure: ModuleType, out: Path, *words: str) -> tuple[int, dict, str]:
    status = measure.main(["--out", str(out), "--device", "cpu", "--tiny", *words])
    return status, json.loads((out / "gpu_bench.json").read_text()), (out / "gpu_bench.md").read_text()


def test_every_row_is_right_before_it_is_timed(measure: ModuleType, tmp_path: Path):
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    status, record, table = run(measure, tmp_path)
    assert status == 0 and torch.is_grad_enabled()
    rows = record["rows"]
    states = Counter(r["state"] for r in rows)
    assert set(states) == {"timed", "refused"}, [r for r in rows if r["state"] not in ("timed", "refused")]
    calls = list(dict.fromkeys(r["call"] for r in rows))
    kinds = Counter(call.split()[0] for call in calls)
    assert kinds == {"bridge": 4, "topk": 4, "support_logits": 2, "predict": 2, "symmetric_kl": 2, "OTI": 5,
                     "OVI": 1, "SeMoBridge-T": 1}  # fmt: skip
    for call in calls:
        mine = {r["member"]: r for r in rows if r["call"] == call}
        assert {"plain", "auto", "native", "triton"} <= set(mine), call
        assert all(mine[m]["state"] == "timed" for m in mine if m not in ("triton", "library")), call
        assert mine["triton"]["state"] == "refused" and "triton" in mine["triton"]["told"]
    assert sum(r["member"] == "compile" for r in rows) == 14 + 2, "every op, and two of the loops"
    timed = [r for r in rows if r["state"] == "timed"]
    for r in timed:
        assert r["device"]["low"] <= r["device"]["median"] <= r["device"]["high"]
        assert r["whole"]["median"] >= r["python"]["median"] > 0 and 0 <= r["ahead"] <= 1
        assert r["ratios"]["plain"] > 0 and r["roofline"] >= 0 and r["peak_bytes"] == 1 << 20
        assert (r["member"] == "mm") == ("error" not in r)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) and len({line.count("|") - line.count("\\|") for line in lines}) == 1
    assert "Test GPU" in table and record["machine"]["device"] == "Test GPU"


def test_a_budget_ends_it_between_two_rows(measure: ModuleType, tmp_path: Path):
    status, record, table = run(measure, tmp_path, "--seconds", "0")
    assert status == 0 and record["rows"] == []
    assert record["left_out"].startswith("21 of the problems") and record["left_out"] in table


def test_torch_compile_is_not_begun_late(measure: ModuleType, tmp_path: Path):
    _, record, table = run(measure, tmp_path, "--seconds", "59", "--only", "symmetric_kl")
    assert [r["state"] for r in record["rows"] if r["member"] == "compile"] == ["left out"] * 2
    assert "left out: less than 60 s were left" in table


def test_a_wrong_result_is_not_timed(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = sb.ops.symmetric_kl
    monkeypatch.setattr(sb.ops, "symmetric_kl", lambda a, b: right(a, b) * 1.01)
    status, record, table = run(measure, tmp_path, "--only", "symmetric_kl")
    ours = [r for r in record["rows"] if r["member"] in ("auto", "native")]
    assert status == 1 and {r["state"] for r in ours} == {"wrong"} and "device" not in ours[0]
    assert "wrong: error 1.0e-02 against float64, at most 1e-04" in table


@pytest.mark.parametrize(
    ("error", "state"),
    [(RuntimeError("CUDA error: an illegal memory access"), "failed"), (ValueError("odd | shape"), "failed"),
     (torch.OutOfMemoryError("CUDA out of memory. Tried"), "refused"),
     (NotImplementedError("topk: no kernel; use backend('auto')"), "refused")],
)  # fmt: skip
def test_what_a_member_raises(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
):
    """The next member runs all the same, and so does the next problem."""

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(sb.ops, "symmetric_kl", broken)
    monkeypatch.setattr(sys.modules["problems_ops"], "topk", broken)
    status, record, table = run(measure, tmp_path, "--only", "symmetric_kl")
    found = {r["member"]: r["state"] for r in record["rows"]}
    assert found["auto"] == state and found["plain"] == "timed" and found["all"] == state
    assert status == (state == "failed") and type(error).__name__ in table


def test_cuvs_where_it_is_installed(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def search(index: torch.Tensor, q: torch.Tensor, k: int) -> torch.return_types.topk:
        return torch.topk(q.double() @ index.double().T, k)

    fake = SimpleNamespace(build=lambda rows, metric: rows, search=search)
    monkeypatch.setitem(sys.modules, "cuvs.neighbors.brute_force", fake)
    ops = sys.modules["problems_ops"]
    monkeypatch.setattr(ops, "importlib", SimpleNamespace(
        util=SimpleNamespace(find_spec=lambda name: name), import_module=importlib.import_module,
    ))  # fmt: skip
    _, record, _ = run(measure, tmp_path, "--only", "topk 10 of 7")
    library = [r for r in record["rows"] if r["member"] == "library"]
    assert [r["state"] for r in library] == ["timed"] * 2 and library[0]["error"] < 0.01


# -- the clock ---------------------------------------------------------------------------------------


class Ticking:
    """A device whose calls take what they are told, and a host whose calls return at once or late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: float, host: float) -> None:
        self.now, self.free, self.took, self.host = 0.0, 0.0, device, host
        clock = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = max(clock.free, clock.now)

            def query(self) -> bool:
                return self.at <= clock.now

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        cuda_stand_in.install(monkeypatch)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.launch(cycles / 2e9))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(self, "now", max(self.now, self.free)))
        timing = sys.modules["timing"]
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def launch(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds

    def call(self) -> None:
        """Two launches with the host's time before each."""
        for _ in range(2):
            self.now += self.host / 2
            self.launch(self.took / 2)


@pytest.mark.parametrize(("device", "host"), [(1e-3, 1e-5), (2e-6, 1e-3)])
def test_the_device_s_time_is_apart_from_python_s(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch, device: float, host: float
):
    ticking = Ticking(monkeypatch, device, host)
    clock = sys.modules["timing"].Clock(torch.device("cpu"), flush_bytes=64)
    times = clock.measure(ticking.call)
    assert times.device.median == pytest.approx(device) and times.python.median == pytest.approx(host)
    assert times.whole.median == pytest.approx(max(host + device / 2, device + host / 2)) and times.ahead == 1


def test_a_host_that_falls_behind_is_marked(measure: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """A call longer in Python than the device is held."""
    ticking = Ticking(monkeypatch, 1e-6, 0.2)
    times = sys.modules["timing"].Clock(torch.device("cpu"), flush_bytes=64).measure(ticking.call)
    assert times.ahead == 0 and times.device.median > 0.05
    row = {"call": "x", "member": "auto", "state": "timed", "ahead": 0.0, "ratios": {}, "roofline": 0.5,
           **{k: times.device._asdict() for k in ("device", "python", "whole")}}  # fmt: skip
    assert " †" in measure.line(row, "x")


def test_the_flush_is_larger_than_the_cache(measure: ModuleType):
    clock = sys.modules["timing"].Clock(torch.device("cpu"))
    assert clock._junk.numel() * 4 == 4 * cuda_stand_in.PROPERTIES.L2_cache_size


def test_rates_are_bytes_and_operations(measure: ModuleType, monkeypatch: pytest.MonkeyPatch):
    ticking = Ticking(monkeypatch, 0.0, 0.0)
    timing = sys.modules["timing"]
    clock = timing.Clock(torch.device("cpu"), flush_bytes=64)
    own = clock.measure
    monkeypatch.setattr(clock, "measure", lambda call: (call(), own(lambda: ticking.launch(1e-3)))[1])
    rates = timing.measured_rates(clock, torch.device("cpu"), copy_bytes=1000, side=10)
    assert rates.bandwidth == pytest.approx(2e6) and rates.half == rates.single == pytest.approx(2e6)
    assert rates.floor(4e6, 1e6, True) == pytest.approx(2) and rates.floor(1, 8e6, False) == pytest.approx(4)


def test_quartiles(measure: ModuleType):
    of = sys.modules["timing"].Spread.of
    assert of([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0) and of([7.0]) == (7.0, 7.0, 7.0)


def test_errors_are_the_worst_row_s(measure: ModuleType):
    worst = sys.modules["timing"].worst_row
    want = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    assert worst(want + torch.tensor([[0.0, 0.5], [0.0, 0.1]]), want) == pytest.approx(0.1)
    assert worst(want * float("nan"), want) == float("inf")
    with pytest.raises(AssertionError, match="without signal"):
        worst(want, want * 0)


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(BENCH / "gpu"))
    script = load_script("gpu/measure")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^gpu_bench: no GPU that PyTorch can use; run it on a machine"):
        script.main(["--out", str(tmp_path)])
