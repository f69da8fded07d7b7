"""ModelTower: the verbs of the other engines through a model's own forward pass.

For towers that no plain tensors describe. The pass comes from above (semobridge_ext/clip/own_pass.py), so
that whatever the model computes is what is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.eager import AutogradTower

ROWS = 2048  # positions of a chunk: autograd keeps the activations of every layer for each of them


@dataclass(frozen=True)
class OwnTower:
    """What a run through a model belongs to; the counterpart of a Tower.

    Nothing here is computed with: files and start values are held against it.
    """

    name: str
    width: int  # T
    features: int  # D
    double: bool  # a float64 model
    structure: str  # the modules as they print themselves
    weights: tuple[tuple[str, Tensor], ...]  # all parameters and buffers by name

    @property
    def compute(self) -> torch.dtype:
        """Of learned rows and losses; half weights are widened to it."""
        return torch.float64 if self.double else torch.float32

    @property
    def device(self) -> torch.device:
        return self.weights[0][1].device


@dataclass(frozen=True)
class OwnRows:
    """Which positions of a model's input are learned; the counterpart of LearnedRows."""

    source: tuple[int, ...]  # [L] which vector stands there, −1 for none
    inputs: tuple[tuple[str, Tensor], ...]  # what the model is given beside them, one sample

    @property
    def vectors(self) -> int:
        return max(self.source) + 1


class ModelTower(AutogradTower):
    """Learned rows in a model, on the model's device.

    Args:
        tower: of what model.
        rows: what is learned in it.
        run: [S, R, T] in ``tower.compute`` → [S, D], differentiable.

    Numerics: those of the model's own operators in float32 (float64 for a float64 model); bits may depend
        on how many samples share a call.

    Memory: autograd's activations of all positions; ``features`` and ``gradient`` take a chunk at a time.
    """

    kind = "model"

    def __init__(self, tower: OwnTower, rows: OwnRows, run: Callable[[Tensor], Tensor]) -> None:
        self.tower, self.rows, self.compute = tower, rows, tower.compute
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features
        self._run = run

    def chunk(self) -> int:
        return max(1, ROWS // len(self.rows.source))

    def _pass(self, tokens: Tensor) -> Tensor:  # [S, R, T] -> [S, D]
        return self._run(tokens)

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        parts = [super(ModelTower, self).features(part, unit=unit) for part in tokens.split(self.chunk())]
        return torch.cat(parts) if len(tokens) else tokens.new_empty(0, self.dim)

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        size = self.chunk()
        pairs = zip(tokens.split(size), grad_features.split(size), strict=True)
        parts = [super(ModelTower, self).gradient(part, grad) for part, grad in pairs]
        return torch.cat(parts) if len(tokens) else torch.zeros_like(tokens)
