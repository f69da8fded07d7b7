"""LaunchedTower against float64: one comparison for both kinds of pieces, and pieces that are broken.

The oracle of a pass is autograd through the whole context, that of a descent torch.optim.AdamW on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._engines.tower_descent.step import Plan
from semobridge_ext._engines.tower_descent.tensors import Ends
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext.inversion import reference as inversion
from semobridge_ext.ops import LaunchedTower, LaunchedWeights
from semobridge_ext.reference import tower_features
from tests.support import towers
from tests.support.assertions import assert_cosine, assert_figures, assert_row_relative, assert_same_bits
from tests.support.graph_recorder import Recorder
from tests.support.random_tower import in_dtype
from tests.support.towers import F64

BF16, F16 = torch.bfloat16, torch.float16

Found = tuple[Tensor, Tensor, Tensor]  # tokens, losses [steps, S], recorded


def oracle_of(tower: Tower, rows: LearnedRows) -> Callable[[Tensor], Tensor]:
    wide, own = in_dtype(tower, F64), replace(rows, base=rows.base.double())
    return lambda v: tower_features(wide, own, v)


def check_passes(tower: Tower, rows: LearnedRows, engine: LaunchedTower, samples: int, context: str = ""):
    stored, compute = engine.stored, engine.compute
    v = (towers.start(samples, rows.vectors, tower.width) * 20).to(compute)
    g = towers.targets(samples, tower.features).to(compute)
    wide = v.double().requires_grad_()
    want = oracle_of(tower, rows)(wide)
    (grad,) = torch.autograd.grad(want, wide, g.double())

    def close(got: torch.Tensor, exact: torch.Tensor, family: str, what: str) -> None:
        assert_row_relative(got, exact, family, dtype=stored, context=f"{context} {what}")

    close(engine.features(v), want.detach(), "launched", "features")
    unit = torch.nn.functional.normalize(want.detach(), dim=1)
    close(engine.features(v, unit=True), unit, "launched", "unit features")
    close(engine.gradient(v, g).flatten(1), grad.flatten(1), "launched_grad", "gradient")


def descend(
    engine: LaunchedTower, samples: int, steps: int, cuts: tuple[int, ...] = (), **options: Any
) -> Found:
    """A descent in slices that end at `cuts`, with the features of steps 0, 3 and `steps` − 1."""
    c = engine.compute
    tokens = (towers.start(samples, engine.vectors, engine.width) * 20).to(c)
    moments = torch.zeros_like(tokens), torch.zeros_like(tokens)
    targets = torch.nn.functional.normalize(towers.targets(samples, engine.dim), dim=1).to(c)
    options = {"grad_scale": 1 / samples, "lr": 0.02, "weight_decay": 0.01, **options}
    recorded = torch.full((3, samples, engine.dim), float("nan"), dtype=c)
    losses = [
        engine.descend(tokens, *moments, targets, begin, end, record_steps=(0, 3, steps - 1),
                       recorded=recorded, **options)
        for begin, end in zip((0, *cuts), (*cuts, steps), strict=True)
    ]  # fmt: skip
    return tokens, torch.cat(losses), recorded


def check_descent(tower: Tower, rows: LearnedRows, engine: LaunchedTower, samples: int, context: str = ""):
    """20 steps in two slices against torch.optim.AdamW."""
    stored, steps = engine.stored, 20
    features_of = oracle_of(tower, rows)
    start = towers.start(samples, rows.vectors, tower.width) * 20
    theirs = inversion.descend(
        features_of, start, towers.targets(samples, tower.features), steps, 0.02, 0.01, (0, 3, steps - 1)
    )
    tokens, losses, recorded = descend(engine, samples, steps, cuts=(7,))
    assert losses.shape == (steps, samples)
    assert_figures(losses.mean(1), theirs.losses, "launched_loss", dtype=stored, scale=1.0, context=context)
    assert float(theirs.losses[-1]) < float(theirs.losses[0]) - 0.02, "the oracle went nowhere"
    moved = features_of(tokens.double())
    assert_cosine(moved, theirs.features, "launched_cosine", dtype=stored, context=context)
    before = f"{context} recorded before"
    assert_row_relative(recorded[0], theirs.recorded[0], "launched", dtype=stored, context=before)
    for i, step in ((1, 3), (2, steps - 1)):
        now = f"{context} step {step}"
        assert_cosine(recorded[i], theirs.recorded[step], "launched_cosine", dtype=stored, context=now)


def engines(
    tower: Tower,
    rows: LearnedRows,
    stored: torch.dtype,
    pieces: type[TorchTowerPieces] = CudaTowerPieces,
    recorder: Recorder | None = None,
    plans: Any = Plan,
) -> tuple[LaunchedTower, LaunchedTower, Recorder]:
    """The engine by itself and over a recorder that repeats launches as a graph would."""
    recorder = Recorder() if recorder is None else recorder
    weights = LaunchedWeights(tower, stored)
    plain = LaunchedTower(weights, rows, pieces=pieces, plans=plans)
    graph = LaunchedTower(weights, rows, pieces=pieces, plans=plans, capture=recorder.capture)
    return plain, graph, recorder


def check_engines(
    tower: Tower,
    rows: LearnedRows,
    stored: torch.dtype,
    recorder: Recorder,
    context: str,
    samples: int = 3,
    plans: Any = Plan,
) -> LaunchedTower:
    """Both against float64, and every replay the bits of the step; the one that launches."""
    plain, graph, _ = engines(tower, rows, stored, recorder=recorder, plans=plans)
    check_passes(tower, rows, plain, samples, context)
    check_descent(tower, rows, graph, samples, context)
    assert recorder.replays == 20
    for got, want in zip(descend(graph, samples, 6), descend(plain, samples, 6), strict=True):
        assert_same_bits(got, want, f"{context}: a replay is not the step")
    return plain


# -- broken on purpose -------------------------------------------------------------------------------


def broken(base: type[TorchTowerPieces], fault: str) -> type[TorchTowerPieces]:
    """`base` with one piece that does not do what it says."""

    class Residual(base):
        def norm(self, x, delta, total, norm, y, state):
            super().norm(x, None if delta is None else delta.mul_(0), total, norm, y, state)
            if delta is not None:
                total.copy_(x)

    class GradResidual(base):
        def norm_grad(self, grad, residual, norm, state, x, out):
            super().norm_grad(grad, None, norm, state, x, out)

    class Slope(base):
        def activate_grad(self, grad, h):
            pass

    class Attention(base):
        def attention_grad(self, state, grad_o, grad_qkv):
            super().attention_grad(state, grad_o, grad_qkv)
            grad_qkv[:, : grad_qkv.shape[1] // 3].zero_()

    class Bias(base):
        def product(self, x, linear, out):
            torch.mm(x, linear.weight, out=out)

    class Count(base):
        def adamw(self, e: Ends):
            super().adamw(e)
            e.step.sub_(1)

    class Inputs(base):
        def adamw(self, e: Ends):
            kept = self.scratch.take("kept", tuple(e.inputs.shape), e.inputs.dtype)
            kept.copy_(e.inputs)
            super().adamw(e)
            e.inputs.copy_(kept)

    class Decay(base):
        def adamw(self, e: Ends):
            e.weight_decay = 0.0
            super().adamw(e)

    class Unit(base):
        def cosine_loss(self, e: Ends):
            super().cosine_loss(e)
            e.unit.copy_(e.features)

    faults = {
        "residual": Residual, "residual of the gradient": GradResidual, "slope": Slope,
        "gradient of the queries": Attention, "bias": Bias, "step counter": Count, "next inputs": Inputs,
        "weight decay": Decay, "unit features": Unit,
    }  # fmt: skip
    return faults[fault]


FAULTS = (
    "residual", "residual of the gradient", "slope", "gradient of the queries", "bias", "step counter",
    "next inputs", "weight decay", "unit features",
)  # fmt: skip
