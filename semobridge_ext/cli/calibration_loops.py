"""The loops that `calibrate` measures: a few steps of an inversion and of a training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training import choice as training
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._engines.tower_descent import choice as inversion
from semobridge_ext._engines.tower_descent.check import OP as INVERSION
from semobridge_ext._engines.tower_descent.check import fixed_tower
from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.spec import LearnedRows
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime.calibration import Case
from semobridge_ext.runtime.choice import Kernels
from semobridge_ext.runtime.self_check import TOLERANCE, fixed

WIDTH, LAYERS, SAMPLES = 512, 12, 64  # of CLIP's smaller text towers, and of a batch
SHOTS = 16
STEPS, _PLANNED = 4, 4096

# A loop is chosen once, whatever its batches: by its dtype alone.
_INVERSION = Kernels(INVERSION, lambda *_: True, lambda *_: False, lambda *_: 1)
_TRAINING = Kernels(training.OP, lambda *_: True, lambda *_: False, lambda *_: 1)


def cases(device: torch.device, width: int, classes: int) -> Iterator[Case]:
    """Losses of a few steps, the training's on features of that width.

    "eager" is what `auto` takes without kernels, not the plain program.
    """
    for dtype in TOLERANCE:
        yield _inversion(device, dtype)
    yield _training(device, width, classes)


def _inversion(device: torch.device, dtype: torch.dtype) -> Case:
    tower = fixed_tower(device, WIDTH, dim=WIDTH, heads=max(1, WIDTH // 64), layers=LAYERS)
    rows = LearnedRows(fixed(8, WIDTH, device=device), (-1, -1, -1, -1, -1, 0, -1, -1), 6)
    start = fixed(SAMPLES, 1, WIDTH, device=device, seed=1)
    targets = torch.nn.functional.normalize(fixed(SAMPLES, WIDTH, device=device, seed=2), dim=1)
    made: dict[str, TowerEngine] = {}  # with their graphs

    def make(chosen: str) -> TowerEngine:
        if chosen == "cpu":
            return FrozenTower(PackedTower(tower, dtype), rows)
        pieces = CudaTowerPieces if chosen == "cuda" else TorchTowerPieces
        return LaunchedTower(LaunchedWeights(tower, dtype), rows, pieces=pieces)

    def call() -> Tensor:
        chosen = inversion.choose("calibrate", device, tower.dtype, dtype)
        if chosen not in made:
            made[chosen] = make(chosen)
        moments = torch.zeros_like(start), torch.zeros_like(start)
        return made[chosen].descend(
            start.clone(), *moments, targets, 0, STEPS, grad_scale=1 / SAMPLES, lr=0.02, weight_decay=0.01
        )

    return Case(_INVERSION, (torch.empty(0, dtype=dtype, device=device),), call)


def _training(device: torch.device, width: int, classes: int) -> Case:
    labels = torch.arange(classes, device=device).repeat_interleave(SHOTS)
    shapes = (width, width), (width, width), (len(labels), width), (classes, width), (classes, width)
    inverse, w, shots, text, hidden = (fixed(*s, device=device, seed=i) for i, s in enumerate(shapes))
    unit = torch.nn.functional.normalize
    made: dict[object, BridgeTrainer] = {}  # with their graphs

    def call() -> Tensor:
        chosen = training.choose("calibrate", device, torch.float32)
        if chosen.streamed:
            raise NotImplementedError("streamed losses save memory, not time: on request alone")
        if chosen.pieces not in made:
            made[chosen.pieces] = trainer = BridgeTrainer(
                inverse * width**-0.5, w * width**-0.5, shots, labels, unit(text, dim=1), unit(hidden, dim=1),
                pieces=chosen.pieces,
            )  # fmt: skip
            trainer.plan([1e-4] * _PLANNED, 0.01)
        trainer = made[chosen.pieces]
        for _ in range(STEPS):
            trainer.step()
        return trainer.losses[trainer.steps - STEPS : trainer.steps].clone()

    return Case(_TRAINING, (torch.empty(0, device=device),), call)
