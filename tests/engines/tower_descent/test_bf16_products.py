"""compute=torch.bfloat16: products of rounded rows; near float32, independent, refused elsewhere."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext.runtime import backend as _backend
from tests.support import towers
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.places import runnable_isas
from tests.support.random_tower import SHAPES, in_dtype, random_tower, some_rows
from tests.support.towers import F32, F64, TEXT_MODELS, VISION_MODELS

BF16 = torch.bfloat16
HAS = [isa for isa in runnable_isas() if isa.startswith("avx512")] if _backend._C is not None else []
needs = pytest.mark.skipif(
    not (HAS and _backend._C.active_bf16()), reason="needs a processor with AVX-512-BF16"
)


def engine(tower, rows, **options: bool) -> FrozenTower:
    return FrozenTower(PackedTower(tower, **options), rows)


@needs
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width,hidden,heads", [(40, 70, 2), (33, 45, 3), (15, 7, 1)])
def test_features_and_gradients_are_near(shape: str, width: int, hidden: int, heads: int):
    """Even and odd widths; the tower's weights are bfloat16 numbers, so that only rows are rounded."""
    exact = in_dtype(in_dtype(random_tower(F64, width=width, hidden=hidden, heads=heads), BF16), F64)
    tower = in_dtype(exact, F32)
    rows = some_rows(tower, *SHAPES[shape])
    got = engine(tower, rows, bf16_products=True)
    want = FrozenTower(PackedTower(exact), some_rows(exact, *SHAPES[shape]))
    v, g = torch.randn(17, rows.vectors, width), torch.randn(17, 24)
    features, plain = got.features(v), engine(tower, rows).features(v)
    assert not torch.equal(features, plain)
    assert_row_relative(features, want.features(v.double()), "bf16_products", dtype=BF16)
    slopes = want.gradient(v.double(), g.double()).flatten(1)
    assert_row_relative(got.gradient(v, g).flatten(1), slopes, "bf16_products_grad", dtype=BF16)


@needs
def test_a_sample_depends_on_nothing_beside_it(isa: str):
    if isa not in HAS:
        pytest.skip(f"{isa} has no such products")
    tower = random_tower(F32)
    rows = some_rows(tower, *SHAPES["apart"])
    v = torch.randn(150, 2, tower.width)
    v[3] = torch.nan
    torch.set_num_threads(1)
    want = engine(tower, rows, bf16_products=True).features(v)
    torch.set_num_threads(2)
    assert want[3].isnan().all()
    kept = [i for i in range(150) if i != 3]
    assert_same_bits(engine(tower, rows, bf16_products=True).features(v)[kept], want[kept])
    for part in (slice(4, 5), slice(20, 33), slice(100, 150)):
        assert_same_bits(engine(tower, rows, bf16_products=True).features(v[part]), want[part])


def losses(function: str, compute: torch.dtype | None, **options) -> tuple[Tensor, Tensor]:
    models = {"oti": TEXT_MODELS, "ovi": VISION_MODELS}[function]
    model, f = models["open_clip"](), towers.targets(4, towers.D, F32)
    options = {"steps": 30, "generator": torch.Generator().manual_seed(2)} | options
    found = getattr(sb, function)(model, f, compute=compute, **options)
    return found.losses, found.features


@needs
@pytest.mark.parametrize("function", ["oti", "ovi"])
def test_losses_stay_near(function: str):
    exact, features = losses(function, None)
    rounded, others = losses(function, BF16)
    assert not torch.equal(features, others)
    assert_figures(rounded, exact, "rounded_loss", dtype=BF16, scale=1.0)


@needs
def test_a_file_belongs_to_its_products(tmp_path):
    out = tmp_path / "inv.safetensors"
    losses("oti", BF16, out=out)
    assert_same_bits(losses("oti", BF16, out=out)[0], losses("oti", BF16)[0])
    with pytest.raises(ValueError, match="compute"):
        losses("oti", None, out=out)


@needs
def test_the_command(tmp_path):
    from semobridge_ext.cli import main

    words = ["--model", "picto", "--limit", "4", "--steps", "4", "--quiet"]
    for compute in ("exact", "bfloat16"):
        out = str(tmp_path / f"{compute}.safetensors")
        assert main(["invert", "picto:arrows", out, *words, "--compute", compute]) == 0
    exact, rounded = (load_file(tmp_path / f"{c}.safetensors")["features"] for c in ("exact", "bfloat16"))
    assert not torch.equal(exact, rounded)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"oti: compute must be torch\.bfloat16 or None"):
        losses("oti", torch.float16)
    with sb.backend("eager"), pytest.raises(ValueError, match="an engine of 'eager'"):
        losses("oti", BF16)
    with pytest.raises(ValueError, match="a float64 tower"):
        sb.oti(TEXT_MODELS["open_clip"]().double(), towers.targets(1, towers.D, F64), steps=1, compute=BF16)
    _backend._C.set_isa("portable")
    with pytest.raises(ValueError, match="the instruction set portable"):
        losses("oti", BF16)
    packed = PackedTower(random_tower(F32), bf16_products=True)
    with pytest.raises(ValueError, match="no products of bfloat16"):
        FrozenTower(packed, some_rows(packed.tower, *SHAPES["apart"])).features(torch.zeros(1, 2, 40))
