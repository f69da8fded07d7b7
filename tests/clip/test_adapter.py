"""The protocol: which family a model is of, and what its adapter says, against the models' own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext.clip.adapter import Adapter, TextPooling
from semobridge_ext.clip.families import FAMILIES, adapter_of, families
from semobridge_ext.clip.template import default_tokenizer
from tests.support import towers
from tests.support.assertions import assert_close, assert_row_relative
from tests.support.towers import TEXT_MODELS, VISION_MODELS

FAMILY = {
    "open_clip": "OpenClip",
    "CustomTextCLIP": "OpenClip",
    "SigLIP text": "OpenClip",
    "OpenAI": "OpenAI",
    "Hugging Face": "HuggingFace",
}


@pytest.mark.parametrize("kind", FAMILY)
def test_each_model_finds_its_family(kind: str) -> None:
    model = TEXT_MODELS[kind]()
    adapter = adapter_of("test", model)
    assert type(adapter).__name__ == FAMILY[kind] and adapter.model is model and adapter.function == "test"
    assert (adapter.context_length, adapter.vocab_size) == (16, 49408)
    assert adapter.image_format.size == (32, 32)
    assert float(adapter.logit_scale) == pytest.approx(float(model.logit_scale.detach().exp()))
    assert not adapter.logit_scale.requires_grad and adapter.logit_bias is None
    assert adapter.default_tokenizer()(["cat"]).shape == (1, 16)


def test_the_registry_names_adapters_once() -> None:
    assert len({name.split(".")[0] for name in FAMILIES}) == len(FAMILIES) == len(families())
    for family in families():
        assert issubclass(family, Adapter) and family.supports


def test_embedded_model() -> None:
    adapter = adapter_of("test", sb.load_picto_clip()[0])
    size, mean, std = adapter.image_format
    assert size == (48, 48) and mean is not None and std is not None and len(mean) == len(std) == 3


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_patch_rows_are_the_rows_before_the_positions(kind: str) -> None:
    model, images = VISION_MODELS[kind](), torch.randn(2, 3, 32, 32)
    rows = adapter_of("test", model).patch_rows(images)
    assert rows.shape[:2] == (2, 16)
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    want = copy.deepcopy(convolution).double()(images.double()).flatten(2).transpose(1, 2)
    assert_close(rows, want, "op")


@pytest.mark.parametrize(
    "pooling,want",
    [
        (TextPooling("argmax"), [2, 1]),
        (TextPooling("eos", 7), [1, 0]),
        (TextPooling("eos", 8), [0, 2]),
        (TextPooling("eos"), [0, 0]),
        (TextPooling("first"), [0, 0]),
        (TextPooling("last"), [3, 3]),
    ],
    ids=str,
)
def test_text_pooling(pooling: TextPooling, want: list[int]) -> None:
    ids = torch.tensor([[1, 7, 9, 7], [7, 9, 8, 8]])
    assert pooling.positions(ids).tolist() == want
    assert [int(pooling.positions(row)) for row in ids] == want
    x = torch.randn(2, 4, 3)
    assert torch.equal(pooling.rows(x, ids), torch.stack([x[0, want[0]], x[1, want[1]]]))


CALLS: dict[str, Callable[[object], object]] = {
    "text_projection": clip.text_projection,
    "image_projection": clip.image_projection,
    "text_tower": clip.text_tower,
    "vision_tower": clip.vision_tower,
    "encode_text": lambda model: clip.encode_text(model, torch.zeros(1, 4, dtype=torch.int64)),
    "encode_image": lambda model: clip.encode_image(model, torch.zeros(1, 3, 8, 8)),
    "class_text_features": lambda model: sb.class_text_features(model, ["cat"]),
}


@pytest.mark.parametrize("function", CALLS)
def test_other_models_are_refused_by_name(function: str) -> None:
    with pytest.raises(TypeError, match=rf"^{function}: model must be one of .*CLIPModel.*, got Linear; \S"):
        CALLS[function](nn.Linear(2, 2))
    with pytest.raises(TypeError, match=rf"^{function}: model must be a CLIP model .*, got str; \S"):
        CALLS[function]("ViT-B-32")


def test_unknown_pooling_is_refused() -> None:
    model = towers.open_clip_model()
    model.text_pool_type = "middle"
    ids = torch.zeros(1, 16, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"^encode_text: model must pool .* 'middle'; take"):
        clip.encode_text(model, ids, project=False)
    with pytest.raises(NotImplementedError, match=r"^text_tower: .* with text pooling 'middle'"):
        clip.text_tower(model)


def test_half_precision_images_of_openai() -> None:
    """float16 weights beside float32 parameters: the model itself converts its images."""
    half, images = towers.openai_model(half=True), torch.randn(2, 3, 32, 32)
    x = clip.encode_image(half, images, project=False)
    want = clip.encode_image(half, images).double()
    projected = x.double() @ clip.image_projection(half).double()
    assert_row_relative(projected, want, "features", dtype=torch.float16)


def test_a_class_embedding_is_no_place_for_a_token() -> None:
    """CoCa appends it to the tokens itself, so 17 positions hold 16."""
    model = towers.coca_text()
    assert len(model.text.positional_embedding) == 17
    want = model.encode_text(default_tokenizer("test", 49408, 16)(["a photo of a cat"])).detach()
    assert_row_relative(sb.encode_text(model, ["a photo of a cat"]), want.double(), "features")
