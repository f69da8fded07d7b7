"""The emulated module in this process, and in place of the tower's kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from semobridge_ext._engines.tower_descent import cuda as tower_cuda
from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.graph_recorder import Recorder


@pytest.fixture(scope="module")
def emulated(emulation: Emulation) -> Any:
    return load(str(emulation.module))


@pytest.fixture
def recorder(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Of an inversion's launches."""
    torch.set_num_threads(1)  # the towers are tiny
    recorder = Recorder()
    monkeypatch.setattr(tower_cuda, "_C", recorder.native(emulated))
    return recorder
