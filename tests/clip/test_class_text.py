"""class_text_features against prompts encoded one by one, for each family of CLIP models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.assertions import assert_figures, assert_row_relative

NAMES = ["red apple", "dog", "very long name of a thing"]
TEMPLATES = ("a photo of a {}.", "{}", "a drawing of {}")


@pytest.fixture(scope="module")
def clip():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    model = open_clip.CLIP(24, vision_cfg=vision, text_cfg=text)
    return model, open_clip.get_tokenizer("ViT-B-32")


def one_by_one(model, tokenizer, prompts):
    """Projected and un-projected features of single prompts, from the tower's own parts."""
    after, before = [], []
    for prompt in prompts:
        tokens = tokenizer([prompt])
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        eot = x[0, tokens.argmax()]
        before.append(eot)
        after.append(eot @ model.text_projection)
    return torch.stack(before), torch.stack(after)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [256, 2])
def test_open_clip(clip, batch_size):
    model, tokenizer = clip
    got = sb.class_text_features(model, NAMES, TEMPLATES, tokenizer=tokenizer, batch_size=batch_size)
    lengths = []
    for i, name in enumerate(NAMES):
        before, after = one_by_one(model, tokenizer, [t.format(name) for t in TEMPLATES])
        for rows, value in ((after, got.projected), (before, got.hidden)):
            want = normalize(normalize(rows, dim=1).mean(dim=0), dim=0)
            assert_row_relative(value[i], want.double(), "features")
        lengths.append(before.norm(dim=1).mean())
    assert_figures(got.length, torch.stack(lengths).mean(), "features", dtype=torch.float32)
    assert got.hidden.shape == (3, 32) and got.projected.shape == (3, 24)
    assert not model.ln_final._forward_hooks and model.training


@torch.no_grad()
def test_prompts_per_class_and_the_standard_tokenizer(clip):
    model, tokenizer = clip
    own = {
        "red apple": ["a fruit"],
        "dog": ["a pet", "an animal {} with braces"],
        "very long name of a thing": ["x"],
    }
    got = sb.class_text_features(model, NAMES, own)
    for i, name in enumerate(NAMES):
        _, after = one_by_one(model, tokenizer, own[name])
        want = normalize(normalize(after, dim=1).mean(dim=0), dim=0)
        assert_row_relative(got.projected[i], want.double(), "features")


@torch.no_grad()
def test_hugging_face():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 98,
            "bos_token_id": 0, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()

    def tokenizer(texts):
        ids = torch.ones(len(texts), 8, dtype=torch.int64)
        for row, t in zip(ids, texts, strict=True):
            row[0], row[1 : 1 + len(t)], row[1 + len(t)] = 0, torch.tensor([ord(c) % 50 + 2 for c in t]), 98
        return {"input_ids": ids}

    got = sb.class_text_features(model, ["a", "bc"], ["{}", "x{}"], tokenizer=tokenizer)
    for i, name in enumerate(["a", "bc"]):
        pooled = model.text_model(**tokenizer([name, "x" + name])).pooler_output
        want = normalize(normalize(model.text_projection(pooled), dim=1).mean(dim=0), dim=0)
        assert_row_relative(got.projected[i], want.double(), "features")
        want = normalize(normalize(pooled, dim=1).mean(dim=0), dim=0)
        assert_row_relative(got.hidden[i], want.double(), "features")


@torch.no_grad()
def test_length_is_that_of_a_model_without_its_projection(clip):
    model, tokenizer = clip
    names, templates = ["cat", "alarm clock"], ("{}", "a photo of a {}")
    got = sb.class_text_features(model, names, templates, tokenizer=tokenizer)
    projected = torch.stack([model.encode_text(tokenizer([t.format(n) for n in names])) for t in templates])
    projection, model.text_projection = model.text_projection, None
    try:  # open_clip leaves out a missing projection
        lengths = [model.encode_text(tokenizer([t.format(n)])).norm() for t in templates for n in names]
    finally:
        model.text_projection = projection
    want = normalize(normalize(projected, dim=-1).mean(dim=0), dim=-1)
    assert_row_relative(got.projected, want.double(), "features")
    assert_figures(got.length, torch.stack(lengths).mean(), "features", dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["eos", "first", "last"])
def test_every_text_pooling(kind):
    """What stands before the projection is what the model gives without one."""
    from tests.support.towers import TEXT_CONFIG, custom_text_model

    model = custom_text_model({**TEXT_CONFIG, "pool_type": kind, "eos_id": 49407})
    got = sb.class_text_features(model, ["cat", "alarm clock"], ("{}",))
    ids = model_ids(["cat", "alarm clock"])
    want = normalize(model.encode_text(ids), dim=1)
    projection, model.text.text_projection = model.text.text_projection, None
    try:
        hidden = model.encode_text(ids)
    finally:
        model.text.text_projection = projection
    assert_row_relative(got.projected, want.double(), "features")
    assert_row_relative(got.hidden, normalize(hidden, dim=1).double(), "features")
    assert_figures(got.length, hidden.norm(dim=1).mean(), "features", dtype=torch.float32)


def model_ids(texts):
    """Ids at the tiny models' context of 16."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=16)(texts)


def test_another_vocabulary_needs_its_tokenizer():
    from tests.support.towers import TEXT_CONFIG, custom_text_model

    model = custom_text_model({**TEXT_CONFIG, "vocab_size": 100})
    with pytest.raises(ValueError, match="class_text_features: tokenizer must be given for a model with 100"):
        sb.class_text_features(model, NAMES)


def test_refusals(clip):
    model, tokenizer = clip
    for arguments, words in (
        (([], TEMPLATES), "names must not be empty"), ((NAMES, ()), "templates must not be empty"),
        ((NAMES, ("photo",)), "contain {}"), ((NAMES, {"dog": ["a pet"]}), "prompts of every class"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            sb.class_text_features(model, *arguments, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="Linear"):
        sb.class_text_features(torch.nn.Linear(2, 2), NAMES, tokenizer=tokenizer)


@pytest.mark.parametrize("names", [b"cat", 3, None])
def test_what_holds_no_names_is_refused(names):
    model, _, tokenizer = sb.load_picto_clip()
    with pytest.raises(TypeError, match="names must be class names, got"):
        sb.class_text_features(model, names, tokenizer=tokenizer)


WAYS = {
    "a string": lambda: (["cat"], "a {}", "cat", "a {}"),
    "a generator of names": lambda: (NAMES, "a {}", (n for n in NAMES), "a {}"),
    "an array of names": lambda: (NAMES, "a {}", np.array(NAMES), "a {}"),
    "a generator of templates": lambda: (NAMES, TEMPLATES, NAMES, (t for t in TEMPLATES)),
    "a function": lambda: (NAMES, "a {}", NAMES, lambda c: f"a {c}"),
    "functions and texts": lambda: (NAMES, TEMPLATES[:2], NAMES, [lambda c: f"a photo of a {c}.", "{}"]),
    "a string for each": lambda: (NAMES, {n: [f"a {n}"] for n in NAMES}, NAMES, {n: f"a {n}" for n in NAMES}),
}


@pytest.mark.parametrize("way", WAYS)
def test_names_and_templates_as_people_write_them(clip, way):
    model, tokenizer = clip
    names, templates, others, ways = WAYS[way]()
    want = sb.class_text_features(model, names, templates, tokenizer=tokenizer)
    found = sb.class_text_features(model, others, ways, tokenizer=tokenizer)
    assert torch.equal(found.projected, want.projected) and torch.equal(found.hidden, want.hidden)
    assert found.length == want.length


@pytest.mark.parametrize("templates", [3, [3], lambda c: 3])
def test_templates_that_make_no_prompt_are_refused(clip, templates):
    with pytest.raises(TypeError, match=r"class_text_features: templates must .* got int 3; "):
        sb.class_text_features(clip[0], NAMES, templates)


def test_a_tokenizer_of_77_is_asked_for_the_models_own_positions():
    """The embedded CLIP has 16."""
    import open_clip

    model, _, own = sb.load_picto_clip()
    wide = open_clip.get_tokenizer("ViT-B-32")
    assert wide(["star"]).shape == (1, 77)
    want = sb.class_text_features(model, ["star", "house"], tokenizer=own)
    for tokenizer in (wide, None):
        found = sb.class_text_features(model, ["star", "house"], tokenizer=tokenizer)
        assert torch.equal(found.projected, want.projected)
    assert torch.equal(sb.encode_text(model, "star", tokenizer=wide), sb.encode_text(model, ["star"]))
    with pytest.raises(ValueError, match=r"tokenizer must give at most 16 tokens .* got 77; pass"):
        sb.encode_text(model, ["star"], tokenizer=lambda texts: wide(texts))
