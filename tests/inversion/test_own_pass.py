"""OTI and OVI through a model's own forward pass, where the engine does not read the tower."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.clip import own_pass
from semobridge_ext.clip.adapter import Adapter
from semobridge_ext.clip.towers import text_entry, vision_entry
from semobridge_ext.inversion.reference import descend
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.inversions import compare, interrupt_after
from tests.support.tower_zoo import TEXT_WAYS, VISION_WAYS, Way, features_of
from tests.support.towers import F32, F64

QUICK_TEXT, QUICK_VISION = ("an adapted layer", "AltCLIP"), ("mean of patches", "EVA")


def ways(kinds: dict, quick: tuple[str, ...]) -> list:
    return [k if k in quick else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


def check(way: Way, side: str) -> None:
    """Five steps, whose losses and tokens hold each gradient, against autograd through hooks of the test."""
    model = way.model.double()
    of = features_of(way)
    width = of(towers.start(1, 1, way.width)).shape[1]
    f, init = towers.targets(3, width), towers.start(3, 1, way.width)
    options = {"steps": 5, "init": init, "record_steps": (0, 2, 5)}
    want = descend(of, init, f, 5, 2e-2, 0.01, (0, 2, 5))
    if side == "text":
        got = sb.oti(model, f, tokenizer=way.tokenizer, **options)
    else:
        got = sb.ovi(model, f, **options)
    assert got.engine == "model"
    compare(got, want, F64)


@pytest.mark.parametrize("kind", ways(TEXT_WAYS, QUICK_TEXT))
def test_oti_is_autograd_through_the_model(kind: str) -> None:
    check(TEXT_WAYS[kind](), "text")


@pytest.mark.parametrize("kind", ways(VISION_WAYS, QUICK_VISION))
def test_ovi_is_autograd_through_the_model(kind: str) -> None:
    check(VISION_WAYS[kind](), "vision")


def _model() -> Way:
    return VISION_WAYS["mean of patches"]()


def test_the_engine_stays_where_it_can(caplog: pytest.LogCaptureFixture) -> None:
    model, f = towers.TEXT_MODELS["open_clip"](), towers.targets(2, towers.D, F32)
    assert sb.oti(model, f, steps=1).engine == sb.ovi(model, f, steps=1).engine == "native"
    with sb.backend("eager"):
        assert sb.oti(model, f, steps=1).engine == "eager"
    assert not caplog.records


def test_a_note_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semobridge_ext.clip.towers._told", set())
    model, f = _model().model, towers.targets(2, towers.D, F32)
    for _ in range(2):
        sb.ovi(model, f, steps=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    told = "ovi: the vision tower runs through the model itself, by autograd: VisionTransformer with pooling"
    assert record.getMessage().startswith(told)


def test_an_engine_that_was_asked_for_is_not_replaced() -> None:
    model, f = _model().model, towers.targets(2, towers.D, F32)
    for name in ("native", "triton"):
        with sb.backend(name), pytest.raises(NotImplementedError, match=r"^ovi: .* pooling 'avg'"):
            sb.ovi(model, f, steps=1)
    for option in ("weights", "compute"):
        told = rf"^ovi: {option} must be None for CLIP, its own image pass, got .*bfloat16"
        with pytest.raises(ValueError, match=told):
            sb.ovi(model, f, steps=1, **{option: torch.bfloat16})


def test_no_patches_no_way_in() -> None:
    model = towers.open_clip_model(vision={"layers": (1, 1, 1, 1), "width": 16})
    told = r"^ovi: model must have a supported tower, got ModifiedResNet, which turns no image into"
    with pytest.raises(NotImplementedError, match=told):
        sb.ovi(model, towers.targets(1, towers.D, F32), steps=1)
    with pytest.raises(ValueError, match="at most the model's 16 patches, got 17"):
        sb.ovi(_model().model, towers.targets(1, towers.D, F32), steps=1, num_patches=17)


def test_the_model_is_left_as_it_was() -> None:
    model, f = _model().model.train(), towers.targets(2, towers.D, F32)
    model.visual.ln_post.eval()
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    sb.ovi(model, f, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    for name, p in model.named_parameters():
        assert p.requires_grad and p.grad is None
        assert_same_bits(p.detach(), kept[name])


def test_half_weights_are_widened() -> None:
    half, f = _model().model.bfloat16(), towers.targets(2, towers.D, F32)
    init = towers.start(2, 1, towers.VISION, F32)
    ours = sb.ovi(half, f, init=init, steps=3)
    assert ours.tokens.dtype == F32 and half.visual.proj.dtype == torch.bfloat16
    assert_same_bits(ours.tokens, sb.ovi(half.float(), f, init=init, steps=3).tokens)


def test_the_copy_of_half_weights_goes_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    held, twin = [], own_pass._twin

    def watched(adapter: Adapter) -> Adapter:
        made = twin(adapter)
        held.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(own_pass, "_twin", watched)
    gc.disable()  # no circle may need it: the copy may be gigabytes
    try:
        entry = vision_entry("ovi", _model().model.bfloat16())
        assert held[0]() is not None
        del entry
        assert held[0]() is None
    finally:
        gc.enable()


def test_under_inference_mode() -> None:
    model, f = _model().model, towers.targets(2, towers.D, F32)
    init = towers.start(2, 1, towers.VISION, F32)
    want = sb.ovi(model, f, init=init, steps=3).tokens
    with torch.inference_mode():
        got = sb.ovi(model, f, init=init, steps=3).tokens
    assert_same_bits(got.clone(), want)


def test_chunks_agree() -> None:
    way = _model()
    model, f = way.model.double(), towers.targets(5, towers.D)
    init = towers.start(5, 2, towers.VISION)
    options = {"init": init, "num_patches": 2, "steps": 4, "record_steps": (2,)}
    compare(sb.ovi(model, f, batch_size=2, **options), sb.ovi(model, f, **options), F64)


def test_padding_is_left_out_where_it_changes_nothing() -> None:
    masked = TEXT_WAYS["RoBERTa in open_clip, mean"]()
    entry = text_entry("oti", masked.model, "a photo of {}", tokenizer=masked.tokenizer)
    assert len(entry.rows.source) == 7 and entry.rows.source[4] == 0  # one of ten paddings stays
    # Without a mask every position is seen, padding too.
    model = towers.custom_text_model({**towers.TEXT_CONFIG, "no_causal_mask": True})
    model.text.transformer.register_forward_hook(lambda _m, _i, out: out)
    assert len(text_entry("oti", model, "a photo of {}").rows.source) == 16


def test_what_the_feature_does_not_see_is_refused() -> None:
    model = towers.custom_text_model({**towers.TEXT_CONFIG, "pool_type": "first"})
    model.text.transformer.register_forward_hook(lambda _m, _i, out: out)
    with pytest.raises(ValueError, match=r"^oti: model must feel what is learned in it, got .*not depend"):
        sb.oti(model, towers.targets(1, towers.D, F32), steps=1)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = _model().model
    model.lock_of_its_own = threading.Lock()
    with pytest.raises(NotImplementedError, match=r"^ovi: .*CLIP, whose modules cannot be copied \(.*lock"):
        sb.ovi(model, towers.targets(1, towers.D, F32), steps=1)


def test_a_file_goes_on_and_belongs_to_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, f = _model().model, towers.targets(4, towers.D, F32)
    options = {"init": towers.start(4, 1, towers.VISION, F32), "steps": 12, "batch_size": 2}
    want = sb.ovi(model, f, out=tmp_path / "whole.safetensors", **options)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        assert sb.ovi(model, f, out=tmp_path / "cut.safetensors", **options).interrupted
    resumed = sb.ovi(model, f, out=tmp_path / "cut.safetensors", **options)
    assert_same_bits(resumed.tokens, want.tokens)
    assert resumed.engine == "model"
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    with torch.no_grad():
        model.visual.proj[0, 0] += 1
    with pytest.raises(ValueError, match="with other model_digest"):
        sb.ovi(model, f, out=tmp_path / "whole.safetensors", **options)


def test_a_learned_start_for_such_a_model() -> None:
    way = TEXT_WAYS["AltCLIP"]()
    f = towers.targets(24, towers.D, F32)
    phi = sb.InversionMap.fit(
        way.model, f, pilots=12, steps=4, refine=(2,), train_steps=0, tokenizer=way.tokenizer,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = sb.oti(way.model, f, init=phi, steps=0, tokenizer=way.tokenizer)
    assert_same_bits(found.tokens, phi(f))
    with torch.no_grad():
        way.model.text_projection.weight[0, 0] += 1
    with pytest.raises(ValueError, match="init must be a map of this model"):
        sb.oti(way.model, f, init=phi, steps=0, tokenizer=way.tokenizer)
