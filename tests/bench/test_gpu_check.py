"""bench/gpu/check.py as far as it goes without a GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.scripts import BENCH, load_script
from tests.support.source_tree import ROOT, environment, need_source, run
from tests.support.tolerances import tolerance


@pytest.fixture
def check():
    need_source()
    return load_script("gpu/check")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make gpu-check")
def test_refuses_without_a_gpu(check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(check, "lacking", list)
    with pytest.raises(SystemExit, match=r"^gpu_check: no GPU that PyTorch can use; run it on a machine"):
        check.main(["--out", str(tmp_path)])
    assert os.listdir(tmp_path) == []
    done = run(sys.executable, BENCH / "gpu" / "kernels.py", env=environment(), cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("gpu_kernels: no GPU that PyTorch can use")


def test_names_all_that_is_missing_at_once(check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "TOOLS", ("nvcc-that-is-not-there", "cmake"))
    monkeypatch.setattr(check, "MODULES", ("torch", "module_that_is_not_there"))
    with pytest.raises(SystemExit, match=r"needs nvcc-that-is.*, module_that_is_not_there; install"):
        check.main([])


@pytest.fixture
def fake_gpu(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "lacking", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(name="Test GPU", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_a_failed_stage_does_not_stop_the_next(check, fake_gpu, monkeypatch, tmp_path: Path):
    stages = {
        "build": lambda out: check.Result("passed", "linked"),
        "kernels": lambda out: check.Result("failed", "topk is wrong"),
        "tests": lambda out: check.Result("skipped", "no time"),
    }
    monkeypatch.setattr(check, "STAGES", stages)
    assert check.main(["--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["machine"]["device"] == "Test GPU" and record["machine"]["capability"] == "sm_90"
    assert [s["state"] for s in record["stages"].values()] == ["passed", "failed", "skipped"]
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| kernels | failed | topk is wrong |" in text and "memory 80 GiB" in text
    assert os.uname().nodename not in text.split()
    assert check.main(["--out", str(tmp_path), "--only", "build"]) == 0


def test_without_a_build_nothing_else_is_tried(check, fake_gpu, monkeypatch, tmp_path: Path):
    tried = []
    stages = {"build": lambda out: check.Result("failed", "nvcc died"), "kernels": tried.append}
    monkeypatch.setattr(check, "STAGES", stages)
    assert check.main(["--out", str(tmp_path)]) == 1 and tried == []


def test_errors_and_times_are_in_the_report(check):
    results = {
        "kernels": (check.Result("passed", "", {"project/float32": 1.5e-7}), 3.0),
        "benchmarks": (check.Result("passed", "", "| group | member |"), 4.0),
    }
    text = check.report({"device": "Test GPU"}, results)
    assert "| project/float32 | 1.5e-07 |" in text and text.endswith("| group | member |\n")


@pytest.mark.parametrize("errors", [0, 3])
def test_the_sanitizers_verdict(check, errors: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: {errors} errors'\nexit {min(errors, 1)}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    result = check.sanitizer(tmp_path)
    assert result.state == ("failed" if errors else "passed")
    assert result.found["memcheck"].endswith(f"ERROR SUMMARY: {errors} errors")
    assert len(result.found) == (1 if errors else 4)


def test_a_missing_sanitizer_is_said(check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check.sanitizer(tmp_path).state == "skipped"


@pytest.mark.slow
def test_the_kernels_run_as_on_a_gpu(emulation: Emulation):
    """The very loop of the check, over the emulated module."""
    kernels, waits = load_script("gpu/kernels"), []
    allocated = []

    def allocate(size: int):
        allocated.append(size)
        return torch.empty(max(size, 1), dtype=torch.uint8).numpy()[:size]

    worst = kernels.run_cases(
        load(str(emulation.module)), lambda: waits.append(1), allocate, "normalize_rows", "adamw"
    )
    assert len(waits) > 50 and len(allocated) > 50
    assert 0 < worst["normalize_rows/float32"] <= tolerance("kernel", "float32").relative


@pytest.mark.slow
def test_the_benchmarks_are_right():
    """At small sizes on the CPU: every member's result is checked there before it is timed."""
    done = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", BENCH / "gpu" / "bench_gpu.py",
        env=environment(SEMOBRIDGE_BENCH_DEVICE="cpu"), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) > 20


def test_errors_are_tabulated_by_dtype():
    errors = load_script("gpu/errors")
    text = errors.table(
        "kernel", {"project/float32": 1.5e-7, "project norms/float32": 0.0, "project/float16": 2e-4}
    )
    assert "| project | 1.5e-07 | 2.0e-04 | – |" in text and "| project norms | 0.0e+00 | – | – |" in text
    document = (ROOT / "docs" / "gpu.md").read_text()
    assert all(document.count(mark) == 1 for mark in errors.MARKS)
