"""What `make gpu-check` runs, as far as it goes without a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.device_memory import FakeMemory
from tests.support.scripts import BENCH, load_script
from tests.support.source_tree import ROOT, environment, run
from tests.support.tolerances import tolerance


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make gpu-check")
def test_kernels_refuse_without_a_gpu():
    done = run(sys.executable, BENCH / "gpu" / "kernels.py", env=environment(), cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("gpu_kernels: no GPU that PyTorch can use")


@pytest.mark.slow
def test_the_kernels_run_as_on_a_gpu(emulation: Emulation):
    """The very loop of the check, over the emulated module and a device whose memory is not the host's."""
    kernels, waits = load_script("gpu/kernels"), []
    memory = FakeMemory()
    worst = kernels.run_cases(
        load(str(emulation.module)), lambda: waits.append(1), memory, "normalize_rows", "scale_rows", "adamw"
    )
    assert len(waits) > 50 and memory.most > 2
    assert 0 < worst["normalize_rows/float32"] <= tolerance("kernel", "float32").relative


def test_the_check_of_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The program itself, with a kernel and a Triton run that stand in."""
    kernels, called = load_script("gpu/kernels"), []
    native = SimpleNamespace(some_cuda=lambda: called.append("kernel"), blocks=lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("wait"))
    monkeypatch.setattr(kernels, "_backend", SimpleNamespace(_C=native, HAS_CUDA=False))
    with pytest.raises(SystemExit, match="holds no CUDA kernels; SEMOBRIDGE_CUDA=on"):
        kernels.main([])

    def case(m, rng) -> None:
        m.some_cuda()
        assert m.blocks() == 7, "what is no launch is asked of the module itself"

    monkeypatch.setattr(kernels._backend, "HAS_CUDA", True)
    monkeypatch.setattr(kernels.all_cases, "CASES", {"some": case})
    monkeypatch.setattr(kernels.cases, "WORST", {"some/float32": 1e-7})
    monkeypatch.setattr(kernels, "CudaMemory", lambda version: FakeMemory())
    done, asked = SimpleNamespace(returncode=0, stdout='words\n{"worst": {"topk/float32": 2e-7}}\n'), []

    def run_instead(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        asked.append(env)
        return done

    monkeypatch.setattr(kernels.subprocess, "run", run_instead)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels.main(["--no-triton"])
    assert capsys.readouterr().out.splitlines() == ["some: right", '{"some/float32": 1e-07}'] and not asked
    kernels.main([])
    assert '"Triton topk/float32": 2e-07' in capsys.readouterr().out
    (env,) = asked
    assert env["CHECK_DEVICE"] == "cuda" and "TRITON_INTERPRET" not in env, "compiled, not interpreted"
    assert called == ["kernel", "wait"] * 2
    done.returncode = 1
    with pytest.raises(SystemExit, match="a Triton kernel is wrong on this GPU"):
        kernels.main([])


def test_errors_are_tabulated_by_dtype():
    errors = load_script("gpu/errors")
    text = errors.table(
        "kernel", {"project/float32": 1.5e-7, "project norms/float32": 0.0, "project/float16": 2e-4}
    )
    assert "| project | 1.5e-07 | 2.0e-04 | – |" in text and "| project norms | 0.0e+00 | – | – |" in text
    document = (ROOT / "docs" / "gpu.md").read_text()
    assert all(document.count(mark) == 1 for mark in errors.MARKS)
