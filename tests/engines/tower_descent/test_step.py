"""The inversion step as launches, its pieces in PyTorch, on CPU tensors: against float64, and as a graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from semobridge_ext import clip
from semobridge_ext._engines.tower_descent import step as launched_tower
from semobridge_ext._engines.tower_descent.buffers import TABLE
from semobridge_ext._engines.tower_descent.cost import counted_step, tower_of_shape
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Linear
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext.inversion import reference as inversion
from semobridge_ext.ops import LaunchedTower, LaunchedWeights
from semobridge_ext.reference import tower_features
from tests.support import launched, towers
from tests.support.assertions import (
    assert_close,
    assert_cosine,
    assert_figures,
    assert_row_relative,
    assert_same_bits,
)
from tests.support.graph_recorder import Recorder
from tests.support.launched import BF16, F16, FAULTS, check_descent, check_passes, descend, engines
from tests.support.random_tower import SHAPES, random_tower, some_rows
from tests.support.towers import F32, F64, TEXT_MODELS, VISION_MODELS

STORED = [F64, F32, BF16, F16]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the towers are tiny


def check(tower, rows, stored: torch.dtype, context: str, samples: int = 3) -> None:
    plain, graph, recorder = engines(tower, rows, stored, TorchTowerPieces)
    check_passes(tower, rows, plain, samples, context)
    check_descent(tower, rows, graph, samples, context)
    assert recorder.replays == 20
    for got, want in zip(descend(graph, samples, 6), descend(plain, samples, 6), strict=True):
        assert_same_bits(got, want, f"{context}: a replay is not the step")


def tower_in(stored: torch.dtype, **options):
    return random_tower(F64 if stored is F64 else F32, **options)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal(shape: str, stored: torch.dtype) -> None:
    tower = tower_in(stored)
    check(tower, some_rows(tower, *SHAPES[shape]), stored, shape)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("activation", ["gelu_tanh", "quick_gelu"])
def test_activations(activation: str, stored: torch.dtype) -> None:
    tower = tower_in(stored, activation=activation)
    check(tower, some_rows(tower, *SHAPES["apart"]), stored, activation)


@pytest.mark.parametrize("stored", [F64, F16])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("pre", [False, True])
def test_bidirectional(pre: bool, pooling: bool, layers: int, stored: torch.dtype) -> None:
    tower = tower_in(stored, causal=False, layers=layers, pooling=pooling, pre=pre)
    rows = some_rows(tower, (-1, 0, 0, 1, 1, 1), None if pooling else 0)
    check(tower, rows, stored, "bidirectional", samples=2)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_text_towers(kind: str) -> None:
    tower, rows = clip.text_tower(TEXT_MODELS[kind]().double(), "a photo of {} here", num_tokens=2)
    check(tower, rows, F64, kind)


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_vision_towers(kind: str) -> None:
    tower, rows = clip.vision_tower(VISION_MODELS[kind]().double(), num_patches=2)
    check(tower, rows, F64, kind, samples=2)


def test_150_steps() -> None:
    """Against the full context in float32; tests/inversion/test_invert.py explains the quantile."""
    tower, rows = clip.text_tower(TEXT_MODELS["open_clip"]())
    targets, start = towers.targets(30, tower.features, F32), towers.start(30, 1, tower.width, F32)
    theirs = inversion.descend(lambda v: tower_features(tower, rows, v), start, targets, 150, 0.02, 0.01, ())
    engine = engines(tower, rows, F32, TorchTowerPieces)[1]
    tokens, moments = start.clone(), (torch.zeros_like(start), torch.zeros_like(start))
    unit = torch.nn.functional.normalize(targets, dim=1)
    options = {"grad_scale": 1 / 30, "lr": 0.02, "weight_decay": 0.01}
    losses = engine.descend(tokens, *moments, unit, 0, 150, **options)
    assert_cosine(engine.features(tokens), theirs.features, "long_descent_cosine", dtype=F32, share=0.9)
    assert_figures(losses.mean(1), theirs.losses, "long_descent_loss", dtype=F32, scale=1.0)
    assert float(losses[-1].mean()) < 0.5 * float(losses[0].mean())


def test_slices_and_tables_change_no_bit() -> None:
    """More steps than a table holds, in one call and in several."""
    tower = random_tower(F64)
    rows = some_rows(tower, *SHAPES["apart"])
    steps = 2 * TABLE + 3
    plain, graph, recorder = engines(tower, rows, F64, TorchTowerPieces)
    whole = descend(graph, 2, steps)
    assert recorder.replays == steps
    for got, want in zip(whole, descend(plain, 2, steps, cuts=(1, 5, TABLE, TABLE + 9)), strict=True):
        assert_same_bits(got, want)


def test_constants_of_each_sample() -> None:
    """CoOp's shape: class words behind one context; gradients add up over classes."""
    tower = random_tower()
    base = torch.randn(7, 5, tower.width, dtype=F64)
    base[:1] = base[:1, :1]
    rows = LearnedRows(base, (-1, 0, 1, 2, -1, -1, -1), 6)
    plain, graph, _ = engines(tower, rows, F64, TorchTowerPieces)
    check_passes(tower, rows, plain, 5)
    check_descent(tower, rows, graph, 5)
    with pytest.raises(ValueError, match=r"must have 5 samples.*got 4; "):
        plain.features(torch.zeros(4, 3, tower.width, dtype=F64))


@pytest.mark.parametrize("samples,rows_of_plan", [(1, 1), (15, 15), (17, 18), (33, 36), (100, 104)])
def test_filler_rows_change_nothing(samples: int, rows_of_plan: int) -> None:
    tower = random_tower(F64)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = LaunchedTower(LaunchedWeights(tower), rows)
    assert engine.plan(samples)[0].samples == rows_of_plan
    check_passes(tower, rows, engine, samples)
    check_descent(tower, rows, engine, samples)
    check_passes(tower, rows, engine, max(samples - 1, 1))


def test_shapes_are_kept_and_captured_once() -> None:
    tower = random_tower(F64)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = engines(tower, rows, F64, TorchTowerPieces)[1]
    plans = [engine.plan(n)[0] for n in (3, 5, 3, 3, 5)]
    assert plans[0] is plans[2] is plans[3] and plans[1] is plans[4]
    first = descend(engine, 3, 5)
    kept = engine.plan(3)[1]
    assert len(kept) == 1
    replay = next(iter(kept.values()))
    for got, want in zip(descend(engine, 3, 5), first, strict=True):
        assert_same_bits(got, want)
    assert next(iter(engine.plan(3)[1].values())) is replay, "the same settings are captured once"
    other = descend(engine, 3, 5, lr=0.01)
    assert not torch.equal(other[0], first[0]), "another rate is another graph"
    engine.plan(7)
    assert engine.plan(3)[0] is plans[0] and engine.plan(5)[0] is not plans[1], "the least recent one left"


def test_nan_and_zero_rows_stay_alone() -> None:
    tower = random_tower(F32)
    rows = some_rows(tower, *SHAPES["apart"])
    for stored in (F32, BF16, F16):
        engine = engines(tower, rows, stored, TorchTowerPieces)[1]
        tokens = towers.start(5, 2, tower.width, F32)
        unit = torch.nn.functional.normalize(towers.targets(5, tower.features, F32), dim=1)
        options = {"grad_scale": 0.2, "lr": 0.02, "weight_decay": 0.01}

        def run(tokens, unit, engine=engine, options=options):
            tokens = tokens.clone()
            losses = engine.descend(tokens, *(torch.zeros_like(tokens) for _ in "12"), unit, 0, 8, **options)
            return tokens, losses

        clean, losses = run(tokens, unit)
        bad_tokens, bad_unit = tokens.clone(), unit.clone()
        bad_tokens[1, 0, 3], bad_unit[4], bad_unit[3] = float("nan"), float("nan"), 0
        found, bad_losses = run(bad_tokens, bad_unit)
        assert_same_bits(found[[0, 2]], clean[[0, 2]])
        assert_same_bits(bad_losses[:, [0, 2]], losses[:, [0, 2]])
        assert torch.isnan(found[[1, 4]]).any(-1).all() and torch.isnan(bad_losses[:, [1, 4]]).all()
        assert_close(found[3], tokens[3].double() * (1 - 2e-2 * 0.01) ** 8, "adamw")  # decays, no gradient
        assert torch.isfinite(engine.features(clean)).all(), "what a plan keeps of a NaN row"


def test_empty() -> None:
    tower = random_tower(F32)
    engine = LaunchedTower(LaunchedWeights(tower), some_rows(tower, *SHAPES["apart"]))
    none = torch.empty(0, 2, tower.width)
    targets = torch.empty(0, tower.features)
    options = {"grad_scale": 1.0, "lr": 0.02, "weight_decay": 0.0}
    assert engine.features(none).shape == (0, tower.features)
    assert engine.gradient(none, targets).shape == none.shape
    assert engine.descend(none, none, none, targets, 0, 5, **options).shape == (5, 0)
    one = torch.zeros(1, 2, tower.width)
    assert engine.descend(one, one, one, torch.ones(1, tower.features), 5, 5, **options).shape == (0, 1)
    assert not one.any()


def test_float16_keeps_the_small_gradients_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """1/B of a million samples: below float16's least number unless the gradient is scaled inside."""
    tower = random_tower(F32, width=64, hidden=128)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    start = towers.start(3, 1, tower.width, F32)
    unit = torch.nn.functional.normalize(towers.targets(3, tower.features, F32), dim=1)

    def first_moment(stored: torch.dtype) -> torch.Tensor:
        moment = torch.zeros_like(start)
        LaunchedTower(LaunchedWeights(tower, stored), rows).descend(
            start.clone(),
            moment,
            torch.zeros_like(start),
            unit,
            0,
            1,
            grad_scale=1e-6,
            lr=0.0,
            weight_decay=0.0,
        )
        return moment.flatten(1).double() * 1e7

    want = first_moment(F32)
    assert_row_relative(first_moment(F16), want, "first_moment", dtype=F16)
    monkeypatch.setattr(launched_tower, "_HALF_SCALE", -20)  # a scale of about 1
    with pytest.raises(AssertionError, match=r"of its length: .* is beyond"):
        assert_row_relative(first_moment(F16), want, "first_moment", dtype=F16)


def test_autocast_and_gradients_are_kept_out() -> None:
    tower = random_tower(F32)
    rows = some_rows(tower, *SHAPES["apart"])
    engine = LaunchedTower(LaunchedWeights(tower), rows)
    want = engine.features(torch.ones(2, 2, tower.width))
    with torch.autocast("cpu", dtype=BF16):
        got = LaunchedTower(LaunchedWeights(tower), rows).features(
            torch.ones(2, 2, tower.width).requires_grad_()
        )
    assert_same_bits(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_pieces_are_noticed(fault: str) -> None:
    tower = random_tower(F64, layers=3)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = engines(tower, rows, F64, launched.broken(TorchTowerPieces, fault))[1]
    with pytest.raises(AssertionError):
        check_passes(tower, rows, engine, 3)
        check_descent(tower, rows, engine, 3)


def test_a_mask_or_a_prefix_forgotten_is_noticed() -> None:
    tower = random_tower(F64, layers=3)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    for name in ("mask", "kv"):
        engine = LaunchedTower(LaunchedWeights(tower), rows)
        for passed in engine.plan(3)[0].passes:
            if name == "mask":
                passed.attention.mask = None
            else:
                passed.attention.kv.zero_()
        with pytest.raises(AssertionError):
            check_passes(tower, rows, engine, 3)


@pytest.mark.parametrize("layers", [2, 12])
def test_launches_of_a_step(layers: int) -> None:
    """With kernels 16 a layer and 6, of few rows 10 and 6; on meta tensors what a recorder sees."""
    meta = tower_of_shape(64, 2, layers, 32)
    rows = LearnedRows(torch.empty(9, 64, device="meta"), (-1, -1, 0) + (-1,) * 6, 3)
    for samples, kernels in ((64, True), (72, True), (4, False)):
        names: list[str] = []
        recorder = Recorder()
        step = counted_step(
            meta, rows, samples, lambda *n, to=names: to.append(n[0]), weights=BF16, kernels=kernels
        )
        recorder.capture(step, torch.device("meta"))
        noted = Counter(names)
        total = len(names) + len(recorder.launches)
        if samples == 64:  # 128 rows
            assert total == 10 * layers + 6
            assert (
                noted["few_rows"] == 8 * layers + 2 and noted["layer_norm"] == noted["layer_norm_grad"] == 1
            )
            assert not recorder.launches
        elif kernels:
            assert total == 16 * layers + 6
            assert noted["layer_norm"] == noted["layer_norm_grad"] == 2 * layers + 1
            assert noted["activate"] == noted["activate_grad"] == layers
            assert Counter(recorder.launches) == {"addmm": 4 * layers, "mm": 4 * layers + 2}
        else:
            tower = random_tower(F32, width=64, hidden=256, layers=layers, activation="quick_gelu")
            assert tower.projection is not None
            tower = replace(tower, projection=Linear(tower.projection.weight, None))
            own = some_rows(tower, rows.source, rows.pool)
            graph, seen = engines(tower, own, BF16, TorchTowerPieces)[1:]
            descend(graph, 4, 4)
            assert Counter(seen.launches) == Counter(recorder.launches) and not noted
