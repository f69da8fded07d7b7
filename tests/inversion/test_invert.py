"""OTI and OVI against the full-context autograd program through the model's own forward."""

from __future__ import annotations

import signal

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import clip
from tests.support import towers
from tests.support.assertions import assert_close, assert_cosine, assert_figures, assert_same_bits
from tests.support.inversions import compare, interrupt_after
from tests.support.towers import F32, F64, TEXT, TEXT_MODELS, VISION_MODELS

TEMPLATES = ("a photo of {}", "a photo of {} in the wild.", "{} is big", "{}")


@pytest.mark.parametrize("kind", TEXT_MODELS)
@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_oti_is_the_reference(kind: str, num_tokens: int) -> None:
    dtype = towers.exact_dtype(kind)
    model = TEXT_MODELS[kind]().to(dtype)
    tower, _ = clip.text_tower(model)
    f = towers.targets(3, tower.features, dtype)
    options = {
        "template": TEMPLATES[num_tokens % 4], "num_tokens": num_tokens, "steps": 17,
        "init": towers.start(3, num_tokens, tower.width, dtype), "record_steps": (0, 1, 5, 17),
    }  # fmt: skip
    compare(sb.oti(model, f, **options), sb.reference.oti(model, f, **options), dtype, kind)


@pytest.mark.parametrize("correct", [False, True])
def test_a_text_that_fills_the_context_of_coca(correct: bool) -> None:
    model, f = towers.coca_text(correct).double(), towers.targets(3, towers.D)
    options = {"template": "a photo of {}" + " a" * 10, "init": towers.start(3, 1, TEXT), "steps": 5}
    compare(sb.oti(model, f, **options), sb.reference.oti(model, f, **options), F64)


@pytest.mark.parametrize("template", TEMPLATES)
def test_150_steps(template: str) -> None:
    model = TEXT_MODELS["open_clip"]().double()
    f = towers.targets(4, towers.D)
    options = {"template": template, "init": towers.start(4, 1, TEXT), "record_steps": (1, 5, 17, 150)}
    ours, theirs = sb.oti(model, f, **options), sb.reference.oti(model, f, **options)
    compare(ours, theirs, F64, template)
    assert float(ours.losses[-1]) < 0.5 * float(ours.losses[0])


def test_the_eager_backend_under_no_grad() -> None:
    model, f, init = (
        TEXT_MODELS["open_clip"](),
        towers.targets(2, towers.D, F32),
        towers.start(2, 1, TEXT, F32),
    )
    with sb.backend("eager"):
        want = sb.oti(model, f, init=init, steps=3)
        with torch.no_grad():
            assert_same_bits(sb.oti(model, f, init=init, steps=3).tokens, want.tokens)


def test_150_steps_in_float32() -> None:
    """Features and losses of the full-context run. On so small a tower rounding lets a few paths fork, the
    oracle's own (float32 against float64) as well: the quantile allows a tenth of them."""
    model = TEXT_MODELS["open_clip"]()
    f, init = towers.targets(30, towers.D, F32), towers.start(30, 1, TEXT, F32)
    ours, theirs = sb.oti(model, f, init=init), sb.reference.oti(model, f, init=init)
    assert_cosine(ours.features, theirs.features, "long_descent_cosine", dtype=F32, share=0.9)
    assert_figures(ours.losses, theirs.losses, "long_descent_loss", dtype=F32, scale=1.0)


@pytest.mark.parametrize("kind", VISION_MODELS)
@pytest.mark.parametrize("num_patches", [1, 3])
def test_ovi_is_the_reference(kind: str, num_patches: int) -> None:
    dtype = towers.exact_dtype(kind)
    model = VISION_MODELS[kind]().to(dtype)
    f = towers.targets(3, towers.feature_width(model), dtype)
    options = {
        "num_patches": num_patches, "steps": 17, "record_steps": (0, 5, 17),
        "init": towers.start(3, num_patches, clip.vision_tower(model)[0].width, dtype),
    }  # fmt: skip
    compare(sb.ovi(model, f, **options), sb.reference.ovi(model, f, **options), dtype, kind)


def test_float16_model_is_read_exactly() -> None:
    """OpenAI's float16 weights: the engine's numbers are those of the same weights in float32."""
    half = towers.openai_model(half=True)
    f, init = towers.targets(2, towers.D, F32), towers.start(2, 1, TEXT, F32)
    ours = sb.oti(half, f, init=init, steps=20)
    wide = sb.oti(half.float(), f, init=init, steps=20, weights=F32)
    assert_same_bits(ours.tokens, wide.tokens)
    assert ours.tokens.dtype is F32


def test_eager_backend() -> None:
    model, f = TEXT_MODELS["open_clip"]().double(), towers.targets(3, towers.D)
    options = {"init": towers.start(3, 1, TEXT), "steps": 20, "record_steps": (3, 20)}
    with sb.backend("eager"):
        ours = sb.oti(model, f, **options)
    compare(ours, sb.reference.oti(model, f, **options), F64)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_chunks_change_no_bit(batch_size: int) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(7, towers.D, F32)
    init = towers.start(7, 2, TEXT, F32)
    options = {"init": init, "num_tokens": 2, "steps": 12, "record_steps": (5,)}
    whole, split = sb.oti(model, f, **options), sb.oti(model, f, batch_size=batch_size, **options)
    assert_same_bits(split.tokens, whole.tokens)
    assert_same_bits(split.features, whole.features)
    assert_same_bits(split.recorded[5], whole.recorded[5])


def test_seed_decides() -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(2, towers.D, F32)

    def run(seed: int) -> torch.Tensor:
        return sb.oti(model, f, steps=3, generator=torch.Generator().manual_seed(seed)).tokens

    assert_same_bits(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_start_values() -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(400, towers.D, F32)
    tokens = sb.oti(model, f, steps=0, num_tokens=2).tokens
    assert abs(float(tokens.std()) / 0.02 - 1) < 0.02 and abs(float(tokens.mean())) / 0.02 < 0.05
    one = towers.start(1, 2, TEXT, F32)[0]
    given = sb.oti(model, f[:3], steps=0, num_tokens=2, init=one)
    assert_same_bits(given.tokens, one.expand(3, -1, -1).contiguous())
    assert given.losses.shape == (0,) and given.features.shape == (3, towers.D)
    assert_figures(given.features.norm(dim=1), torch.ones(3), "length", dtype=F32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_no_targets_are_named(value: float) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(5, towers.D, F32).clone()
    f[1, 3] = f[4, 0] = value
    with pytest.raises(ValueError, match=r"img_feats must be finite, got .* in 2 of 5 rows \(1, 4\)"):
        sb.oti(model, f, steps=1)


def test_zero_rows_stay_alone() -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(5, towers.D, F32)
    init = towers.start(5, 1, TEXT, F32)
    clean = sb.oti(model, f, init=init, steps=10)
    f = f.clone()
    f[3] = 0
    inv = sb.oti(model, f, init=init, steps=10)
    rows = [0, 1, 2, 4]
    assert_same_bits(inv.tokens[rows], clean.tokens[rows])
    assert_close(inv.tokens[3], init[3].double() * (1 - 2e-2 * 0.01) ** 10, "adamw")  # decays, no gradient
    assert torch.isfinite(inv.losses).all()


def test_empty_batch() -> None:
    inv = sb.oti(TEXT_MODELS["open_clip"](), torch.empty(0, towers.D), steps=3, record_steps=(1,))
    assert inv.tokens.shape == (0, 1, TEXT) and inv.features.shape == (0, towers.D)
    assert inv.recorded[1].shape == (0, towers.D)


def test_inputs_are_not_modified() -> None:
    model, f, init = (
        TEXT_MODELS["open_clip"](),
        towers.targets(2, towers.D, F32),
        towers.start(2, 1, TEXT, F32),
    )
    kept = [f.clone(), init.clone(), *(p.clone() for p in model.parameters())]
    sb.oti(model, f, init=init, steps=3)
    for now, before in zip([f, init, *model.parameters()], kept, strict=True):
        assert torch.equal(now, before)


def test_trained_weights_are_noticed() -> None:
    """The packed copy is kept with the model, and made again when a weight changes."""
    model, f = TEXT_MODELS["open_clip"](), towers.targets(2, towers.D, F32)
    init = towers.start(2, 1, TEXT, F32)
    first = sb.oti(model, f, init=init, steps=3)
    with torch.no_grad():
        model.transformer.resblocks[0].mlp.c_fc.weight.mul_(1.5)
    second = sb.oti(model, f, init=init, steps=3)
    assert not torch.equal(first.tokens, second.tokens)
    compare(second, sb.reference.oti(model, f, init=init, steps=3), F32)


def test_rounded_weights_stay_near() -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(4, towers.D, F32)
    init = towers.start(4, 1, TEXT, F32)
    exact = sb.oti(model, f, init=init, steps=50)
    rounded = sb.oti(model, f, init=init, steps=50, weights=torch.bfloat16)
    assert not torch.equal(rounded.features, exact.features)
    assert_figures(rounded.losses, exact.losses, "rounded_loss", dtype=torch.bfloat16, scale=1.0)


def test_early_stopping_leaves_the_others_alone() -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(6, towers.D, F32)
    options = {"init": towers.start(6, 1, TEXT, F32), "steps": 200, "record_steps": (0, 50, 200)}
    full = sb.oti(model, f, **options)
    early = sb.oti(model, f, patience=20, min_delta=2e-2, **options)
    done = early.steps_done
    assert bool((done < 200).any()) and bool((done % 10 == 0).all())
    for s in range(6):
        steps = int(done[s])
        alone = sb.oti(model, f, **{**options, "steps": steps, "record_steps": ()})
        assert_same_bits(early.tokens[s], alone.tokens[s])
        assert_same_bits(early.recorded[200][s], early.features[s])
    assert_same_bits(early.recorded[0], full.recorded[0])
    assert torch.isfinite(early.losses).all()


def test_ctrl_c_returns_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model, f = TEXT_MODELS["open_clip"](), towers.targets(600, towers.D, F32)
    init = towers.start(600, 1, TEXT, F32)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(20, patch)
        inv = sb.oti(model, f, init=init, steps=100_000, batch_size=100, record_steps=(5,))
    assert inv.interrupted and 0 < len(inv.tokens) < 600
    steps = int(inv.steps_done[0])
    assert 0 < steps < 100_000 and len(inv.features) == len(inv.tokens) == len(inv.steps_done)
    short = sb.oti(model, f, init=init, steps=5, batch_size=100)
    assert_same_bits(inv.recorded[5][:100], short.features[:100])
    assert signal.getsignal(signal.SIGINT) is before


def forgetful(texts: list[str], context_length: int) -> torch.Tensor:
    """A tokenizer that cleans single characters away."""
    return torch.tensor([[49406, 320, 1125, 539, 49407] + [0] * (context_length - 5) for _ in texts])


BAD = {
    "not a tensor": ({"img_feats": [1.0]}, TypeError, "img_feats must be a torch.Tensor"),
    "integers": ({"img_feats": torch.ones(2, towers.D, dtype=torch.long)}, TypeError, "must be float32"),
    "one row": ({"img_feats": torch.ones(towers.D)}, ValueError, "must be 2-D"),
    "width": ({"img_feats": torch.ones(2, 7)}, ValueError, "must have width 24"),
    "no placeholder": ({"template": "a photo"}, ValueError, "must contain {} once"),
    "two placeholders": ({"template": "{} and {}"}, ValueError, "must contain {} once"),
    "swallowed": ({"tokenizer": forgetful}, ValueError, "must keep 1 placeholder"),
    "too long": ({"template": "a " * 20 + "{}"}, ValueError, "must keep 1 placeholder"),
    "suffix cut off": ({"template": "{}" + " a" * 20}, ValueError, "must keep 1 placeholder"),
    "too many tokens": ({"num_tokens": 20}, ValueError, "must keep 20 placeholder"),
    "no tokens": ({"num_tokens": 0}, ValueError, "num_tokens must be an int of at least 1"),
    "negative steps": ({"steps": -1}, ValueError, "steps must be an int of at least 0"),
    "steps kind": ({"steps": 1.5}, TypeError, "steps must be an int"),
    "batch size": ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1"),
    "record": ({"record_steps": (9,)}, ValueError, "record_steps must be ≤ steps=4"),
    "lr": ({"lr": float("nan")}, ValueError, "lr must be a finite number"),
    "init": ({"init": torch.zeros(2, 2, TEXT)}, ValueError, r"init must be \[B, R, T\]"),
    "weights": ({"weights": torch.int8}, TypeError, "weights must be None"),
    "patience": ({"patience": 0}, ValueError, "patience must be an int of at least 1"),
    "model": ({"model": "ViT-B-32"}, TypeError, "model must be a CLIP model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    changed, kind, words = BAD[case]
    arguments = {"model": TEXT_MODELS["open_clip"](), "img_feats": torch.ones(2, towers.D), "steps": 4}
    arguments.update(changed)
    with pytest.raises(kind, match=words) as caught:
        sb.oti(arguments.pop("model"), arguments.pop("img_feats"), **arguments)
    assert str(caught.value).startswith("oti: ")  # what was called, not what it calls
