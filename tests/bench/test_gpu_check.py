"""bench/gpu_check.py as far as it goes without a GPU, and bench/gpu_model.py's arithmetic."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.bench.scripts import BENCH, load_script
from tests.source_tree import ROOT, environment, need_source, run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make gpu-check")
def test_refuses_without_a_gpu():
    need_source()
    done = run(sys.executable, BENCH / "gpu_check.py", env=environment(), cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == "gpu_check: no GPU that PyTorch can use; run it on a machine that has one"


def test_launch_takes_the_longest_of_three():
    model = load_script("gpu_model")
    device = model.Device("d", bandwidth=1e12, half=1e14, single=1e13)
    assert model.Launch("x", 10.0).seconds(device) == model.LAUNCH
    assert model.Launch("x", 7e9).seconds(device) == pytest.approx(1e-2)
    assert model.Launch("x", 7e9, 7e13).seconds(device) == pytest.approx(1.0)
    assert model.Launch("x", 7e9, 7e13, half=False).seconds(device) == pytest.approx(10.0)


def test_eager_sequences_are_counted():
    model = load_script("gpu_model")
    x, w = torch.empty(8, 4, device="meta"), torch.empty(4, 6, device="meta")

    def eager() -> None:
        y = (x @ w).T  # a view is no launch
        y.exp()

    launches = model.counted(eager)
    assert [launch.name for launch in launches] == ["mm", "exp"]
    assert launches[0].operations == 2 * 8 * 4 * 6
    assert launches[0].bytes == 4 * (32 + 24 + 48) and launches[1].bytes == 4 * 96


def test_bridge_row():
    model = load_script("gpu_model")
    row = model.bridge(65536, 512, torch.bfloat16)
    assert len(row.ours) == 1 and len(row.eager) > 5
    assert row.ours[0].operations == 2 * 65536 * 512 * 512
    assert row.ours[0].bytes == 2 * (2 * 65536 * 512 + 512 * 512)
    assert sum(launch.operations for launch in row.eager) == 2 * row.ours[0].operations
