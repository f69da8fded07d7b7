"""What `auto` takes on a GPU: measured choices, their file, and the command, over stand-ins for the GPU."""

from __future__ import annotations

import importlib
import json
import re
import sys
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext._ops.topk.takes import KERNELS as TOPK
from semobridge_ext.cli import calibration_cases, calibration_loops
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import calibration
from semobridge_ext.runtime import thresholds as _thresholds
from semobridge_ext.runtime.calibration import TOLERANCE, Case, Measured, measure, thresholds
from semobridge_ext.runtime.choice import Kernels, resolve
from tests.support.fresh import Program, run_fresh

# What the package says may be measured: every operator's `Kernels`.
MEASURED = {
    kernels.op
    for path in sorted(Path(sb.__file__).parent.glob("_ops/*/*.py"))
    if re.search(r"\bKernels\(", path.read_text())
    for kernels in vars(
        importlib.import_module(f"semobridge_ext._ops.{path.parent.name}.{path.stem}")
    ).values()
    if isinstance(kernels, Kernels)
}
MEASURED_BY_DTYPE = {
    *product(MEASURED, TOLERANCE), *product(["tower_descent"], TOLERANCE), ("bridge_training", torch.float32),
}  # fmt: skip
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
F32, F16 = torch.float32, torch.float16


@pytest.fixture(autouse=True)
def own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("SEMOBRIDGE_THRESHOLDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_thresholds, "_name", lambda device: "Test GPU")
    _thresholds.measured.cache_clear()
    yield
    _thresholds.measured.cache_clear()


def stored(calls: dict, version: str = sb.__version__) -> Path:
    _thresholds.write(_thresholds.path(), "Test GPU", version, calls)
    return _thresholds.path()


WRITERS = """
import os, sys
from pathlib import Path
from semobridge_ext.runtime import thresholds
wait, begin = os.pipe()
children = []
for n in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(begin)
        os.read(wait, 1)  # until all are there, and the other end is closed
        for i in range(8):
            thresholds.write(Path(sys.argv[1]), f"card {n} {i}", "1", {"topk float32": [(i, "eager")]})
        os._exit(0)
os.close(begin)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path):
    """Each read the file before another had replaced it, and wrote it back without what that had added."""
    place = tmp_path / "here" / "thresholds.json"
    (done,) = run_fresh([Program(WRITERS, {}, [str(place)])])
    assert done.returncode == 0, done.stderr
    found = _thresholds.read(place)
    assert sorted(found) == sorted(f"card {n} {i}" for n in range(4) for i in range(8))
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_nothing_measured_leaves_the_choice_to_the_rules():
    assert _thresholds.choose("topk", CUDA, F32, 10**9) is None


def test_a_size_takes_the_choice_of_the_next_smaller_measured_one():
    stored({"topk float32": [(10, "native"), (1000, "triton"), (5000, "eager")]})
    for size, want in ((1, "eager"), (10, "native"), (999, "native"), (1000, "triton"), (10**9, "eager")):
        assert _thresholds.choose("topk", CUDA, F32, size) == want
    assert _thresholds.choose("topk", CUDA, F16, 50) is None
    stored({"blend_logits float32": [(1, "native")]})
    assert _thresholds.choose("blend_logits", CUDA, F32, 5) == "native"
    assert _thresholds.choose("topk", CUDA, F32, 50) is None, "a device's section is replaced as a whole"


@pytest.mark.parametrize("what", ["semobridge-ext", "torch", "triton", "driver"])
def test_choices_of_other_versions_are_ignored_and_said(what: str, monkeypatch: pytest.MonkeyPatch):
    """They were taken for this one's, although the file said with what they were measured."""
    now = _thresholds.versions()
    assert set(now) == {"torch", "triton", "driver"} and now["torch"] == torch.__version__
    with monkeypatch.context() as patch:
        if what != "semobridge-ext":
            patch.setattr(_thresholds, "versions", lambda: {**now, what: "0.0.0"})
        stored({"topk float32": [(1, "native")]}, "0.0.0" if what == "semobridge-ext" else sb.__version__)
    said = rf"Test GPU were measured with {what} 0\.0\.0 \(now .*semobridge-ext calibrate"
    with pytest.warns(RuntimeWarning, match=said) as told:
        assert [_thresholds.choose("topk", CUDA, F32, n) for n in (5, 6)] == [None, None]
    assert len(told) == 1
    stored({"topk float32": [(1, "native")]})
    assert _thresholds.choose("topk", CUDA, F32, 5) == "native", "measured again"


def test_the_driver_s_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 UTC 2025\nGCC\n")
    monkeypatch.setattr(_thresholds, "_DRIVER", told)
    assert _thresholds.versions()["driver"] == "580.65.06"
    monkeypatch.setattr(_thresholds, "_DRIVER", tmp_path / "none")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    assert _thresholds.versions()["driver"] == "CUDA 13000"


def test_other_devices_are_kept(monkeypatch: pytest.MonkeyPatch):
    stored({"topk float32": [(1, "native")]})
    _thresholds.write(_thresholds.path(), "Other GPU", sb.__version__, {})
    assert _thresholds.choose("topk", CUDA, F32, 5) == "native"
    monkeypatch.setattr(_thresholds, "_name", lambda device: "Other GPU")
    assert _thresholds.choose("topk", CUDA, F32, 5) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "x", "devices": {}}',
             json.dumps({"format": _thresholds.FORMAT, "devices": {"T": {"calls": {"a": [["b", 1]]}}}})]
)  # fmt: skip
def test_a_foreign_file(text: str, monkeypatch: pytest.MonkeyPatch):
    _thresholds.path().parent.mkdir(parents=True)
    _thresholds.path().write_text(text)
    with pytest.warns(RuntimeWarning, match=r"must be a .* file, got .*; remove it, or write it again"):
        assert _thresholds.choose("topk", CUDA, F32, 5) is None
    monkeypatch.setenv("SEMOBRIDGE_THRESHOLDS", str(_thresholds.path()))
    _thresholds.measured.cache_clear()
    with pytest.raises(ValueError, match="must be a 'semobridge-ext thresholds 2' file"):
        _thresholds.choose("topk", CUDA, F32, 5)


def test_a_file_of_the_first_format_is_remade():
    _thresholds.path().parent.mkdir(parents=True)
    old = {
        "format": "semobridge-ext thresholds 1",
        "devices": {"Test GPU": {"calls": {"bridge float32": []}}},
    }
    _thresholds.path().write_text(json.dumps(old))
    with pytest.warns(RuntimeWarning, match="write it again with: semobridge-ext calibrate"):
        assert _thresholds.choose("topk", CUDA, F32, 5) is None
    stored({"topk float32": [(1, "native")]})
    assert _thresholds.choose("topk", CUDA, F32, 5) == "native"
    assert set(_thresholds.read(_thresholds.path())["Test GPU"]["calls"]) == {"topk float32"}


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SEMOBRIDGE_THRESHOLDS", str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"none\.json must be"):
        _thresholds.choose("topk", CUDA, F32, 5)


def test_auto_takes_what_was_measured_and_can_be_had(monkeypatch: pytest.MonkeyPatch):
    stored({"topk float32": [(10, "native"), (1000, "triton")]})
    monkeypatch.setattr(_backend, "HAS_CUDA", True)

    def choice(size: int, **kernels: bool) -> str:
        return resolve("topk", CUDA, work=("topk", F32, size), **kernels)

    assert choice(5, cuda=True, triton=True) == "eager"
    assert choice(10, cuda=True, triton=True) == "native" and choice(10, triton=True) == "eager"
    assert choice(1000, cuda=True, triton=True) == "triton" and choice(1000, cuda=True) == "eager"
    assert resolve("topk", CUDA, cuda=True) == "eager", "no size, no choice"
    with sb.backend("eager"):
        assert choice(10, cuda=True, triton=True) == "eager"
    monkeypatch.setattr(_backend, "HAS_CUDA", False)
    assert choice(10, cuda=True, triton=True) == "eager"


def case(results: dict[str, torch.Tensor | Exception]) -> Case:
    def call() -> torch.Tensor:
        found = results[_backend.requested()]
        if isinstance(found, Exception):
            raise found
        return found

    return Case(TOPK, (torch.ones(1, 2), torch.ones(7, 2), 1), call)


def clock(**times: float):
    return lambda call, device: times[_backend.requested()]


def test_the_fastest_right_backend_wins():
    x = torch.tensor([1.0, -2.0])
    same = {"eager": x, "native": x + 1e-4, "triton": x}
    m = measure(case(same), CPU, clock(eager=3.0, native=1.0, triton=2.0))
    assert m.choice == "native" and m.seconds == {"eager": 3.0, "native": 1.0, "triton": 2.0}
    assert measure(case(same), CPU, clock(eager=1.0, native=0.97, triton=2.0)).choice == "eager", "no gain"
    wrong = same | {"native": x + 0.1}
    m = measure(case(wrong), CPU, clock(eager=3.0, native=1.0, triton=2.0))
    assert m.choice == "triton" and "differs from plain PyTorch by 5.0e-02" in m.refused["native"]
    m = measure(case(same | {"triton": x * float("nan")}), CPU, clock(eager=3.0, native=4.0, triton=1.0))
    assert m.choice == "eager" and "triton" in m.refused
    missing = same | {"native": NotImplementedError("no kernel"), "triton": RuntimeError("not built")}
    m = measure(case(missing), CPU, clock(eager=3.0))
    assert m.choice == "eager" and m.refused == {"native": "no kernel", "triton": "not built"}


def test_a_tile_that_does_not_fit_is_skipped():
    """Triton's errors are no RuntimeErrors: they ended the measurement of everything behind them."""
    errors = pytest.importorskip("triton.runtime.errors")
    x = torch.tensor([1.0, -2.0])
    for error in (errors.OutOfResources(300, 227, "shared memory"), errors.PTXASError("ptxas: fatal")):
        m = measure(case({"eager": x, "native": error, "triton": error}), CPU, clock(eager=1.0))
        assert m.choice == "eager" and set(m.seconds) == {"eager"}, "all fail: plain PyTorch"
        assert m.refused["triton"].startswith(f"{type(error).__name__}: ")
        m = measure(case({"eager": x, "native": x, "triton": error}), CPU, clock(eager=3.0, native=1.0))
        assert m.choice == "native" and set(m.refused) == {"triton"}


def test_the_clock_warms_up_and_takes_the_median():
    calls: list[int] = []
    assert 0 <= calibration.seconds(lambda: calls.append(1), CPU, rounds=5) < 1 and len(calls) == 3 + 5


def test_a_device_on_which_pytorch_fails_is_not_measured():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(case({"eager": RuntimeError("illegal memory access")}), CPU, clock())


def test_choices_are_joined_by_size():
    def at(size: int, choice: str) -> Measured:
        rows = torch.empty(1, 0), torch.empty(size, 0), 1
        return Measured(Case(TOPK, rows, torch.empty), {}, {}, choice)

    found = [at(100, "native"), at(1, "eager"), at(1000, "native"), at(10**4, "triton")]
    assert thresholds(found) == {"topk float32": [(1, "eager"), (100, "native"), (10**4, "triton")]}


def small(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name, size in {"WIDTH": width, "LAYERS": 2, "SAMPLES": 3, "SHOTS": 2}.items():
        monkeypatch.setattr(calibration_loops, name, size)


def test_every_case_runs_and_agrees(monkeypatch: pytest.MonkeyPatch):
    """On the CPU, where native kernels exist for all of them; nothing is timed."""
    small(monkeypatch, 64)
    seen = set()
    for c in calibration_cases.cases(CPU, sizes=(1, 40), width=64, classes=5):
        m = measure(c, CPU, lambda call, device: 1.0)
        assert {"eager", "native"} == set(m.seconds), (c, m.refused)
        seen.add((c.op, c.dtype))
    assert seen == MEASURED_BY_DTYPE


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    small(monkeypatch, 32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    every = calibration_cases.cases
    asked, asked_of = [], set()

    def few(device: torch.device, *, width: int, classes: int):
        for c in every(CPU, sizes=(2,), width=width, classes=classes):
            asked.append({t.shape[-1] for t in c.args if isinstance(t, torch.Tensor) and t.dim() == 2})
            if c.op in ("support_logits", "blend_logits"):
                assert c.call().shape[-1] == 7
                asked_of.add(c.op)
            yield c

    monkeypatch.setattr(calibration_cases, "cases", few)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    tuning = SimpleNamespace(skipped=["a_kernel: a tile was skipped, it does not fit"])
    monkeypatch.setitem(sys.modules, "semobridge_ext.runtime.triton_tuning", tuning)
    monkeypatch.setattr(calibration, "measure", partial(measure, clock=lambda call, device: 1.0))
    out = tmp_path / "new" / "own.json"
    assert cli.main(["calibrate", "--width", "24", "--classes", "7", "--out", str(out)]) == 0
    assert set().union(*asked) == {24} and len(asked_of) == 2
    told = capsys.readouterr()
    assert f"written to {out}" in told.out and "topk float16" in told.out
    assert "topk, triton: " in told.err and told.err.count("topk, triton") == 1
    assert told.err.count("a tile was skipped") == 1
    calls = _thresholds.read(out)["Test GPU"]["calls"]
    assert set(calls) == {f"{op} {str(dtype).removeprefix('torch.')}" for op, dtype in MEASURED_BY_DTYPE}
    loops = ("tower_descent", "bridge_training")
    assert all(steps[0][0] >= 2 for name, steps in calls.items() if not name.startswith(loops))
    assert all(calls[f"{name} float32"][0][0] == 1 for name in loops), "a loop is chosen once"
    out.write_text("{}")
    assert cli.main(["calibrate", "--out", str(out)]) == 2
    assert "remove it, or write it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,told", [((), "needs a GPU that PyTorch can use, got none"), (("--device", "cpu"), "must be cuda")]
)
def test_the_command_refuses(words, told: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["calibrate", *words]) == 2
    assert told in capsys.readouterr().err
