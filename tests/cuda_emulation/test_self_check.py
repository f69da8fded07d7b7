"""The self-checks of the loops over the emulated kernels: right ones pass, broken ones are noticed."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext._engines.bridge_training import cuda as training_cuda
from semobridge_ext._engines.bridge_training import step as training
from semobridge_ext._engines.tower_descent import check as tower
from semobridge_ext._engines.tower_descent import cuda as tower_cuda
from semobridge_ext.runtime import self_check
from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.launched import FAULTS, broken

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_place_of_the_gpu(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = load(str(emulation.module))
    for module in (training_cuda, tower_cuda):
        monkeypatch.setattr(module, "_C", emulated)


@pytest.mark.parametrize("dtype", self_check.TOLERANCE)
def test_an_inversion_s_kernels_pass(dtype: torch.dtype):
    assert self_check._compare((tower.OP, "native", dtype, CPU)) == ""


def test_a_training_s_kernels_pass():
    assert self_check._compare((training.OP, "native", torch.float32, CPU)) == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_piece_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tower, "CudaTowerPieces", broken(tower.TorchTowerPieces, fault))
    found = self_check._compare((tower.OP, "native", torch.float32, CPU))
    assert found.startswith("differs from plain PyTorch"), found


@pytest.mark.parametrize(
    "piece", ["class_means", "row_lengths", "row_loss", "shot_grads", "unit_grad", "adamw"]
)
def test_a_piece_of_training_that_does_nothing_is_noticed(piece: str, monkeypatch: pytest.MonkeyPatch):
    class Broken(training.TorchTrainingPieces):
        pass

    setattr(Broken, piece, lambda self, *args, **options: None)
    monkeypatch.setattr(training, "CudaTrainingPieces", Broken)
    assert self_check._compare((training.OP, "native", torch.float32, CPU)) != ""
