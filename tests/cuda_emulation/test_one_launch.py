"""The inversion step of few rows in one cooperative launch, emulated: the bits of the launches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.few_rows import FewRowsPlan
from semobridge_ext._engines.tower_descent.one_launch import OneLaunchPlan
from semobridge_ext._engines.tower_descent.plans import plan_of
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._engines.tower_descent.step import Plan
from semobridge_ext.ops import LaunchedTower, LaunchedWeights
from tests.support import launched, towers
from tests.support.assertions import assert_same_bits
from tests.support.graph_recorder import Recorder
from tests.support.launched import BF16, F16, check_engines, descend
from tests.support.random_tower import SHAPES, random_tower, some_rows
from tests.support.towers import F32

pytestmark = pytest.mark.slow


@pytest.fixture
def at_once(emulated: Any, recorder: Recorder) -> Iterator[Any]:
    """The emulated module as a device that takes cooperative launches of four blocks."""
    emulated.set_processors(2, 2)
    yield emulated
    emulated.set_processors(0, 1)


def tower_of(**options: Any) -> Tower:
    """Heads of whole 16 bytes in every type, which no tile of 32 or 64 divides."""
    return random_tower(F32, **{"width": 48, "hidden": 72, **options})


def results(engine: LaunchedTower, samples: int) -> list[Tensor]:
    tokens = (towers.start(samples, engine.vectors, engine.width) * 20).to(engine.compute)
    grad = towers.targets(samples, engine.dim).to(engine.compute)
    return [engine.features(tokens), engine.gradient(tokens, grad), *descend(engine, samples, 5, cuts=(2,))]


def same_bits(
    tower: Tower, rows: LearnedRows, stored: torch.dtype, at_once: Any, recorder: Recorder, samples: int = 3
) -> OneLaunchPlan:
    plain = launched.engines(tower, rows, stored, recorder=recorder, plans=FewRowsPlan)[0]
    want = results(plain, samples)
    for engine in launched.engines(tower, rows, stored, recorder=recorder, plans=plan_of)[:2]:
        before = at_once.counts()[0]
        found = results(engine, samples)
        assert at_once.counts()[0] < before + 20, "more launches than passes and steps"
        for got, expected in zip(found, want, strict=True):
            assert_same_bits(got, expected)
    assert recorder.launches == ["tower_step_cuda"]
    plan = engine.plan(samples)[0]
    assert isinstance(plan, OneLaunchPlan)
    return plan


@pytest.mark.parametrize(("shape", "stored"), [*((s, BF16) for s in SHAPES), ("apart", F16)])
def test_causal(shape: str, stored: torch.dtype, at_once: Any, recorder: Recorder):
    tower = tower_of()
    plan = same_bits(tower, some_rows(tower, *SHAPES[shape]), stored, at_once, recorder)
    assert plan.count == 10 * 2 + 6, "a phase for each launch"
    assert plan.joined == 4, "two attentions a layer go on without a meeting"


@pytest.mark.parametrize("pooling", [False, True])
def test_bidirectional(pooling: bool, at_once: Any, recorder: Recorder):
    tower = tower_of(causal=False, layers=3, pooling=pooling, pre=not pooling)
    rows = some_rows(tower, (-1, 0, 0, 1, 1, 1), None if pooling else 0)
    same_bits(tower, rows, BF16, at_once, recorder, samples=2)


@pytest.mark.parametrize(("final", "projection"), [(True, False), (False, True), (False, False)])
def test_ends_of_a_tower(final: bool, projection: bool, at_once: Any, recorder: Recorder):
    tower = tower_of(layers=1)
    tower = replace(
        tower, norm_final=tower.norm_final if final else None,
        projection=tower.projection if projection else None,
    )  # fmt: skip
    same_bits(tower, some_rows(tower, *SHAPES["apart"]), BF16, at_once, recorder)


def test_more_samples_than_a_block_has_meet(at_once: Any, recorder: Recorder):
    """A head's attention would be several rounds of one block, which has 16 rows at once: 8 samples of 2."""
    tower = tower_of(layers=1)
    rows = some_rows(tower, (-1, 0, -1), 2)
    assert len(LaunchedTower(LaunchedWeights(tower, BF16), rows, pieces=CudaTowerPieces).rows.source) == 2
    for samples, joined in ((8, 2), (9, 0)):
        plan = same_bits(tower, rows, BF16, at_once, recorder, samples)
        assert plan.joined == joined and not plan.done.any()


def test_against_float64(at_once: Any, recorder: Recorder):
    tower = tower_of(activation="quick_gelu")
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    plain = check_engines(tower, rows, BF16, recorder, "one launch", plans=plan_of)
    assert isinstance(plain.plan(3)[0], OneLaunchPlan)


def test_the_blocks_change_no_bit(at_once: Any, recorder: Recorder):
    tower = tower_of()
    rows = some_rows(tower, *SHAPES["apart"])
    found, taken = [], []
    for processors in (1, 3, 40):
        at_once.set_processors(processors, 1)
        engine = launched.engines(tower, rows, BF16, recorder=recorder, plans=plan_of)[0]
        found.append(results(engine, 3))
        taken.append(engine.plan(3)[0].blocks)
    assert taken[:2] == [1, 3] and 3 < taken[2] < 40, "no more blocks than the largest phase has tiles"
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert_same_bits(got, want)


def test_where_it_is_not_taken(at_once: Any, recorder: Recorder):
    def plan(tower: Tower, stored: torch.dtype = BF16, samples: int = 2) -> type[Plan]:
        rows = some_rows(tower, *SHAPES["apart"])
        engine = LaunchedTower(LaunchedWeights(tower, stored), rows, pieces=CudaTowerPieces, plans=plan_of)
        return type(engine.plan(samples)[0])

    tower = tower_of()
    assert plan(tower) is OneLaunchPlan
    assert plan(tower, samples=200) is Plan, "more rows are cuBLAS's"
    assert plan(random_tower(F32, width=40, hidden=72)) is FewRowsPlan, "heads of 40 bytes"
    assert plan(tower, F32) is FewRowsPlan, "float32 would spill"
    at_once.set_processors(0, 1)
    assert plan(tower) is FewRowsPlan, "no cooperative launches"


def test_a_refused_launch_is_told(at_once: Any, recorder: Recorder):
    """A device that lost room since the plan was made."""
    tower = tower_of()
    engine = launched.engines(
        tower, some_rows(tower, *SHAPES["apart"]), BF16, recorder=recorder, plans=plan_of
    )[0]
    engine.plan(2)
    at_once.set_processors(1, 1)
    with pytest.raises(RuntimeError, match="tower_step: cooperative launch failed: too many blocks"):
        engine.features(towers.start(2, engine.vectors, engine.width).to(engine.compute))
