"""EagerTower against the oracle, the frozen prefix of all engines, and the verbs that they share."""

from __future__ import annotations

import inspect

import pytest
import torch

from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.reference import run_block
from semobridge_ext._engines.tower_descent.rows import slot_rows
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext.inversion import reference as inversion
from semobridge_ext.ops import FrozenTower, LaunchedTower, LaunchedWeights, PackedTower
from semobridge_ext.reference import tower_features
from tests.support import towers
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.random_tower import SHAPES, random_tower, some_rows
from tests.support.towers import F32, F64

BIDIRECTIONAL = {
    "pooled row": {"causal": False, "pre": True},
    "pooling query": {"causal": False, "pooling": True},
}


def check(tower: Tower, rows: LearnedRows, samples: int = 3) -> None:
    """The same operations in the same order as the oracle's, so the same bits."""
    engine = EagerTower(tower, rows)
    v = towers.start(samples, rows.vectors, tower.width, tower.dtype) * 20
    g = towers.targets(samples, tower.features, tower.dtype)
    leaf = v.clone().requires_grad_()
    want = tower_features(tower, rows, leaf)
    (grad,) = torch.autograd.grad(want, leaf, g)
    assert float(want.detach().norm(dim=1).min()) > 0.1 and float(grad.flatten(1).norm(dim=1).min()) > 1e-3
    assert_same_bits(engine.features(v), want.detach())
    assert_same_bits(engine.gradient(v, g), grad)
    unit = torch.nn.functional.normalize(want.detach(), dim=1)
    assert_same_bits(engine.features(v, unit=True), unit)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal(shape: str, activation: str, dtype: torch.dtype) -> None:
    tower = random_tower(dtype, activation=activation)
    check(tower, some_rows(tower, *SHAPES[shape]))


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
def test_bidirectional(kind: str) -> None:
    tower = random_tower(F64, **BIDIRECTIONAL[kind])
    check(tower, some_rows(tower, (-1, 0, 0, 1, 1, 1), None if "query" in kind else 0))


def test_constants_of_each_sample() -> None:
    tower = random_tower(F64)
    base = torch.randn(7, 5, tower.width, dtype=F64)
    check(tower, LearnedRows(base, (-1, 0, 1, 2, -1, -1, -1), 6), samples=5)


def test_descent_is_that_of_torch_optim() -> None:
    tower = random_tower(F64)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    start, targets = towers.start(3, 1, tower.width) * 20, towers.targets(3, tower.features)
    want = inversion.descend(lambda v: tower_features(tower, rows, v), start, targets, 20, 0.02, 0.01, (0, 7))
    engine, tokens = EagerTower(tower, rows), start.clone()
    moments, recorded = (torch.zeros_like(start), torch.zeros_like(start)), torch.empty(2, 3, tower.features)
    recorded = recorded.to(F64)
    options = {"grad_scale": 1 / 3, "lr": 0.02, "weight_decay": 0.01, "record_steps": (0, 7)}
    losses = [
        engine.descend(tokens, *moments, targets, begin, end, recorded=recorded, **options)
        for begin, end in ((0, 9), (9, 20), (20, 20))
    ]
    assert losses[2].shape == (0, 3) and float(want.losses[-1]) < float(want.losses[0]) - 0.02
    assert_row_relative(tokens.flatten(1), want.tokens.flatten(1), "launched")
    assert_figures(torch.cat(losses).mean(1), want.losses, "launched_loss", scale=1.0)
    for i, step in enumerate((0, 7)):
        assert_row_relative(recorded[i], want.recorded[step], "launched")


@pytest.mark.parametrize("stored", [F32, torch.bfloat16])
def test_the_frozen_prefix_is_the_oracle_s(stored: torch.dtype) -> None:
    tower = random_tower(F32, layers=3)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    found = slot_rows(tower, rows, F32, stored)
    assert found.prefix == 2 and len(found.prefixes) == 3
    x = rows.base[:2].unsqueeze(0)
    for block, prefix in zip(tower.blocks, found.prefixes, strict=True):
        x, k, v = run_block(tower, block, x)
        assert_same_bits(prefix, torch.cat([k, v]).to(stored))


VERBS = ("features", "gradient", "descend")


@pytest.mark.parametrize("engine", [FrozenTower, LaunchedTower, EagerTower])
def test_engines_share_their_verbs(engine: type) -> None:
    for verb in VERBS:
        want, found = (inspect.signature(getattr(kind, verb)) for kind in (TowerEngine, engine))
        assert str(found) == str(want), f"{engine.__name__}.{verb}"
    tower = random_tower(F32)
    weights = {FrozenTower: PackedTower, LaunchedTower: LaunchedWeights, EagerTower: lambda tower: tower}
    made = engine(weights[engine](tower), some_rows(tower, *SHAPES["apart"]))
    assert (made.compute, made.vectors, made.width, made.dim) == (F32, 2, tower.width, tower.features)
