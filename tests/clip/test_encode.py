"""clip/encode.py: features before the projection, against each model's own projected output."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor, nn

from semobridge_ext.clip import encode_image, encode_text, image_projection, text_projection
from tests.support.assertions import assert_row_relative
from tests.support.towers import (
    TEXT_CONFIG,
    VISION,
    D,
    open_clip_model,
    timm_linear,
)
from tests.support.towers import TEXT_MODELS as TEXTS
from tests.support.towers import VISION_MODELS as VISIONS

IDS = torch.zeros(3, 16, dtype=torch.int64)
for _row, _length in enumerate((5, 9, 16)):
    IDS[_row, :_length] = torch.arange(100, 100 + _length) + 7 * _row
    IDS[_row, 0], IDS[_row, _length - 1] = 49406, 49407
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def average_pooled() -> nn.Module:
    return open_clip_model(vision={"pool_type": "avg"})


IMAGE_MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, make in VISIONS.items() if name != "SigLIP timm"},
    "open_clip average": average_pooled,
    "timm linear head": timm_linear,
}
TEXT_MODELS = {
    name: make
    for name, make in TEXTS.items()
    if name not in ("CustomTextCLIP linear", "CustomTextCLIP no projection", "SigLIP text")
}


def own_image_features(model: nn.Module) -> Tensor:
    if hasattr(model, "visual_projection"):
        return model.visual_projection(model.vision_model(IMAGES).pooler_output)
    return model.encode_image(IMAGES)


def own_text_features(model: nn.Module) -> Tensor:
    if hasattr(model, "text_model"):
        return model.text_projection(model.text_model(IDS).pooler_output)
    return model.encode_text(IDS)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_before_the_projection(name: str):
    model = IMAGE_MODELS[name]().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = encode_image(model, IMAGES, project=False, batch_size=2)
    assert x.shape == (5, VISION) if name != "OpenAI" else x.shape == (5, 64)
    assert not x.requires_grad and model.training, "left as it was found"
    model.eval()
    with torch.no_grad():
        want = own_image_features(model).double()
    projected = x.double() @ image_projection(model).double()
    assert_row_relative(projected, want, "features", dtype=torch.float32, context=name)
    assert_row_relative(encode_image(model, IMAGES), want, "features", context=name)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_texts_before_the_projection(name: str):
    model = TEXT_MODELS[name]()
    x = encode_text(model, IDS, project=False, batch_size=2)
    assert x.shape == (3, text_projection(model).shape[0]) and not x.requires_grad
    with torch.no_grad():
        want = own_text_features(model).double()
    projected = x.double() @ text_projection(model).double()
    assert_row_relative(projected, want, "features", dtype=torch.float32, context=name)
    assert_row_relative(encode_text(model, IDS), want, "features", context=name)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hugging_face_batches():
    model = TEXT_MODELS["Hugging Face"]()
    batch = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
    with torch.no_grad():
        hidden = model.text_model(**batch).pooler_output
    for project, want in ((True, model.text_projection(hidden)), (False, hidden)):
        got = encode_text(model, batch, project=project, batch_size=2)
        assert_row_relative(got, want.detach().double(), "features")


def test_towers_without_a_linear_projection_are_refused():
    siglip = VISIONS["SigLIP timm"]()
    with pytest.raises(TypeError, match=r"encode_image: .* without one .*SigLIP.*; use a model"):
        encode_image(siglip, IMAGES, project=False)
    assert encode_image(siglip, IMAGES).shape == (5, VISION), "projected features need no matrix"
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    resnet = open_clip.CLIP(D, vision, dict(TEXT_CONFIG))
    with pytest.raises(TypeError, match=r"CLIP with a ModifiedResNet without one"):
        image_projection(resnet)
    with pytest.raises(TypeError, match=r"must be a CLIP model"):
        image_projection("ViT-B-32")
