"""What `make gpu-check` runs, as far as it goes without a GPU."""

from __future__ import annotations

import sys

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
        load(str(emulation.module)), lambda: waits.append(1), memory, "normalize_rows", "adamw"
    )
    assert len(waits) > 50 and memory.most > 2
    assert 0 < worst["normalize_rows/float32"] <= tolerance("kernel", "float32").relative


def test_errors_are_tabulated_by_dtype():
    errors = load_script("gpu/errors")
    text = errors.table(
        "kernel", {"project/float32": 1.5e-7, "project norms/float32": 0.0, "project/float16": 2e-4}
    )
    assert "| project | 1.5e-07 | 2.0e-04 | – |" in text and "| project norms | 0.0e+00 | – | – |" in text
    document = (ROOT / "docs" / "gpu.md").read_text()
    assert all(document.count(mark) == 1 for mark in errors.MARKS)
