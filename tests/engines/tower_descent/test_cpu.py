"""The engine against the same tower in plain float64 PyTorch, features and autograd's gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semobridge_ext import clip
from semobridge_ext._engines.tower_descent.spec import LearnedRows, MaskedRows, Tower, slots_of
from semobridge_ext.ops import FrozenTower, PackedTower
from semobridge_ext.reference import tower_features
from semobridge_ext.runtime import backend as _backend
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.places import runnable_isas
from tests.support.random_tower import SHAPES, in_dtype, random_tower, some_rows
from tests.support.towers import F32, F64, TEXT_MODELS, VISION_MODELS


def check(tower: Tower, rows: LearnedRows, samples: int, dtype: torch.dtype, context: str = "") -> None:
    """Both passes of the engine in ``dtype`` against float64 on the same rounded numbers."""
    generator = torch.Generator().manual_seed(12)
    v = torch.randn(samples, rows.vectors, tower.width, generator=generator, dtype=F64).to(dtype)
    g = torch.randn(samples, tower.features, generator=generator, dtype=F64).to(dtype)
    wide = v.double().requires_grad_()
    want = tower_features(in_dtype(tower, F64), replace(rows, base=rows.base.double()), wide)
    (grad,) = torch.autograd.grad(want, wide, g.double())
    engine = FrozenTower(PackedTower(tower), rows)
    assert_row_relative(engine.features(v), want.detach(), "tower", context=f"{context} features")
    flat = engine.gradient(v, g).flatten(1)
    assert_row_relative(flat, grad.flatten(1), "tower_grad", context=f"{context} gradient")
    unit = torch.nn.functional.normalize(want.detach(), dim=1)
    assert_row_relative(engine.features(v, unit=True), unit, "tower", context=f"{context} unit features")


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal(isa: str, shape: str, activation: str, dtype: torch.dtype) -> None:
    tower = random_tower(dtype, activation=activation)
    check(tower, some_rows(tower, *SHAPES[shape]), 3, dtype, f"{isa} {shape}")


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("pooling", [False, True])
@pytest.mark.parametrize("pre", [False, True])
def test_bidirectional(isa: str, pre: bool, pooling: bool, layers: int, dtype: torch.dtype) -> None:
    tower = random_tower(dtype, causal=False, layers=layers, pooling=pooling, pre=pre)
    rows = some_rows(tower, (-1, 0, 0, 1, 1, 1), None if pooling else 0)
    check(tower, rows, 2, dtype, isa)


@pytest.mark.parametrize("width,heads,hidden", [(32, 1, 32), (33, 3, 65), (64, 2, 513), (96, 1, 1100)])
def test_odd_sizes(isa: str, width: int, heads: int, hidden: int) -> None:
    tower = random_tower(width=width, heads=heads, hidden=hidden)
    check(tower, some_rows(tower, *SHAPES["prefix and suffix"]), 2, F64, isa)


@pytest.mark.parametrize("samples", [1, 2, 13, 29, 90])
def test_batch_sizes_and_threads(samples: int) -> None:
    """One block, several, a team on one: the same bits, and those of each sample alone."""
    tower = random_tower(F32, width=96, hidden=200)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    engine = FrozenTower(PackedTower(tower), rows)
    v, g = torch.randn(samples, 1, 96), torch.randn(samples, 24)
    torch.set_num_threads(1)
    features, gradient = engine.features(v), engine.gradient(v, g)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(engine.features(v), features)
        assert_same_bits(engine.gradient(v, g), gradient)
    for s in {0, samples // 2, samples - 1}:
        assert_same_bits(engine.features(v[s : s + 1]), features[s : s + 1])
        assert_same_bits(engine.gradient(v[s : s + 1], g[s : s + 1]), gradient[s : s + 1])


def test_wide_team() -> None:
    """A tower wide enough that several threads share its columns, with two samples."""
    tower = random_tower(F32, width=256, hidden=512, heads=4)
    rows = some_rows(tower, *SHAPES["prefix and suffix"])
    torch.set_num_threads(2)
    check(tower, rows, 1, F32)
    check(tower, rows, 2, F32)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_16_bit_weights(isa: str, stored: torch.dtype) -> None:
    """Weights that are 16-bit numbers give the bits of the same weights kept in float32."""
    tower = random_tower(F32)
    rounded = in_dtype(in_dtype(tower, stored), F32)
    rows = some_rows(tower, *SHAPES["apart"])
    v = torch.randn(20, 2, tower.width)
    want = FrozenTower(PackedTower(rounded, F32), rows).features(v)
    assert_same_bits(FrozenTower(PackedTower(rounded, stored), rows).features(v), want)
    # A tower that is stored rounded is another tower, by about the dtype's precision.
    exact = FrozenTower(PackedTower(tower), rows).features(v).double()
    off = (want.double() - exact).norm() / exact.norm()
    assert 1e-5 < float(off) < 2e-2


def test_lossless_half_is_chosen() -> None:
    tower = random_tower(F32)
    assert PackedTower(tower).stored is F32
    assert PackedTower(in_dtype(in_dtype(tower, torch.float16), F32)).stored is torch.float16
    assert PackedTower(random_tower(F64)).stored is F64


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_learned_context_with_constants_of_its_own(threads: int) -> None:
    """CoOp's shape: one context for all classes, class words behind it; gradients add up over classes.

    Several threads cut the classes into blocks, and each block must find its own classes' words.
    """
    torch.set_num_threads(threads)
    tower = random_tower()
    generator = torch.Generator().manual_seed(14)
    base = torch.randn(7, 5, tower.width, generator=generator, dtype=F64)  # [L, classes, T]
    base[:1] = base[:1, :1]
    rows = LearnedRows(base, (-1, 0, 1, 2, -1, -1, -1), 6)
    context = torch.randn(1, 3, tower.width, generator=generator, dtype=F64, requires_grad=True)
    want = tower_features(tower, rows, context.expand(5, -1, -1))
    g = torch.randn(want.shape, generator=generator, dtype=F64)
    (grad,) = torch.autograd.grad(want, context, g)
    engine = FrozenTower(PackedTower(tower), rows)
    v = context.detach().expand(5, -1, -1).contiguous()
    assert_row_relative(engine.features(v), want.detach(), "tower")
    ours = engine.gradient(v, g).sum(0, keepdim=True)
    assert_row_relative(ours.flatten(1), grad.flatten(1), "tower_grad")


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_text_towers(kind: str) -> None:
    tower, rows = clip.text_tower(TEXT_MODELS[kind]().double(), "a photo of {} here", num_tokens=2)
    check(tower, rows, 2, F64, kind)


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_vision_towers(kind: str) -> None:
    tower, rows = clip.vision_tower(VISION_MODELS[kind]().double(), num_patches=2)
    check(tower, rows, 2, F64, kind)


def test_gradient_check_by_differences() -> None:
    """Independent of autograd: central differences of the engine's own features, in double."""
    tower = random_tower(layers=3)
    engine = FrozenTower(PackedTower(tower), some_rows(tower, *SHAPES["apart"]))
    v, g = torch.randn(2, 2, tower.width, dtype=F64), torch.randn(2, 24, dtype=F64)
    gradient = engine.gradient(v, g)
    for _ in range(5):
        d = torch.randn_like(v)
        ahead, back = engine.features(v + 1e-6 * d), engine.features(v - 1e-6 * d)
        slope = ((ahead - back) * g).sum() / 2e-6
        scale = float((gradient * d).abs().sum())
        assert_figures((gradient * d).sum(), slope, "differences", scale=scale)


def test_nan_stays_in_its_sample() -> None:
    tower = random_tower(F32)
    engine = FrozenTower(PackedTower(tower), some_rows(tower, *SHAPES["apart"]))
    v = torch.randn(30, 2, tower.width)
    clean = engine.features(v)
    v[7, 1, 3] = float("nan")
    features = engine.features(v)
    assert torch.isnan(features[7]).all()
    keep = [i for i in range(30) if i != 7]
    assert_same_bits(features[keep], clean[keep])


def test_slots() -> None:
    tower = random_tower()
    slots = slots_of(tower, some_rows(tower, (-1, -1, 0, -1, -1, -1), 4))
    assert slots.prefix == 2 and slots.order == (4, 2, 3)
    assert slots.visible == ((0, 1, 2), (1,), (1, 2))
    whole = slots_of(random_tower(causal=False), some_rows(tower, (-1, 0, -1), 0))
    assert whole.prefix == 0 and set(whole.visible) == {(0, 1, 2)}
    with pytest.raises(ValueError, match="before position 2"):
        slots_of(tower, some_rows(tower, (-1, -1, 0), 1))
    with pytest.raises(ValueError, match="a learned position"):
        slots_of(tower, some_rows(tower, (-1, -1), 1))


def test_slots_of_a_row_that_nobody_sees() -> None:
    tower = random_tower()
    rows = some_rows(tower, (-1, -1, 0, -1), 3)
    slots = slots_of(tower, MaskedRows(rows.base, rows.source, rows.pool, (3,)))
    assert slots.order == (3, 2) and slots.visible == ((1,), (1,))
    with pytest.raises(
        ValueError, match=r"must not stand before a learned position, got \(1,\) before position 2"
    ):
        slots_of(tower, MaskedRows(rows.base, rows.source, rows.pool, (1,)))


def test_workspace_does_not_grow_with_the_batch() -> None:
    tower = random_tower(F32)
    engine = FrozenTower(PackedTower(tower), some_rows(tower, *SHAPES["prefix and suffix"]))
    assert engine.workspace_bytes(10_000) < 1.2 * engine.workspace_bytes(1_000) < 64 << 20


def test_core_refuses_what_its_kernels_would_misread() -> None:
    engine = FrozenTower(PackedTower(random_tower()), some_rows(random_tower(), *SHAPES["apart"]))
    native = engine._native
    with pytest.raises(ValueError, match="one list per slot"):
        native.set_slots([0, -1], [[0]], 0, 0, 0, 0)
    native.set_slots([5, -1], [[0], [1]], 0, engine._rows.base.data_ptr(), 40, 0)
    with pytest.raises(ValueError, match="source must name a vector"):
        native.evaluate(1, 1, 0, False, 0, 0, 1, 1)
    assert _backend._C.active_isa() in runnable_isas()
