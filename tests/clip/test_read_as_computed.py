"""The engine reads weights: a tower that computes more runs through its model; edited weights are seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import semobridge_ext as sb
from semobridge_ext import clip
from tests.support import towers
from tests.support.assertions import assert_row_relative
from tests.support.inversions import compare
from tests.support.towers import TEXT_MODELS, hugging_face_model, open_clip_model


class Adapted(nn.Linear):
    """A low-rank addition beside the weight, as fine-tuning libraries write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * x.mean(-1, keepdim=True)


class Shifted(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.05


def as_class(module: nn.Module, kind: type) -> None:
    module.__class__ = kind


CHANGES = {
    "a Linear subclass": lambda b: as_class(b.mlp.c_fc, Adapted),
    "a LayerNorm subclass": lambda b: as_class(b.ln_1, Shifted),
    "a hook on a layer": lambda b: b.mlp.c_proj.register_forward_hook(lambda m, i, o: o * 1.1),
    "a pre-hook on a norm": lambda b: b.ln_2.register_forward_pre_hook(lambda m, i: (i[0] * 0 + 1,)),
    "a hook on a block": lambda b: b.register_forward_hook(lambda m, i, o: o * 1.1),
    "a hook on the attention": lambda b: b.attn.register_forward_hook(lambda m, i, o: (o[0] * 1.1, o[1])),
}


@pytest.mark.parametrize("side", ["text", "vision"])
@pytest.mark.parametrize("change", CHANGES)
def test_refused_as_plain_tensors_and_run_by_the_model(change: str, side: str):
    model = open_clip_model().double()
    trunk = model.transformer if side == "text" else model.visual.transformer
    CHANGES[change](trunk.resblocks[1])
    read, run, oracle, width = {
        "text": (clip.text_tower, sb.oti, sb.reference.oti, towers.TEXT),
        "vision": (clip.vision_tower, sb.ovi, sb.reference.ovi, towers.VISION),
    }[side]
    with pytest.raises(NotImplementedError, match=r"must have a supported tower, got .*(hook|forward pass)"):
        read(model)
    f, init = towers.targets(2, towers.D), towers.start(2, 1, width)
    got = run(model, f, steps=2, init=init)
    assert got.engine == "model"
    compare(got, oracle(model, f, steps=2, init=init), torch.float64, change)


def test_a_hook_that_only_looks_on_is_taken():
    model, seen = open_clip_model(), []
    model.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda m, i, o: seen.append(1))
    assert sb.oti(model, torch.ones(1, towers.D), steps=1).features.shape == (1, towers.D)
    model = hugging_face_model()
    model.get_text_features(input_ids=torch.tensor([[49406, 320, 49407]]), output_hidden_states=True)
    assert sb.oti(model, torch.ones(1, towers.D), steps=1).features.shape == (1, towers.D)


EDITS = {
    "a factor": lambda p: p["transformer.resblocks.1.mlp.c_fc.weight"].mul_(1.5),
    "one value": lambda p: p["transformer.resblocks.1.attn.in_proj_weight"].flatten()[7].add_(1.0),
    "rows exchanged": lambda p: p["transformer.resblocks.0.mlp.c_fc.weight"].copy_(
        p["transformer.resblocks.0.mlp.c_fc.weight"].roll(1, 0)
    ),
    "an embedding": lambda p: p["token_embedding.weight"].mul_(1.5),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_edited_through_data(edit: str):
    """Such a write leaves no version behind; the packed weights are compared by content."""
    model, f = TEXT_MODELS["open_clip"](), towers.targets(2, towers.D, torch.float32)
    init = towers.start(2, 1, towers.TEXT, torch.float32)
    before = sb.oti(model, f, init=init, steps=3).features
    EDITS[edit]({name: p.data for name, p in model.named_parameters()})
    after = sb.oti(model, f, init=init, steps=3).features
    fresh = open_clip_model()
    fresh.load_state_dict(model.state_dict())
    assert not torch.equal(after, before)
    assert torch.equal(after, sb.oti(fresh, f, init=init, steps=3).features)


# -- models of transformers beside CLIP's own -------------------------------------------------------------

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 32,
          "patch_size": 8, "num_hidden_layers": 2, "projection_dim": 24}  # fmt: skip
WORDS = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_hidden_layers": 2}


def model_of(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{kind}Model"):
        pytest.skip(f"this transformers has no {kind}Model; pip install --upgrade transformers")
    text = {**WORDS, "max_position_embeddings": 20, "vocab_size": 49408}
    special = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    own = {
        "MetaClip2": dict(
            text_config={**text, **special, "projection_dim": 24},
            vision_config=VISION,
        ),
        "AltCLIP": dict(
            text_config={**text, **special, "project_dim": 24},
            vision_config=VISION,
        ),
        "Align": dict(
            text_config=text,
            vision_config={"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2},
        ),
    }[kind]  # fmt: skip
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(**own, projection_dim=24)
    return getattr(transformers, f"{kind}Model")(config).eval()


IDS = torch.tensor([[0, 7, 9000, 5, 2, 1, 1], [0, 8, 4, 2, 1, 1, 1]])


@pytest.mark.parametrize("kind", ["MetaClip2", "AltCLIP", "Align"])
def test_features_are_the_models_own(kind: str):
    model = model_of(kind)
    with torch.no_grad():
        own = model.get_text_features(input_ids=IDS)
        own = own if isinstance(own, torch.Tensor) else own.pooler_output
        assert_row_relative(clip.encode_text(model, IDS), own.double(), "features")
        hidden = clip.encode_text(model, IDS, project=False)
        assert_row_relative(model.text_projection(hidden), own.double(), "features")


def test_image_features_without_a_projection():
    """ALIGN's convolutional network ends in its features, without a matrix."""
    model, images = model_of("Align"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = model.get_image_features(pixel_values=images)
        own = own if isinstance(own, torch.Tensor) else own.pooler_output
    assert_row_relative(clip.encode_image(model, images), own.double(), "features")
    with pytest.raises(TypeError, match=r"^encode_image: model must have a linear image .*, got Align"):
        clip.encode_image(model, images, project=False)


@pytest.mark.parametrize("kind", ["MetaClip2", "AltCLIP", "Align"])
def test_words_of_another_vocabulary_need_its_tokenizer(kind: str):
    """As many words as CLIP has are not CLIP's words."""
    with pytest.raises(
        ValueError, match=rf"tokenizer must be given for {kind}Model, whose words are not CLIP's"
    ):
        sb.class_text_features(model_of(kind), ["cat", "dog"])


def test_metaclip_2_pools_at_the_end_of_the_text():
    def tokenizer(texts, context_length=20):
        word = 9001 if "x" in texts[0] else 9002  # the largest id: CLIP would pool there
        return torch.tensor([[0, 7, 8, word, 5, 2] + [1] * (context_length - 6)])

    model = model_of("MetaClip2")
    _, rows = clip.text_tower(model, tokenizer=tokenizer)
    assert rows.pool == 5 and rows.source[3] == 0
    inv = sb.oti(
        model,
        torch.ones(1, 24),
        tokenizer=tokenizer,
        steps=0,
        init=model.text_model.embeddings.token_embedding.weight[9001][None],
    )
    ids = tokenizer(["x"])
    with torch.no_grad():
        own = clip.encode_text(model, ids)
    assert_row_relative(inv.features, torch.nn.functional.normalize(own.double(), dim=1), "features")
