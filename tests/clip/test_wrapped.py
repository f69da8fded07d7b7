"""Wrapped models are the ones inside; adapters that weights do not hold are refused, and so are others."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext.cli.sweep import open_clip_models
from semobridge_ext.clip.families import adapter_of
from tests.support.assertions import assert_row_relative, assert_same_bits
from tests.support.towers import D, hugging_face_model, timm_linear

IDS = torch.tensor([[49406, 320, 1125, 49407, *[0] * 12], [49406, 539, 49407, *[0] * 13]])

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize(
    "wrapper", ["DataParallel", "torch.compile", pytest.param("both", marks=pytest.mark.slow)]
)
def test_wrappers(wrapper: str) -> None:
    model = hugging_face_model()
    wrapped = WRAPPERS[wrapper](model)
    assert adapter_of("test", wrapped).model is model
    f, names = torch.randn(3, D), ["cat", "dog"]
    assert_same_bits(sb.Bridge.from_clip(wrapped)(f), sb.Bridge.from_clip(model)(f))
    assert_same_bits(clip.encode_text(wrapped, IDS), clip.encode_text(model, IDS))
    found, want = (sb.class_text_features(m, names) for m in (wrapped, model))
    assert_same_bits(found.projected, want.projected)
    init = torch.zeros(1, 48)
    assert_same_bits(
        sb.oti(wrapped, f, steps=2, init=init).features, sb.oti(model, f, steps=2, init=init).features
    )


def with_lora(model: nn.Module, *targets: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
    torch.manual_seed(4)
    with warnings.catch_warnings():  # peft 0.19 asks transformers 5 by a name that goes away
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(copy.deepcopy(model), config).eval()


def test_adapters_of_peft() -> None:
    model = hugging_face_model()
    adapted = with_lora(model, "q_proj", "text_projection")
    with torch.no_grad():
        out = adapted.get_text_features(input_ids=IDS)
        want = (out if isinstance(out, torch.Tensor) else out.pooler_output).double()
    assert_row_relative(clip.encode_text(adapted, IDS), want, "features")
    assert float((clip.encode_text(model, IDS).double() - want).norm() / want.norm()) > 0.01
    unmerged = r"adapters of peft that are not merged; call merge_and_unload\(\) first"
    with pytest.raises(
        TypeError, match=rf"^Bridge.from_clip: CLIPModel's model.text_projection .*{unmerged}"
    ):
        sb.Bridge.from_clip(adapted)
    init, f = torch.zeros(1, 48), torch.randn(2, D)
    found = sb.class_text_features(adapted, ["cat"], ["{}", "a {}"])
    assert found.hidden is None and "adapters of peft" in found.reason

    plain = copy.deepcopy(adapted).merge_and_unload()
    adapted.merge_adapter()
    assert_row_relative(clip.encode_text(adapted, IDS), want, "features")
    assert_same_bits(sb.Bridge.from_clip(adapted).text_projection, sb.Bridge.from_clip(plain).text_projection)
    assert not torch.equal(
        sb.Bridge.from_clip(plain).text_projection, sb.Bridge.from_clip(model).text_projection
    )
    ours, theirs = (sb.oti(m, f, steps=2, init=init).features for m in (adapted, plain))
    assert_row_relative(ours, theirs.double(), "features")


def test_towers_with_adapters_are_refused_by_name() -> None:
    adapted = with_lora(hugging_face_model(), "q_proj")
    with pytest.raises(NotImplementedError, match=r"^text_tower: .*q_proj = Linear with adapters of peft"):
        clip.text_tower(adapted)
    sb.Bridge.from_clip(adapted)  # its projection has none


def test_models_with_clips_names_that_compute_something_else() -> None:
    from semobridge_ext.cli.sweep.other_models import MODELS

    pytest.importorskip("transformers")
    model = MODELS["transformers OwlViTModel"]()
    calls = {
        "Bridge.from_clip": sb.Bridge.from_clip,
        "class_text_features": lambda m: sb.class_text_features(m, ["cat"]),
        "text_tower": clip.text_tower,
        "encode_image": lambda m: clip.encode_image(m, torch.zeros(1, 3, 16, 16)),
    }
    for name, call in calls.items():
        with pytest.raises(
            TypeError, match=rf"^{name}: model must be one of .*, got OwlViTModel, a .*; pass"
        ):
            call(model)


# -- class texts without s_c ---------------------------------------------------------------------------


def test_class_texts_under_a_nonlinear_head() -> None:
    pytest.importorskip("transformers")
    config = open_clip_models.small_config("xlm-roberta-base-ViT-B-32")
    model, tokens = open_clip_models.build(config).eval(), open_clip_models.tokenizer(config)
    names = ["cat", "dog"]
    got = sb.class_text_features(model, names, lambda name: f"a photo of {name}", tokenizer=tokens)
    assert got.hidden is None and got.length is None
    assert "model.text.proj must be a matrix or a Linear layer, got Sequential" in got.reason
    with torch.no_grad():
        want = torch.cat([model.encode_text(tokens([f"a photo of {name}"])) for name in names]).double()
    assert_row_relative(got.projected, nn.functional.normalize(want, dim=1), "features")
    with pytest.raises(ValueError, match=r"text_hidden must"):
        shots = torch.randn(4, D)
        sb.SeMoBridgeT("identity", got.projected, got.hidden, steps=1).fit(shots, names * 2)


def test_heads_of_timms_convolutional_trunks() -> None:
    """Pooling and norm stand in trunk.head, whose fc is none: open_clip's own Linear layer ends the tower."""
    timm = pytest.importorskip("timm")
    model = timm_linear()
    trunk = timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0)
    model.visual.trunk = trunk.eval()
    images = torch.randn(2, 3, 32, 32)
    before = clip.encode_image(model, images, project=False)
    with torch.no_grad():
        assert_row_relative(before, trunk(images).double(), "features")
        want = model.encode_image(images).double()
    assert_row_relative(
        before.double() @ clip.image_projection(model).double(), want, "features", dtype=torch.float32
    )
    sb.IsoCLIP.from_clip(model, k_top=1, k_bottom=1)
    trunk.reset_classifier(D)
    model.visual.head = nn.Sequential()
    assert clip.image_projection(model, bias=True).shape == (33, D) or not bool(trunk.head.fc.bias.any())
    assert clip.encode_image(model, images, project=False).shape == (2, 32)
