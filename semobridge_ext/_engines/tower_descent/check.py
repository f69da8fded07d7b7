"""What is compared before `auto` takes the kernels of a tower descent: all pieces, in two small blocks.

Twice: with cuBLAS's products, and as the device takes so few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.plans import plan_of
from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower
from semobridge_ext._engines.tower_descent.step import LaunchedTower, Plan
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.backend import requested

OP = "tower_descent"
_WIDTH, _DIM, _SAMPLES = 32, 24, 3
_RATE = 1.0  # of AdamW: large enough that the second step feels the first


def fixed_tower(
    device: torch.device, width: int = _WIDTH, *, dim: int = _DIM, heads: int = 2, layers: int = 2
) -> Tower:
    """A causal tower of fixed weights, the same everywhere."""
    draw = partial(self_check.fixed, device=device)

    def norm(seed: int) -> Norm:
        return Norm(1 + draw(width, seed=seed) / 8, draw(width, seed=seed + 1) / 8, 1e-5)

    def linear(rows: int, cols: int, seed: int) -> Linear:
        return Linear(draw(rows, cols, seed=seed) * (0.7 / rows**0.5), draw(cols, seed=seed + 1) / 8)

    blocks = tuple(
        Block(norm(i + 1), linear(width, 3 * width, i + 3), linear(width, width, i + 5), norm(i + 7),
              linear(width, 4 * width, i + 9), linear(4 * width, width, i + 11))
        for i in range(0, 20 * layers, 20)
    )  # fmt: skip
    return Tower("check", heads, "quick_gelu", True, blocks, None, norm(13), linear(width, dim, 15))


def results(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Features, gradient, and what two steps change, launched without a graph, by every kind of launches."""
    return [found for plans in (Plan, plan_of) for found in _results(device, dtype, plans)]


def _results(device: torch.device, dtype: torch.dtype, plans: Callable[..., Plan]) -> list[Tensor]:
    """The moments are not zero: AdamW's first step would be the gradient's sign, which rounding may turn."""
    rows = LearnedRows(self_check.fixed(5, _WIDTH, device=device, seed=17), (-1, 0, 1, -1, -1), 4)
    pieces = CudaTowerPieces if requested() == "native" else TorchTowerPieces
    engine = LaunchedTower(
        LaunchedWeights(fixed_tower(device), dtype), rows, pieces=pieces, plans=plans,
        capture=lambda step, device: step,
    )  # fmt: skip
    tokens = self_check.fixed(_SAMPLES, 2, _WIDTH, device=device, seed=18)
    grad = self_check.fixed(_SAMPLES, _DIM, device=device, seed=19)
    found = [engine.features(tokens), engine.gradient(tokens, grad)]
    targets = torch.nn.functional.normalize(grad, dim=1)
    first, second, moved = tokens.roll(1, 1) / 8, 1 + tokens.abs(), tokens.clone()
    unit = torch.empty(1, _SAMPLES, _DIM, device=device)
    losses = engine.descend(
        moved, first, second, targets, 2, 4, grad_scale=1.0, lr=_RATE, weight_decay=0.01, record_steps=(3,),
        recorded=unit,
    )  # fmt: skip
    return [*found, first, second, (moved - tokens) / _RATE, losses, unit]


self_check.register(OP, results)
