"""Tiny random models whose towers the engine does not read, each with the way into it, written by hand.

An entry says where learned rows enter and how the features are asked for, without the product's adapters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.support import towers
from tests.support.towers import TEXT, TEXT_CONFIG, VISION, D


class Way(NamedTuple):
    """A model, the layer behind which the learned rows stand, and a call that gives features of S samples."""

    model: nn.Module
    layer: nn.Module
    call: Callable[[int], Any]
    places: list[int]  # of the rows that the layer gives: the placeholder's, or all patches
    layout: str = "rows"  # [S, L, T]; "first": [S, V, h, w]; "last": [S, h, w, V]
    tokenizer: Any = None
    width: int = TEXT


def features_of(way: Way) -> Callable[[Tensor], Tensor]:
    """v [S, R, T] → the model's own features [S, D], plain hooks and autograd."""

    def run(v: Tensor) -> Tensor:
        def put(_module: nn.Module, _inputs: Any, rows: Tensor) -> Tensor:
            count = len(way.places)
            own = v[:, [i * v.shape[1] // count for i in range(count)]]
            if way.layout == "first":
                return own.transpose(1, 2).reshape(rows.shape)
            if way.layout == "last":
                return own.reshape(rows.shape)
            parts, last = [], 0
            for i, place in enumerate(way.places):
                parts += [rows[:, last:place], own[:, i : i + 1]]
                last = place + 1
            return torch.cat([*parts, rows[:, last:]], dim=1)

        handle = way.layer.register_forward_hook(put)
        try:
            out = way.call(len(v))
        finally:
            handle.remove()
        return getattr(out, "pooler_output", out)

    return run


# -- text ----------------------------------------------------------------------------------------------


@functools.cache
def word_tokenizer() -> Any:
    """One of transformers: a word a piece, between a first and a last piece, as BERT's; padded with 1."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[CLS]", "<pad>", "[SEP]", "<unk>", "x", "z", "a", "photo", "of", "cat"]
    pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]"
    )


def padded_words(texts: list[str], context_length: int = 16) -> Tensor:
    """The same pieces with padding, as open_clip's tokenizers give them."""
    out = word_tokenizer()(
        list(texts), padding="max_length", truncation=True, max_length=context_length, return_tensors="pt"
    )
    return out["input_ids"]


_WORDS = {"hidden_size": TEXT, "intermediate_size": 96, "num_attention_heads": 3, "num_hidden_layers": 2,
          "vocab_size": 40, "max_position_embeddings": 20, "pad_token_id": 1}  # fmt: skip
_IMAGES = {"hidden_size": VISION, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 32,
           "patch_size": 8, "num_hidden_layers": 2, "projection_dim": D}  # fmt: skip


def clip_words(model: nn.Module) -> Way:
    from open_clip.tokenizer import SimpleTokenizer

    ids = SimpleTokenizer(context_length=16)(["a photo of x"])
    owner = getattr(model, "text", model)
    return Way(model, owner.token_embedding, lambda s: model.encode_text(ids.expand(s, -1)), [4])


def adapted_model(model: nn.Module) -> nn.Module:
    """A low-rank addition beside a weight, as fine-tuning libraries write it."""

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1 * x.mean(-1, keepdim=True)

    getattr(model, "text", model).transformer.resblocks[1].mlp.c_fc.__class__ = Adapted
    return model


def hooked_model() -> nn.Module:
    model = towers.open_clip_model()
    model.transformer.resblocks[1].register_forward_hook(lambda _m, _i, out: out * 1.1)
    return model


def wrapped_words(kind: str, pooler: str) -> Way:
    """A text tower of transformers inside open_clip, which masks what is padding."""
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    torch.manual_seed(1)
    common = dict(_WORDS)
    if kind == "MT5":
        common = {"d_model": TEXT, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 3, "vocab_size": 40,
                  "pad_token_id": 1}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**common)
    model = towers.custom_text_model(dict(TEXT_CONFIG))
    text = HFTextEncoder("", D, config=config, pooler_type=pooler, proj_type="mlp")
    if kind == "MT5":
        text.transformer = text.transformer.encoder
    model.text = text
    model.eval()
    ids = padded_words(["a photo of x"])
    layer = text.transformer.get_input_embeddings()
    return Way(
        model, layer, lambda s: model.encode_text(ids.expand(s, -1)), [4], tokenizer=padded_words
    )  # fmt: skip


def hugging_face_words(kind: str) -> Way:
    """A model of transformers with another text tower than CLIP's."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{kind}Model"):
        pytest.skip(f"this transformers has no {kind}Model; pip install --upgrade transformers")
    text, images = {**_WORDS, "bos_token_id": 0, "eos_token_id": 2}, dict(_IMAGES)
    own: dict[str, Any] = {"projection_dim": D}
    if kind == "AltCLIP":
        text["project_dim"] = D
    if kind == "Align":
        images = {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2}
    if kind == "Blip":
        text["encoder_hidden_size"] = VISION
        own["image_text_hidden_size"] = D
    if kind == "GroupViT":
        groups = {"num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0], "depths": [1, 1, 1]}
        images, own = {**images, **groups}, {**own, "projection_intermediate_dim": 32}
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=images, **own)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    towers.scatter(model)
    inputs = word_tokenizer()(["a photo of x"], return_tensors="pt")

    def call(samples: int) -> Any:
        return model.get_text_features(**{n: t.expand(samples, -1) for n, t in inputs.items()})

    embeddings = getattr(model.text_model, "roberta", model.text_model).embeddings  # AltCLIP has one inside
    layer = getattr(embeddings, "word_embeddings", getattr(embeddings, "token_embedding", None))
    return Way(model, layer, call, [4], tokenizer=word_tokenizer())


TEXT_WAYS: dict[str, Callable[[], Way]] = {
    "CoCa, adapted": lambda: clip_words(adapted_model(towers.coca_text())),
    "query and key norms": lambda: clip_words(
        towers.custom_text_model({**TEXT_CONFIG, "qk_norm": True, "block_type": "custom"})
    ),
    "an adapted layer": lambda: clip_words(adapted_model(towers.open_clip_model())),
    "a hook": lambda: clip_words(hooked_model()),
    "RoBERTa in open_clip, mean": lambda: wrapped_words("Roberta", "mean_pooler"),
    "BERT in open_clip, first": lambda: wrapped_words("Bert", "cls_pooler"),
    "mT5 in open_clip": lambda: wrapped_words("MT5", "mean_pooler"),
    "AltCLIP": lambda: hugging_face_words("AltCLIP"),
    "ChineseCLIP": lambda: hugging_face_words("ChineseCLIP"),
    "ALIGN": lambda: hugging_face_words("Align"),
    "BLIP": lambda: hugging_face_words("Blip"),
}


# -- vision --------------------------------------------------------------------------------------------


def _images(model: nn.Module, layer: nn.Module, layout: str = "first", count: int = 16) -> Way:
    image = torch.zeros(1, 3, 32, 32)

    def call(samples: int) -> Any:
        run = model.encode_image if hasattr(model, "encode_image") else model.get_image_features
        return run(image.to(next(model.parameters()).dtype).expand(samples, -1, -1, -1))

    return Way(model, layer, call, list(range(count)), layout, width=VISION)


def open_clip_images(**vision: Any) -> Way:
    model = towers.open_clip_model(vision=vision)
    return _images(model, model.visual.conv1)


def timm_images(kind: str, layout: str = "rows", count: int = 16, **options: Any) -> Way:
    """A trunk of timm in open_clip's wrapper; `kind` is module.Class."""
    timm = pytest.importorskip("timm")
    module, name = kind.split(".")
    torch.manual_seed(1)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": VISION, "num_classes": D, **options}
    trunk = getattr(getattr(timm.models, module), name)(**small)
    model = towers.timm_linear()
    model.visual.trunk, model.visual.head = trunk, nn.Sequential()
    towers.scatter(trunk)
    return _images(model, trunk.patch_embed, layout, count)


def hugging_face_images(kind: str) -> Way:
    model = hugging_face_words(kind).model
    embeddings = model.vision_model.embeddings
    if kind == "GroupViT":
        return _images(model, embeddings.patch_embeddings.projection)
    return _images(model, embeddings.patch_embedding)


_DEEP = {"depth": 2, "num_heads": 2}
_PE = {"global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True,
       "ref_feat_shape": (4, 4), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy",
       "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 4.0}  # fmt: skip
VISION_WAYS: dict[str, Callable[[], Way]] = {
    "mean of patches": lambda: open_clip_images(pool_type="avg"),
    "mean, then norm": lambda: open_clip_images(pool_type="avg", final_ln_after_pool=True),
    "CoCa": lambda: open_clip_images(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    "mean, norm behind it": lambda: timm_images(
        "vision_transformer.VisionTransformer", class_token=False, global_pool="avg", fc_norm=True, **_DEEP
    ),
    "query and key norms": lambda: timm_images("vision_transformer.VisionTransformer", qk_norm=True, **_DEEP),
    "EVA": lambda: timm_images(
        "eva.Eva", swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, head_init_scale=1.0, **_DEEP
    ),
    "PE-Core": lambda: timm_images("eva.Eva", head_init_scale=1.0, **_PE, **_DEEP),
    "relative positions": lambda: timm_images(
        "vision_transformer_relpos.VisionTransformerRelPos", class_token=True, **_DEEP
    ),
    "Swin": lambda: timm_images(
        "swin_transformer.SwinTransformer", "last", 64, patch_size=4, depths=(1, 1), num_heads=(2, 4),
        window_size=4,
    ),
    "BLIP": lambda: hugging_face_images("Blip"),
    "GroupViT": lambda: hugging_face_images("GroupViT"),
}  # fmt: skip
