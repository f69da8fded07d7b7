"""Which engine runs a tower descent, and the weights that engines of one model share."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime.backend import requested
from semobridge_ext.runtime.choice import resolve
from semobridge_ext.runtime.held import Held

Weights = PackedTower | LaunchedWeights

_shared: weakref.WeakKeyDictionary[Any, dict[str, tuple[Held, Weights]]] = weakref.WeakKeyDictionary()


def choose(function: str, device: torch.device, dtype: torch.dtype) -> str:
    """The engine by the file that holds it.

    ``cpu``: the loop in the core. ``torch`` and ``cuda``: the step as launches on a device, between its
    products PyTorch or csrc's kernels. ``eager``: autograd over the whole context. ``function`` is named in
    messages.
    """
    name = resolve(function, device, cuda=dtype != torch.float64)
    if device.type == "cpu":
        return "cpu" if name == "native" else "eager"
    if name == "native":
        return "cuda"
    return "torch" if device.type == "cuda" and requested() != "eager" else "eager"


def _weights_of(model: Any) -> tuple[Tensor, ...]:
    return (*model.parameters(), *model.buffers())


def make_engine(
    function: str, model: Any, tower: Tower, rows: LearnedRows, weights: torch.dtype | None
) -> TowerEngine:
    """The engine for the tower's device; its weights are kept for as long as the model lives."""
    chosen = choose(function, tower.device, tower.dtype)
    if chosen == "eager":
        return EagerTower(tower, rows)
    make: type[Weights] = PackedTower if chosen == "cpu" else LaunchedWeights
    kind, held = f"{function} {weights} {make.__name__}", _weights_of(model)
    kept = _shared.setdefault(model, {})
    if kind not in kept or not kept[kind][0].same(*held):
        kept.clear()  # one set of weights a model: they are as large as the model, so none is copied either
        kept[kind] = (Held(*held, copies=False), make(tower, weights))
    found = kept[kind][1]
    if isinstance(found, PackedTower):
        return FrozenTower(found, rows)
    return LaunchedTower(found, rows, pieces=CudaTowerPieces if chosen == "cuda" else TorchTowerPieces)
