"""`sb.oti` and `sb.ovi` by launches: the choice of the engine, and whole calls on CPU tensors.

A CUDA device's steps are replays of a graph; here tests/support/graph_recorder.py repeats them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext._engines.tower_descent import choice
from semobridge_ext._engines.tower_descent import step as launched_tower
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext.inversion import descent as _descent
from semobridge_ext.ops import FrozenTower, LaunchedTower
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.step_graph import repeatable
from tests.support import towers
from tests.support.assertions import (
    assert_close,
    assert_cosine,
    assert_figures,
    assert_row_relative,
    assert_same_bits,
)
from tests.support.graph_recorder import Recorder
from tests.support.inversions import compare, interrupt_after
from tests.support.random_tower import random_tower, some_rows
from tests.support.towers import F32, F64, TEXT, TEXT_MODELS, VISION, VISION_MODELS

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


# -- which engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_build", [True, False])
def test_choice(cuda_build: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "HAS_CUDA", cuda_build)
    kind = choice.choose
    assert kind("oti", CPU, F32) == kind("oti", CPU, F64) == "cpu"
    assert kind("oti", CUDA, F32) == kind("oti", CUDA, F64) == "torch", "no nvcc kernels were asked for"
    with sb.backend("eager"):
        assert kind("oti", CPU, F32) == kind("oti", CUDA, F32) == "eager"
    with sb.backend("native"):
        assert kind("oti", CPU, F32) == "cpu"
        if cuda_build:
            assert kind("oti", CUDA, F32) == "cuda"
            with pytest.raises(NotImplementedError, match="has no CUDA kernel for this call"):
                kind("oti", CUDA, F64)
        else:
            with pytest.raises(RuntimeError, match="built without CUDA"):
                kind("oti", CUDA, F32)
    with sb.backend("triton"), pytest.raises(NotImplementedError, match="'triton' has no kernel"):
        kind("oti", CUDA, F32)
    monkeypatch.setattr(_backend, "_C", None)
    assert kind("oti", CPU, F32) == "eager" and kind("oti", CUDA, F32) == "torch"


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_engine_of_a_cuda_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "HAS_CUDA", True)
    monkeypatch.setattr(choice, "fingerprint", lambda tower: ())  # fake tensors hold nothing
    model = torch.nn.Linear(2, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tower = random_tower(F32)
        kept = {"blocks": tower.blocks, "projection": tower.projection, "norm_final": tower.norm_final}
        tower = type(tower)(**{**vars(tower), **{k: on_cuda(v) for k, v in kept.items()}})
        rows = some_rows(tower, (-1, 0, -1), 2)
        rows = type(rows)(rows.base.to(CUDA), rows.source, rows.pool)
        for name, pieces in (("auto", TorchTowerPieces), ("native", CudaTowerPieces)):
            with sb.backend(name):
                engine = choice.make_engine("oti", model, tower, rows, torch.bfloat16)
            assert isinstance(engine, LaunchedTower) and engine._pieces is pieces
            assert engine.stored is torch.bfloat16 and engine.compute is F32 and engine.device == CUDA
        with sb.backend("eager"):
            engine = choice.make_engine("oti", model, tower, rows, None)
        assert isinstance(engine, EagerTower)


def on_cuda(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(CUDA)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(on_cuda(v) for v in value))
    if isinstance(value, tuple):
        return tuple(on_cuda(v) for v in value)
    return type(value)(**{k: on_cuda(v) for k, v in vars(value).items()}) if hasattr(value, "qkv") else value


def test_weights_are_kept_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TEXT_MODELS["open_clip"]()
    tower, rows = clip.text_tower(model)
    make = choice.make_engine
    core = make("oti", model, tower, rows, None)
    monkeypatch.setattr(choice, "choose", lambda *_: "torch")
    first, second = (make("oti", model, tower, rows, None) for _ in range(2))
    assert isinstance(core, FrozenTower) and isinstance(first, LaunchedTower)
    assert first.weights is second.weights
    assert make("oti", model, tower, rows, torch.bfloat16).weights is not first.weights
    with torch.no_grad():
        model.transformer.resblocks[0].mlp.c_fc.weight.mul_(1.5)
    assert make("oti", model, tower, rows, torch.bfloat16).weights is not second.weights


def test_features_of_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"oti: img_feats must be on cpu, got .* on meta; move one"):
        sb.oti(TEXT_MODELS["open_clip"](), torch.ones(2, towers.D, device="meta"))


def test_a_slice_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    _descent._await(CPU)
    _descent._await(CUDA)
    assert waited == [CUDA]


# -- whole calls -------------------------------------------------------------------------------------


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The engine of a CUDA device on CPU tensors, its graph a recorder."""
    torch.set_num_threads(1)
    recorder = Recorder()

    def graph(step, state, device, *, capture):
        assert capture is None
        return repeatable(step, state, device, capture=recorder.capture)

    monkeypatch.setattr(launched_tower, "repeatable", graph)
    monkeypatch.setattr(choice, "choose", lambda *_: "torch")
    return recorder


@pytest.mark.parametrize("kind", ["open_clip", "open_clip layer scale", "SigLIP text"])
def test_oti_is_the_reference(kind: str, recorder: Recorder) -> None:
    model = TEXT_MODELS[kind]().double()
    f, init = towers.targets(3, towers.D), towers.start(3, 2, TEXT)
    options = {"template": "a photo of {} in the wild.", "num_tokens": 2, "init": init, "steps": 90,
               "record_steps": (0, 1, 5, 64, 90)}  # fmt: skip
    compare(sb.oti(model, f, **options), sb.reference.oti(model, f, **options), F64, kind)
    assert recorder.replays == 90


@pytest.mark.parametrize("kind", ["open_clip", "SigLIP timm"])
def test_ovi_is_the_reference(kind: str, recorder: Recorder) -> None:
    model = VISION_MODELS[kind]().double()
    f, init = towers.targets(3, towers.feature_width(model)), towers.start(3, 3, VISION)
    options = {"num_patches": 3, "steps": 17, "init": init, "record_steps": (0, 5, 17)}
    compare(sb.ovi(model, f, **options), sb.reference.ovi(model, f, **options), F64, kind)


def test_150_steps_are_the_core_s(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(20, towers.D, F32)
    init = towers.start(20, 1, TEXT, F32)
    ours = sb.oti(model, f, init=init, batch_size=8)
    assert recorder.replays == 450, "three chunks"
    monkeypatch.setattr(choice, "choose", lambda *_: "cpu")
    core = sb.oti(model, f, init=init)
    assert_cosine(ours.features, core.features, "long_descent_cosine", dtype=F32, share=0.9)
    assert_figures(ours.losses, core.losses, "long_descent_loss", dtype=F32, scale=1.0)


def test_early_stopping_leaves_the_others_alone(recorder: Recorder) -> None:
    model, f = TEXT_MODELS["open_clip"]().double(), towers.targets(6, towers.D)
    options = {"init": towers.start(6, 1, TEXT), "steps": 200, "record_steps": (0, 50, 200)}
    early = sb.oti(model, f, patience=20, min_delta=2e-2, **options)
    done = early.steps_done
    assert bool((done < 200).any()) and bool((done % 10 == 0).all()) and len(set(done.tolist())) > 1
    for s in range(6):
        alone = sb.oti(model, f, **{**options, "steps": int(done[s]), "record_steps": ()})
        assert_row_relative(early.tokens[s], alone.tokens[s], "descent", context=f"sample {s}")
        assert_same_bits(early.recorded[200][s], early.features[s])
    assert torch.isfinite(early.losses).all()


def test_nan_and_zero_rows_stay_alone(recorder: Recorder) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(5, towers.D, F32)
    init = towers.start(5, 1, TEXT, F32)
    clean = sb.oti(model, f, init=init, steps=10)
    init[1], f[3] = float("nan"), 0
    inv = sb.oti(model, f, init=init, steps=10)
    assert_same_bits(inv.tokens[[0, 2, 4]], clean.tokens[[0, 2, 4]])
    assert torch.isnan(inv.tokens[1]).all() and torch.isfinite(inv.losses).all()
    assert_close(inv.tokens[3], init[3].double() * (1 - 2e-2 * 0.01) ** 10, "adamw")
    patient = sb.oti(model, f, init=init, steps=40, patience=10)
    assert int(patient.steps_done[1]) == 10, "a NaN loss never improves"


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch: int, recorder: Recorder) -> None:
    model = TEXT_MODELS["open_clip"]()
    inv = sb.oti(model, towers.targets(batch, towers.D, F32), steps=3, record_steps=(1, 3))
    assert inv.tokens.shape == (batch, 1, TEXT) and inv.features.shape == (batch, towers.D)
    assert inv.recorded[1].shape == (batch, towers.D) and inv.losses.shape == (3,)
    assert torch.isfinite(inv.features).all()


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16])
def test_half_types_stay_near(weights: torch.dtype, recorder: Recorder) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(4, towers.D, F32)
    init = towers.start(4, 1, TEXT, F32)
    exact = sb.oti(model, f, init=init, steps=50)
    rounded = sb.oti(model, f, init=init, steps=50, weights=weights)
    assert rounded.tokens.dtype is rounded.features.dtype is F32
    assert not torch.equal(rounded.features, exact.features)
    assert_figures(rounded.losses, exact.losses, "rounded_loss", dtype=weights, scale=1.0)
    assert_figures(rounded.features.norm(dim=1), torch.ones(4), "length", dtype=F32)


def test_resumed_is_the_unbroken_run(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(12, towers.D, F32)
    options = {"init": towers.start(12, 1, TEXT, F32), "steps": 12, "batch_size": 4, "record_steps": (5,)}
    whole = sb.oti(model, f, out=tmp_path / "whole.safetensors", **options)
    kept, calls = LaunchedTower.features, []

    def fails_in_the_second_chunk(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(self, *args, **kwargs)

    monkeypatch.setattr(LaunchedTower, "features", fails_in_the_second_chunk)
    out = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sb.oti(model, f, out=out, **options)
    assert len(list(tmp_path.glob("broken.safetensors.parts/chunk-*"))) == 1
    recorder.replays = 0
    resumed = sb.oti(model, f, out=out, **options)
    assert recorder.replays == 2 * 12, "the finished chunk was taken again"
    assert_same_bits(resumed.tokens, whole.tokens)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_ctrl_c_returns_what_is_done(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(60, towers.D, F32)
    init = towers.start(60, 1, TEXT, F32)
    with monkeypatch.context() as patch:
        interrupt_after(10, patch)
        inv = sb.oti(model, f, init=init, steps=100_000, batch_size=10, record_steps=(2,))
    assert inv.interrupted and len(inv.tokens) == 10
    steps = int(inv.steps_done[0])
    assert 2 < steps < 100_000
    alone = sb.reference.oti(model.double(), f[:10].double(), init=init[:10].double(), steps=2)
    assert_row_relative(inv.recorded[2], alone.features, "descent")


# -- on a GPU ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "open_clip"])
@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("function", ["oti", "ovi"])
def test_on_a_gpu(function: str, backend: str, kind: str) -> None:
    """The real graph; a capture that fails warns, and warnings are errors here."""
    if backend == "native" and not _backend.HAS_CUDA:
        pytest.skip("this build has no CUDA kernels (no nvcc at installation)")
    model = (towers.PLAIN_MODELS | TEXT_MODELS)[kind]()
    width = TEXT if function == "oti" else VISION
    f, init = towers.targets(5, towers.D, F32), towers.start(5, 1, width, F32)
    options = {"init": init, "steps": 20, "record_steps": (0, 5, 20)}
    if (function, kind) == ("oti", "plain"):
        options["tokenizer"] = towers.PLAIN_TOKENIZER
    want = getattr(sb, function)(model, f, **options)
    model = model.cuda()
    with sb.backend(backend):
        got = getattr(sb, function)(model, f.cuda(), **options)
        half = getattr(sb, function)(model, f.cuda(), weights=torch.bfloat16, **options)
        early = getattr(sb, function)(model, f.cuda(), patience=10, min_delta=1.0, **options)
    assert got.tokens.is_cuda and got.features.is_cuda and got.recorded[5].is_cuda
    assert_row_relative(got.features.cpu(), want.features.double(), "descent")
    assert_row_relative(got.recorded[5].cpu(), want.recorded[5].double(), "descent")
    assert_figures(half.losses, want.losses, "rounded_loss", dtype=torch.bfloat16, scale=1.0)
    assert bool((early.steps_done < 20).any())
