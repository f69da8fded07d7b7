"""Hugging Face's SigLIP and SigLIP 2 through the protocol, against the models' own features."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.inversion.reference import descend
from semobridge_ext.reference import tower_features
from tests.support.assertions import assert_figures, assert_row_relative
from tests.support.inversions import compare
from tests.support.towers import F32, F64, start, targets

transformers = pytest.importorskip("transformers")

TEXT, VISION, CONTEXT, WORDS = 24, 32, 10, 40
KINDS = ("SiglipModel", "Siglip2Model")


@functools.cache
def _built(kind: str) -> nn.Module:
    text = {
        "vocab_size": WORDS, "hidden_size": TEXT, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": CONTEXT, "projection_size": VISION,
    }  # fmt: skip
    vision = {
        "hidden_size": VISION, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 8, **({"image_size": 32} if kind == "SiglipModel" else {"num_patches": 16}),
    }  # fmt: skip
    torch.manual_seed(2)
    config = getattr(transformers, kind.replace("Model", "Config"))(text_config=text, vision_config=vision)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():  # away from 0 and 1, where a forgotten bias or norm would not show
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.dim() == 1 else 0.05))
    return model.eval()


def build(kind: str, dtype: torch.dtype = F32) -> Any:
    return copy.deepcopy(_built(kind)).to(dtype)


@functools.cache
def tokenizer(side: str = "right") -> Any:
    """A tokenizer of transformers: one word a piece, padded with 1, as SigLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", "x", "z", "a", "photo", "of", "cat", "dog", "big"]
    pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>", padding_side=side
    )


def pooled(out: Any) -> Tensor:
    return getattr(out, "pooler_output", out)


def own_images(model: Any, images: Tensor) -> Tensor:
    """The model's own image features; patches by unfolding, not by the product's reshape."""
    if type(model).__name__ == "SiglipModel":
        return pooled(model.get_image_features(pixel_values=images))
    batch, _, height, width = images.shape
    patches = F.unfold(images, 8, stride=8).reshape(batch, 3, 64, -1).permute(0, 3, 2, 1).flatten(2)
    shapes = torch.tensor([[height // 8, width // 8]] * batch)
    mask = torch.ones(patches.shape[:2], dtype=torch.int64)
    return pooled(model.get_image_features(patches, mask, shapes))


IDS = torch.tensor([[4, 5, 6, 7, 1, 1, 1, 1, 1, 1], [8, 9, 7, 1, 1, 1, 1, 1, 1, 1], list(range(2, 12))])


@pytest.mark.parametrize("kind", KINDS)
def test_texts(kind: str) -> None:
    model = build(kind)
    with torch.no_grad():
        want = pooled(model.get_text_features(IDS))
        hidden, features = adapter_of("test", model).encode_text_with_hidden(IDS)
    assert_row_relative(clip.encode_text(model, IDS, batch_size=2), want.double(), "features", context=kind)
    assert torch.equal(features, want) and hidden.shape == (3, TEXT)
    headed = F.linear(hidden, model.text_model.head.weight, model.text_model.head.bias).detach()
    assert_row_relative(headed, want.double(), "features", context="head")
    mask = {"input_ids": IDS, "attention_mask": (IDS != 1).long()}
    with torch.no_grad():
        masked = pooled(model.get_text_features(**mask))
    got = clip.encode_text(model, mask, batch_size=2)
    assert_row_relative(got, masked.double(), "features", context="mask")


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind: str) -> None:
    model, images = build(kind), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = own_images(model, images)
    got = clip.encode_image(model, images, batch_size=2)
    assert_row_relative(got, want.double(), "features", context=kind)
    assert not got.requires_grad


def test_naflex_images_of_other_shapes() -> None:
    """A tensor that is not square, and the processor's mapping, where each image has its own shape."""
    model, wide = build("Siglip2Model"), torch.randn(2, 3, 16, 48)
    with torch.no_grad():
        want = own_images(model, wide)
    assert_row_relative(clip.encode_image(model, wide), want.double(), "features", context="wide")
    patches = torch.randn(3, 12, 192)
    shapes, mask = torch.tensor([[3, 4], [2, 5], [1, 2]]), torch.zeros(3, 12, dtype=torch.int64)
    for row, (height, width) in zip(mask, shapes.tolist(), strict=True):
        row[: height * width] = 1
    batch = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    with torch.no_grad():
        want = pooled(model.get_image_features(**batch))
    got = clip.encode_image(model, batch, batch_size=2)
    assert_row_relative(got, want.double(), "features", context="mapping")
    with pytest.raises(ValueError, match=r"^encode_image: images must have sides .* of 8, got"):
        clip.encode_image(model, torch.randn(1, 3, 30, 32))


def test_processor_of_transformers() -> None:
    processing = pytest.importorskip("transformers.models.siglip2.image_processing_siglip2")
    image = torch.randn(3, 16, 48)
    own = adapter_of("test", build("Siglip2Model"))._patches(image[None])["pixel_values"][0]
    assert torch.equal(own, processing.convert_image_to_patches(image, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_class_texts(kind: str) -> None:
    model, names = build(kind), ["cat", "big dog"]
    got = sb.class_text_features(model, names, ("{}", "a photo of {}"), tokenizer=tokenizer())
    for i, name in enumerate(names):
        texts = [name, f"a photo of {name}"]
        ids = tokenizer()(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model.text_model(ids)
        before = F.pad(
            out.last_hidden_state[:, -1], (0, 1), value=1.0
        )  # the one that the head's bias stands for
        for have, rows in ((got.projected, out.pooler_output), (got.hidden, before)):
            want = F.normalize(F.normalize(rows, dim=1).mean(dim=0), dim=0)
            assert_row_relative(have[i], want.double(), "features")
    with pytest.raises(ValueError, match=rf"^class_text_features: tokenizer must be given for a {kind}, got"):
        sb.class_text_features(model, names)


# -- towers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_towers_are_the_models(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype)
    tower, rows = clip.text_tower(model, "a photo of {}", tokenizer=tokenizer())
    assert not tower.causal and rows.pool == CONTEXT - 1 and rows.source.index(0) == 3
    ids = tokenizer()(["a photo of cat"], padding="max_length", max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        want = pooled(model.get_text_features(ids["input_ids"])).double()
        word = model.text_model.embeddings.token_embedding.weight[7].reshape(1, 1, -1)
        assert_row_relative(tower_features(tower, rows, word), want, "tower", context=kind)

        tower, rows = clip.vision_tower(model, num_patches=16)
        images = torch.randn(2, 3, 32, 32, dtype=dtype)
        v = adapter_of("test", model).patch_rows(images)
        assert v.shape == (2, 16, VISION) and rows.pool is None and len(rows.source) == 16
        want = own_images(model, images).double()
        assert_row_relative(tower_features(tower, rows, v), want, "tower", context=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens,side", [(1, "right"), (2, "left")])
def test_oti_is_the_reference(kind: str, num_tokens: int, side: str) -> None:
    model, f = build(kind, F64), targets(3, VISION)
    options = {
        "template": "a big {} photo", "num_tokens": num_tokens, "steps": 17, "record_steps": (5,),
        "init": start(3, num_tokens, TEXT), "tokenizer": tokenizer(side),
    }  # fmt: skip
    compare(sb.oti(model, f, **options), sb.reference.oti(model, f, **options), F64, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_patches", [1, 3])
def test_ovi_is_autograd_over_all_patches(kind: str, num_patches: int) -> None:
    model, f, init = build(kind, F64), targets(3, VISION), start(3, num_patches, VISION)
    embedding = model.vision_model.embeddings.patch_embedding

    def features_of(v: Tensor) -> Tensor:
        rows = F.interpolate(v.transpose(1, 2), size=16, mode="nearest")  # [B, V, 16]

        def replace(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            return rows.transpose(1, 2) if out.dim() == 3 else rows.reshape(out.shape)

        hook = embedding.register_forward_hook(replace)
        try:
            return own_images(model, torch.zeros(len(v), 3, 32, 32, dtype=F64))
        finally:
            hook.remove()

    ours = sb.ovi(model, f, num_patches=num_patches, steps=17, init=init)
    compare(ours, descend(features_of, init, f, 17, 2e-2, 0.01, ()), F64, kind)


# -- facts and refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_facts(kind: str) -> None:
    model = build(kind)
    adapter = adapter_of("test", model)
    assert type(adapter).__name__ == "Siglip" and adapter.image_format.size == (32, 32)
    assert (adapter.context_length, adapter.vocab_size) == (CONTEXT, WORDS)
    with torch.no_grad():
        x, t = F.normalize(torch.randn(2, VISION), dim=1), F.normalize(torch.randn(3, VISION), dim=1)
        logits = x.double() @ t.T.double() * model.logit_scale.double().exp() + model.logit_bias.double()
    assert adapter.logit_bias is not None
    ours = x @ t.T * adapter.logit_scale + adapter.logit_bias
    assert_figures(ours, logits, "figure", dtype=F32)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_are_not_linear_are_refused(kind: str) -> None:
    model = build(kind)
    headless = (
        rf"^(IsoCLIP.from_clip|encode_image): .* got {kind} with a Siglip2?Vision\w+ without one \(SigLIP"
    )
    images = torch.zeros(1, 3, 32, 32)
    for call in (sb.IsoCLIP.from_clip, lambda m: clip.encode_image(m, images, project=False)):
        with pytest.raises(TypeError, match=headless):
            call(model)
    explicit = sb.Bridge(model.text_model.head.weight.detach().T, atol=0.0)  # the bias left out on purpose
    assert explicit(torch.randn(2, VISION)).shape == (2, VISION)


@pytest.mark.parametrize("kind", KINDS)
def test_towers_refused_by_name(kind: str) -> None:
    model = build(kind)
    model.vision_model.head.mlp.activation_fn = nn.GELU()
    with pytest.raises(NotImplementedError, match="another activation than the blocks"):
        clip.vision_tower(model)
    model.config.vision_config.vision_use_head = model.vision_model.use_head = False
    model.vision_model.config.vision_use_head = False
    for call in (clip.vision_tower, lambda m: clip.encode_image(m, torch.zeros(1, 3, 32, 32))):
        with pytest.raises(NotImplementedError, match=rf"got {kind} without a pooling head; (use|take)"):
            call(model)
