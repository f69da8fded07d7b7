"""The inversion step of few rows, its products with what stands around them, over the emulated kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext._engines.tower_descent import choice
from semobridge_ext._engines.tower_descent.cost import counted_step, tower_of_shape
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.few_rows import FEW_ROWS, FewRowsPlan
from semobridge_ext._engines.tower_descent.plans import plan_of
from semobridge_ext._engines.tower_descent.products import TILE_COLS, TILE_ROWS, Before, Behind, tiles_of
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Linear
from semobridge_ext._engines.tower_descent.step import Plan
from semobridge_ext.ops import LaunchedTower, LaunchedWeights
from tests.support import launched, towers
from tests.support.assertions import assert_cosine, assert_figures, assert_same_bits
from tests.support.graph_recorder import Recorder
from tests.support.inversions import compare
from tests.support.launched import BF16, F16, check_engines, check_passes, descend
from tests.support.random_tower import SHAPES, random_tower, some_rows
from tests.support.towers import F32, TEXT_MODELS, VISION_MODELS

pytestmark = pytest.mark.slow
STORED = [F32, BF16, F16]


def tower_of(stored: torch.dtype = F32, **options):
    """Widths of whole 16 bytes, which no tile of 32 or 64 divides."""
    return random_tower(F32, width=40, hidden=72, **options)


engines = partial(launched.engines, plans=plan_of)


def check(tower, rows, stored: torch.dtype, recorder: Recorder, context: str, samples: int = 3) -> None:
    plain = check_engines(tower, rows, stored, recorder, context, samples, plans=plan_of)
    assert isinstance(plain.plan(samples)[0], FewRowsPlan)


@pytest.mark.parametrize(
    ("shape", "stored"), [*((s, F32) for s in SHAPES), *(("apart", t) for t in STORED[1:])]
)
def test_causal(shape: str, stored: torch.dtype, recorder: Recorder):
    kinds = {"apart": "quick_gelu", "first position": "gelu_tanh"}
    tower = tower_of(activation=kinds.get(shape, "gelu"))
    check(tower, some_rows(tower, *SHAPES[shape]), stored, recorder, shape)


@pytest.mark.parametrize(("layers", "stored"), [(1, F32), (3, F32), (3, BF16)])
@pytest.mark.parametrize("pooling", [False, True])
def test_bidirectional(pooling: bool, layers: int, stored: torch.dtype, recorder: Recorder):
    tower = tower_of(causal=False, layers=layers, pooling=pooling, pre=not pooling)
    rows = some_rows(tower, (-1, 0, 0, 1, 1, 1), None if pooling else 0)
    check(tower, rows, stored, recorder, "bidirectional", samples=2)


@pytest.mark.parametrize("stored", [F32, BF16])
def test_matrices_either_way_round(stored: torch.dtype, recorder: Recorder):
    """A model's weights are transposed views: forward reads along K, backward across it."""
    tower = tower_of(layers=3)

    def turned(linear: Linear) -> Linear:
        return Linear(linear.weight.t().contiguous().t(), linear.bias)

    blocks = tuple(
        replace(b, qkv=turned(b.qkv), out=turned(b.out), fc=turned(b.fc), proj=turned(b.proj))
        for b in tower.blocks
    )
    tower = replace(tower, blocks=blocks)
    assert LaunchedWeights(tower, stored).layers[0].qkv.weight.stride(0) == 1
    check(tower, some_rows(tower, *SHAPES["prefix and suffix"]), stored, recorder, "turned")


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_ends_of_a_tower(final: bool, projection: bool, recorder: Recorder):
    tower = tower_of()
    tower = replace(
        tower, norm_final=tower.norm_final if final else None,
        projection=tower.projection if projection else None,
    )  # fmt: skip
    check(tower, some_rows(tower, *SHAPES["apart"]), F32, recorder, "ends")


@pytest.mark.parametrize("kind", ["open_clip", "OpenAI"])
def test_text_towers(kind: str, recorder: Recorder):
    tower, rows = clip.text_tower(TEXT_MODELS[kind](), "a photo of {} here", num_tokens=2)
    check(tower, rows, F32, recorder, kind)


def test_more_rows_are_cublas_s(recorder: Recorder):
    """At the threshold both sides agree with the oracle, and so do odd widths, which are never taken."""
    tower = tower_of(layers=1)
    rows = some_rows(tower, *SHAPES["behind the pooled row"])  # two slots
    engine = engines(tower, rows, F32, recorder=recorder)[0]
    for samples, kind in ((FEW_ROWS // 2, FewRowsPlan), (FEW_ROWS // 2 + 8, Plan)):
        assert type(engine.plan(samples)[0]) is kind
        check_passes(tower, rows, engine, samples, f"{samples} samples")
    odd = random_tower(F32, width=40, hidden=70)
    assert type(engines(odd, some_rows(odd, *SHAPES["apart"]), F32, recorder=recorder)[0].plan(2)[0]) is Plan
    assert type(LaunchedTower(LaunchedWeights(tower), rows, plans=plan_of).plan(2)[0]) is Plan


def test_a_sample_s_bits_are_its_own(recorder: Recorder):
    """With few rows no library chooses by shape: a batch may be cut anywhere."""
    tower = tower_of()
    rows = some_rows(tower, *SHAPES["apart"])
    engine = engines(tower, rows, BF16, recorder=recorder)[0]
    tokens = towers.start(5, 2, tower.width, F32) * 20
    whole = engine.features(tokens)
    for s in range(5):
        assert_same_bits(engine.features(tokens[s : s + 1]), whole[s : s + 1])
    tokens[1, 0, 3] = float("nan")
    bad = engine.features(tokens)
    assert torch.isnan(bad[1]).all()
    assert_same_bits(bad[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])


def test_150_steps(recorder: Recorder):
    """Against the full context, by replays; tests/inversion/test_invert.py explains the quantile."""
    tower = tower_of()
    rows = some_rows(tower, (-1, -1, 0, -1), 3)
    start = towers.start(10, 1, tower.width, F32)
    unit = torch.nn.functional.normalize(towers.targets(10, tower.features, F32), dim=1)
    found = []
    for engine in (engines(tower, rows, F32, recorder=recorder)[1], EagerTower(tower, rows)):
        tokens, moments = start.clone(), (torch.zeros_like(start), torch.zeros_like(start))
        losses = engine.descend(tokens, *moments, unit, 0, 150, grad_scale=0.1, lr=0.02, weight_decay=0.01)
        found.append((engine.features(tokens), losses))
    assert recorder.replays == 150
    (features, losses), (want, their_losses) = found
    assert_cosine(features, want, "long_descent_cosine", dtype=F32, share=0.8)
    near = (losses - their_losses).abs().amax(0).argsort()[:8]
    assert_figures(losses[:, near], their_losses[:, near], "long_descent_loss", dtype=F32, scale=1.0)
    assert float(losses[-1].mean()) < 0.6 * float(losses[0].mean())


@pytest.mark.parametrize("samples", [2, 70])
def test_launches_of_twelve_layers(samples: int, recorder: Recorder):
    """126 in place of 198, as the recorder counts them and as the count on meta tensors foretells."""
    tower = random_tower(F32, width=64, hidden=256, layers=12, activation="quick_gelu")
    rows = some_rows(tower, (-1, -1, -1, -1, 0, -1, -1), 5)
    descend(engines(tower, rows, BF16, recorder=recorder)[1], samples, 4)
    seen = Counter(name.removesuffix("_cuda") for name in recorder.launches)
    for name, count in sorted(seen.items()):
        print(f"  {name}: {count}")
    assert seen.total() == (126 if samples == 2 else 198)
    names: list[str] = []
    meta, products = tower_of_shape(64, 2, 12, 24), Recorder()
    own = LearnedRows(torch.empty(7, 64, device="meta"), rows.source, rows.pool)
    step = counted_step(meta, own, samples, lambda *note: names.append(note[0]), weights=BF16)
    products.capture(step, torch.device("meta"))
    foretold = Counter([*names, *products.launches])
    if samples == 70:  # random_tower's projection has a bias, CLIP's has none
        foretold["mm"], foretold["addmm"] = foretold["mm"] - 1, foretold["addmm"] + 1
    assert foretold == seen


def test_tiles_on_paper_are_the_kernel_s(emulated):
    for rows, k, cols in ((2, 64, 192), (70, 512, 1536), (128, 2048, 512), (5, 40, 4096)):
        x, weight, y = (torch.empty(*s, device="meta") for s in ((rows, k), (k, cols), (rows, cols)))
        tiles = tiles_of(Before(x), weight, Behind("store", y))
        assert tiles.blocks * TILE_ROWS * TILE_COLS == emulated.few_rows_cuda_sums(rows, k, cols)


class Unnormed(CudaTowerPieces):
    def multiply(self, before, weight, bias, behind):
        super().multiply(replace(before, norm=None) if before.kind == 1 else before, weight, bias, behind)


class Residual(CudaTowerPieces):
    def multiply(self, before, weight, bias, behind):
        super().multiply(replace(before, residual=None), weight, bias, behind)


class Sum(CudaTowerPieces):
    def multiply(self, before, weight, bias, behind):
        kept = behind if behind.kind != "sum" else replace(behind, other=None)
        super().multiply(before, weight, bias, kept)


class Bias(CudaTowerPieces):
    def multiply(self, before, weight, bias, behind):
        super().multiply(before, weight, None, behind)


class Slope(CudaTowerPieces):
    def multiply(self, before, weight, bias, behind):
        kept = behind if behind.kind != "activate_grad" else replace(behind, kind="store", other=None)
        super().multiply(before, weight, bias, kept)


@pytest.mark.parametrize("pieces", [Unnormed, Residual, Sum, Bias, Slope])
def test_broken_pieces_are_noticed(pieces: type[CudaTowerPieces], recorder: Recorder):
    tower = tower_of(layers=3)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = engines(tower, rows, F32, pieces, recorder)[1]
    assert isinstance(engine.plan(3)[0], FewRowsPlan)
    with pytest.raises(AssertionError):
        check_passes(tower, rows, engine, 3)


@pytest.mark.parametrize("function", ["oti", "ovi"])
def test_whole_calls(function: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    """From `sb.oti` and `sb.ovi` down to the kernels, against the full-context program."""
    monkeypatch.setattr(choice, "choose", lambda *_: "cuda")
    model = (TEXT_MODELS if function == "oti" else VISION_MODELS)["open_clip"]()
    width = (clip.text_tower if function == "oti" else clip.vision_tower)(model)[0].width
    f, init = towers.targets(3, towers.D, F32), towers.start(3, 1, width, F32)
    options = {"init": init, "steps": 12, "record_steps": (0, 5, 12)}
    ours = getattr(sb, function)(model, f, **options)
    compare(ours, getattr(sb.reference, function)(model, f, **options), F32, function)
    assert Counter(recorder.launches) == {} and recorder.replays == 0, "no graph on a CPU"
