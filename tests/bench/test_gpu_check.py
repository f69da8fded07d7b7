"""What `make gpu-check` runs, as far as it goes without a GPU, and bench/gpu/model.py's arithmetic."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.scripts import BENCH, load_script
from tests.support.source_tree import ROOT, environment, run
from tests.support.tolerances import tolerance


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make gpu-check")
def test_kernels_refuse_without_a_gpu():
    done = run(sys.executable, BENCH / "gpu" / "kernels.py", env=environment(), cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("gpu_kernels: no GPU that PyTorch can use")


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


def test_errors_are_tabulated_by_dtype():
    errors = load_script("gpu/errors")
    text = errors.table(
        "kernel", {"project/float32": 1.5e-7, "project norms/float32": 0.0, "project/float16": 2e-4}
    )
    assert "| project | 1.5e-07 | 2.0e-04 | – |" in text and "| project norms | 0.0e+00 | – | – |" in text
    document = (ROOT / "docs" / "gpu.md").read_text()
    assert all(document.count(mark) == 1 for mark in errors.MARKS)


def test_launch_takes_the_longest_of_three():
    model = load_script("gpu/model")
    device = model.Device("d", bandwidth=1e12, half=1e14, single=1e13)
    assert model.Launch("x", 10.0).seconds(device) == model.LAUNCH
    assert model.Launch("x", 7e9).seconds(device) == pytest.approx(1e-2)
    assert model.Launch("x", 7e9, 7e13).seconds(device) == pytest.approx(1.0)
    assert model.Launch("x", 7e9, 7e13, half=False).seconds(device) == pytest.approx(10.0)


def test_eager_sequences_are_counted():
    model = load_script("gpu/model")
    x, w = torch.empty(8, 4, device="meta"), torch.empty(4, 6, device="meta")

    def eager() -> None:
        y = (x @ w).T  # a view is no launch
        y.exp()

    launches = model.counted(eager)
    assert [launch.name for launch in launches] == ["mm", "exp"]
    assert launches[0].operations == 2 * 8 * 4 * 6
    assert launches[0].bytes == 4 * (32 + 24 + 48) and launches[1].bytes == 4 * 96


def test_bridge_rows():
    model = load_script("gpu/model")
    many, some = model.bridge(65536, 512, torch.bfloat16), model.bridge(256, 512, torch.bfloat16)
    for row in (many, some):
        assert len(row.ours) == 1 and len(row.eager) > 5
    # Two parts of the matrix on our side, two products on the other.
    assert many.ours[0].operations == 4 * 65536 * 512 * 512
    assert many.ours[0].bytes == 2 * (2 * 65536 * 512 + 2 * 512 * 512)
    assert sum(launch.operations for launch in many.eager) == many.ours[0].operations
    assert some.ours[0].operations == 4 * 256 * 512 * 512


def test_steps_are_counted_from_the_engines():
    model = load_script("gpu/model")
    row = model.oti_step(8, "small", 64, 2, 3, 32)
    assert len(row.ours) == 16 * 3 + 6
    names = [launch.name for launch in row.ours]
    assert names.count("attention") == 3 and names.count("adamw") == 1 and names.count("mm") == 4 * 3 + 2
    row = model.semobridge_t_step(5, 3, 16)
    assert 30 < len(row.ours) < 50 and {"row_loss", "adamw_flat", "mm"} <= {x.name for x in row.ours}
