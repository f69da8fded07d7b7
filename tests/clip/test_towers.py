"""Adapters: the extracted tower is the model's own, and what is not supported is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semobridge_ext import clip
from semobridge_ext._engines.tower_descent.spec import slots_of
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.template import default_tokenizer, template_ids
from semobridge_ext.reference import tower_features
from tests.support import towers
from tests.support.assertions import assert_row_relative
from tests.support.towers import TEXT_MODELS, VISION_MODELS


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_text_tower_is_the_models(kind: str) -> None:
    """With the word's own embedding as the learned row, the feature is that of the plain prompt."""
    dtype = towers.exact_dtype(kind)
    model = TEXT_MODELS[kind]().to(dtype)
    tower, rows = clip.text_tower(model, "a photo of {} outside")
    tokenizer = default_tokenizer("test", 49408)
    ids = tokenizer(["a photo of cat outside"], context_length=16)
    if hasattr(model, "text_model"):
        embedding = model.text_model.embeddings.token_embedding
        want = model.get_text_features(ids)
        want = getattr(want, "pooler_output", want)
    else:
        embedding = getattr(model, "text", model).token_embedding
        want = model.encode_text(ids)
    place = rows.source.index(0)
    got = tower_features(tower, rows, embedding.weight[ids[0, place]].reshape(1, 1, -1))
    assert_row_relative(got, want.detach().double(), "tower", dtype=dtype, context=kind)


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_vision_tower_is_the_models(kind: str) -> None:
    """With the patch embeddings of an image as pseudo-patches, the feature is that of the image."""
    dtype = towers.exact_dtype(kind)
    model = VISION_MODELS[kind]().to(dtype)
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    patches = 16
    tower, rows = clip.vision_tower(model, num_patches=patches)
    if hasattr(model, "vision_model"):
        embed = model.vision_model.embeddings.patch_embedding
        want = model.get_image_features(images)
        want = getattr(want, "pooler_output", want)
    else:
        embed = model.visual.trunk.patch_embed if hasattr(model.visual, "trunk") else model.visual.conv1
        want = model.encode_image(images)
    v = embed(images)
    v = v if v.dim() == 3 else v.flatten(2).transpose(1, 2)
    got = tower_features(tower, rows, v)
    assert_row_relative(got.detach(), want.detach().double(), "tower", dtype=dtype, context=kind)


def test_nearest_patches() -> None:
    _, rows = clip.vision_tower(VISION_MODELS["open_clip"](), num_patches=3)
    want = torch.nn.functional.interpolate(torch.arange(3.0)[None, None], size=16, mode="nearest")
    assert rows.source == (-1, *want.flatten().long().tolist()) and rows.pool == 0


def _masked() -> nn.Module:
    model = TEXT_MODELS["open_clip"]()
    model.attn_mask[0, 1] = 0
    return model


def _other_activation() -> nn.Module:
    model = TEXT_MODELS["open_clip"]()
    model.transformer.resblocks[1].mlp.gelu = nn.ReLU()
    return model


def _mixed_activations() -> nn.Module:
    model = TEXT_MODELS["open_clip"]()
    model.transformer.resblocks[1].mlp.gelu = nn.GELU(approximate="tanh")
    return model


REFUSED_TEXT = {
    "no CLIP": (lambda: nn.Linear(2, 2), "Linear"),
    "custom blocks": (
        lambda: towers.custom_text_model({**towers.TEXT_CONFIG, "qk_norm": True, "block_type": "custom"}),
        "CustomResidualAttentionBlock",
    ),
    "mask": (_masked, "neither causal nor absent"),
    "activation": (_other_activation, "activation ReLU"),
    "activations": (_mixed_activations, "different activations"),
}


@pytest.mark.parametrize("case", REFUSED_TEXT)
def test_text_towers_refused_by_name(case: str) -> None:
    make, words = REFUSED_TEXT[case]
    with pytest.raises(NotImplementedError, match=words):
        clip.text_tower(make())


def test_an_appended_row_is_for_those_who_know_of_it() -> None:
    """The prefix tree and learned prompts pool a token; they are refused what pools another row."""
    adapter = adapter_of("encode_text", towers.coca_text())
    with pytest.raises(NotImplementedError, match=r"class embedding \(CoCa\)"):
        adapter.read_text(Reader("encode_text", torch.float32, "the own pass runs"))


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("words", [1, 10])
def test_the_mask_of_a_class_embedding(words: int, correct: bool) -> None:
    """Behind little text the released mask shows a padding and hides the row itself; a full one does not."""
    model = towers.coca_text(correct)
    tower, rows = clip.text_tower(model, "a photo of {}" + " a" * words)
    tokens = 6 + words  # with the ends of the text
    assert len(rows.source) == min(tokens + (not correct), 16) + 1 and rows.pool == len(rows.source) - 1
    assert getattr(rows, "unseen", ()) == (() if correct or tokens == 16 else (rows.pool,))
    if not correct and tokens < 16:
        visible = slots_of(tower, rows).visible
        assert 0 not in visible[0] and visible[0] == tuple(range(1, len(visible)))


def test_pooling_before_the_placeholder_is_refused() -> None:
    from semobridge_ext.ops import FrozenTower, PackedTower

    model = towers.custom_text_model({**towers.TEXT_CONFIG, "pool_type": "first"})
    tower, rows = clip.text_tower(model)
    with pytest.raises(ValueError, match="would not depend on what is learned"):
        FrozenTower(PackedTower(tower), rows)


REFUSED_VISION = {
    "no CLIP": (lambda: nn.Linear(2, 2), "Linear"),
    "ResNet": (
        lambda: towers.open_clip_model(vision={"layers": (1, 1, 1, 1), "width": 16}),
        "ModifiedResNet",
    ),
    "mean pooling": (lambda: towers.open_clip_model(vision={"pool_type": "avg"}), "pooling 'avg'"),
    "attentional": (lambda: towers.open_clip_model(vision={"attentional_pool": True}), "attentional pooler"),
}


@pytest.mark.parametrize("case", REFUSED_VISION)
def test_vision_towers_refused_by_name(case: str) -> None:
    make, words = REFUSED_VISION[case]
    with pytest.raises(NotImplementedError, match=words):
        clip.vision_tower(make())


def test_too_many_patches() -> None:
    with pytest.raises(ValueError, match="at most the model's 16 patches, got 17"):
        clip.vision_tower(VISION_MODELS["open_clip"](), num_patches=17)


@pytest.mark.parametrize("template", ["{}", "a {}", "{} a", "a photo of {}.", "({})"])
@pytest.mark.parametrize("count", [1, 3])
def test_placeholder_positions(template: str, count: int) -> None:
    """Everything but the placeholder is tokenised as beside an ordinary word."""
    tokenizer = default_tokenizer("test", 49408)
    ids, places = template_ids("test", tokenizer, template, count, 16)
    assert len(places) == count and places == list(range(places[0], places[0] + count))
    words = tokenizer([template.replace("{}", " ".join(["cat"] * count))], context_length=16)[0]
    others = [i for i in range(16) if i not in places]
    assert torch.equal(ids[others], words[others])


def test_a_template_may_fill_the_context() -> None:
    """14 words between the two special tokens fit a context of 16, 15 do not."""
    tokenizer = default_tokenizer("test", 49408)
    ids, places = template_ids("test", tokenizer, "{}" + " cat" * 13, 1, 16)
    assert places == [1] and ids[-1] == 49407 and not (ids == 0).any()
    with pytest.raises(ValueError, match="must keep 1 placeholder"):
        template_ids("test", tokenizer, "{}" + " cat" * 14, 1, 16)


@pytest.mark.parametrize("words,fits", [(6, True), (7, False)])
def test_padding_on_the_left(words: int, fits: bool) -> None:
    def tokenizer(texts: list[str], context_length: int) -> torch.Tensor:
        rows = [[ord(word[0]) for word in text.split()][:context_length] for text in texts]
        return torch.tensor([[0] * (context_length - len(row)) + row for row in rows])

    template = " ".join("abcdefg"[: words - 2]) + " {} end"
    if fits:
        ids, places = template_ids("test", tokenizer, template, 1, 8)
        assert places == [6] and ids[:2].tolist() == [0, 0]
        assert template_ids("test", tokenizer, template, 1, 6)[1] == [4]
    else:
        with pytest.raises(ValueError, match="must keep 1 placeholder"):
            template_ids("test", tokenizer, template, 1, 6)


def test_other_vocabulary_needs_its_tokenizer() -> None:
    model = towers.custom_text_model({**towers.TEXT_CONFIG, "vocab_size": 100})
    with pytest.raises(ValueError, match="tokenizer must be given for a model with 100 words"):
        clip.text_tower(model)
