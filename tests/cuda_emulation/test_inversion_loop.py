"""The inversion step with the kernels of csrc/tower_descent between its products, over their emulation."""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext._engines.tower_descent import choice
from semobridge_ext._engines.tower_descent import cuda as launch_kernels
from semobridge_ext._engines.tower_descent.cuda import FEW_SLOTS, CudaAttention, CudaTowerPieces
from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.spec import LearnedRows
from semobridge_ext._engines.tower_descent.torch import TorchAttention
from tests.support import launched, towers
from tests.support.assertions import assert_close, assert_cosine, assert_figures, assert_same_bits
from tests.support.graph_recorder import Recorder
from tests.support.inversions import compare
from tests.support.launched import BF16, F16, check_descent, check_engines, check_passes, engines
from tests.support.random_tower import SHAPES, random_tower, some_rows
from tests.support.towers import F32, TEXT_MODELS, VISION_MODELS

pytestmark = pytest.mark.slow
STORED = [F32, BF16, F16]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal(shape: str, stored: torch.dtype, recorder: Recorder):
    tower = random_tower(F32, activation="quick_gelu" if shape == "apart" else "gelu")
    check_engines(tower, some_rows(tower, *SHAPES[shape]), stored, recorder, shape)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pooling", [False, True])
def test_bidirectional(pooling: bool, layers: int, stored: torch.dtype, recorder: Recorder):
    tower = random_tower(F32, causal=False, layers=layers, pooling=pooling, pre=not pooling)
    rows = some_rows(tower, (-1, 0, 0, 1, 1, 1), None if pooling else 0)
    check_engines(tower, rows, stored, recorder, "bidirectional", samples=2)


@pytest.mark.parametrize("kind", ["open_clip", "open_clip odd width", "SigLIP text", "CoCa text", "OpenAI"])
def test_text_towers(kind: str, recorder: Recorder):
    tower, rows = clip.text_tower(TEXT_MODELS[kind](), "a photo of {} here", num_tokens=2)
    check_engines(tower, rows, F32, recorder, kind)


@pytest.mark.parametrize("few", [FEW_SLOTS, 3])
@pytest.mark.parametrize("kind", ["open_clip", "SigLIP timm"])
def test_vision_towers(kind: str, few: int, recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    """With the kernels' attention, and with PyTorch's, which takes over where there are many slots."""
    monkeypatch.setattr(launch_kernels, "FEW_SLOTS", few)
    tower, rows = clip.vision_tower(VISION_MODELS[kind](), num_patches=2)
    plan = engines(tower, rows, F32, recorder=recorder)[0].plan(2)[0]
    many = few == 3
    assert all(isinstance(p.attention, TorchAttention if many else CudaAttention) for p in plan.passes)
    check_engines(tower, rows, F32, recorder, kind, samples=2)


def test_constants_of_each_sample(recorder: Recorder):
    tower = random_tower(F32)
    base = torch.randn(7, 5, tower.width)
    base[:1] = base[:1, :1]
    check_engines(tower, LearnedRows(base, (-1, 0, 1, 2, -1, -1, -1), 6), F32, recorder, "classes", samples=5)


def test_150_steps(recorder: Recorder):
    """Against the full context, by replays; tests/inversion/test_invert.py explains the quantile."""
    tower, rows = clip.text_tower(TEXT_MODELS["open_clip"]())
    start = towers.start(10, 1, tower.width, F32)
    unit = torch.nn.functional.normalize(towers.targets(10, tower.features, F32), dim=1)
    found = []
    for engine in (engines(tower, rows, F32, recorder=recorder)[1], EagerTower(tower, rows)):
        tokens, moments = start.clone(), (torch.zeros_like(start), torch.zeros_like(start))
        losses = engine.descend(tokens, *moments, unit, 0, 150, grad_scale=0.1, lr=0.02, weight_decay=0.01)
        found.append((engine.features(tokens), losses))
    assert recorder.replays == 150
    (features, losses), (want, their_losses) = found
    # The eighth of ten, as below: a quantile between it and the ninth holds a fifth of a path that forks.
    assert_cosine(features, want, "long_descent_cosine", dtype=F32, share=7 / 9)
    near = (losses - their_losses).abs().amax(0).argsort()[:8]
    assert_figures(losses[:, near], their_losses[:, near], "long_descent_loss", dtype=F32, scale=1.0)
    assert float(losses[-1].mean()) < 0.2 * float(losses[0].mean())


def test_nan_and_zero_rows_stay_alone(recorder: Recorder):
    tower = random_tower(F32)
    engine = engines(tower, some_rows(tower, *SHAPES["apart"]), F32, recorder=recorder)[1]
    tokens = towers.start(5, 2, tower.width, F32)
    unit = torch.nn.functional.normalize(towers.targets(5, tower.features, F32), dim=1)
    options = {"grad_scale": 0.2, "lr": 0.02, "weight_decay": 0.01}

    def run(tokens, unit):
        tokens = tokens.clone()
        losses = engine.descend(tokens, *(torch.zeros_like(tokens) for _ in "12"), unit, 0, 8, **options)
        return tokens, losses

    clean, losses = run(tokens, unit)
    bad_tokens, bad_unit = tokens.clone(), unit.clone()
    bad_tokens[1, 0, 3], bad_unit[4], bad_unit[3] = float("nan"), float("nan"), 0
    found, bad_losses = run(bad_tokens, bad_unit)
    assert_same_bits(found[[0, 2]], clean[[0, 2]])
    assert_same_bits(bad_losses[:, [0, 2]], losses[:, [0, 2]])
    assert torch.isnan(found[[1, 4]]).any(-1).all()
    assert_close(found[3], tokens[3].double() * (1 - 2e-2 * 0.01) ** 8, "adamw")


@pytest.mark.parametrize(
    "fault", ["residual", "residual of the gradient", "slope", "step counter", "next inputs"]
)
def test_broken_pieces_are_noticed(fault: str, recorder: Recorder):
    tower = random_tower(F32, layers=3)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = engines(tower, rows, F32, launched.broken(CudaTowerPieces, fault), recorder)[1]
    with pytest.raises(AssertionError):
        check_passes(tower, rows, engine, 3)
        check_descent(tower, rows, engine, 3)


@pytest.mark.parametrize("function", ["oti", "ovi"])
def test_whole_calls(function: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    """From `sb.oti` and `sb.ovi` down to the kernels, against the full-context program."""
    monkeypatch.setattr(choice, "choose", lambda *_: "cuda")
    model = TEXT_MODELS["open_clip"]()
    width = (clip.text_tower if function == "oti" else clip.vision_tower)(model)[0].width
    f, init = towers.targets(3, towers.D, F32), towers.start(3, 1, width, F32)
    options = {"init": init, "steps": 12, "record_steps": (0, 5, 12)}
    ours = getattr(sb, function)(model, f, **options)
    compare(ours, getattr(sb.reference, function)(model, f, **options), F32, function)
    early = getattr(sb, function)(model, f, patience=10, min_delta=1.0, **{**options, "steps": 30})
    assert early.steps_done.tolist() == [20, 20, 20] or (early.steps_done < 30).all()
    assert getattr(sb, function)(model, f[:0], steps=3).features.shape == (0, towers.D)
