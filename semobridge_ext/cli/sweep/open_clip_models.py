"""open_clip's architectures, shrunk: their own classes and switches, few narrow layers, random weights.

What shrinks is width, depth, resolution and foreign vocabularies. What decides whether a method works stays:
poolings, projections, masks, norms, kinds of blocks and of trunks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import nn

from semobridge_ext.cli.sweep.words import Words

CLIP_WORDS = 49408
_FEATURES, _TRUNK, _TEXT, _FOREIGN = (
    24,
    32,
    48,
    600,
)  # widths of features and towers; words of other vocabularies
_STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, _TRUNK)}
_SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1,) * 4, "num_heads": (1, 1, 2, 2)}
_PLAIN = {"img_size": 16, "patch_size": 8, "embed_dim": _TRUNK, "depth": 2, "num_heads": 2}
# What shrinks a trunk of timm, by the beginning of its name, the more particular one first; and its images.
_TRUNKS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("vit_base_mci", 32, {"img_size": 32, "depth": 1}),  # its stem fixes the width
    ("vit_pe_core", 16, {**_PLAIN, "attn_pool_num_heads": 2, "ref_feat_shape": (2, 2)}),
    ("eva02", 16, {**_PLAIN, "ref_feat_shape": (2, 2)}),
    ("vit", 16, _PLAIN),
    ("eva", 16, _PLAIN),
    ("convnext", 32, _STAGES),
    ("swin", 64, _SWIN),
    ("fastvit_mci3", 64, {"layers": (1,) * 5, "embed_dims": (16, 16, 32, 32, 32)}),
    ("fastvit_mci4", 64, {"layers": (1,) * 5, "embed_dims": (16, 16, 32, 32, 32)}),
    ("fastvit", 64, {"layers": (1,) * 4, "embed_dims": (16, 16, 32, 32)}),
)  # fmt: skip
# Hugging Face's text towers, whose configurations would have to be fetched.
_ENCODERS = {
    "roberta": ("RobertaConfig", {"pad_token_id": 1}),
    "xlm-roberta": ("XLMRobertaConfig", {"pad_token_id": 1}),
    "google/mt5": ("MT5Config", {"pad_token_id": 0, "d_kv": 16, "d_ff": 64}),
    "facebook/nllb": ("M2M100Config", {"pad_token_id": 1}),
}


def names() -> list[str]:
    import open_clip

    return list(open_clip.list_models())


def _trunk(name: str) -> tuple[int, dict[str, Any]]:
    """Side of the images and the arguments of a trunk of timm."""
    if name.startswith("vitamin"):
        from timm.models.vitamin import VitCfg, VitConvCfg

        stem = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
        cfg = VitCfg(embed_dim=(8, 16, _TRUNK), depths=(1, 1, 1), stem_width=8, conv_cfg=stem, head_type="1d")
        return 32, {"img_size": 32, "embed_dim": _TRUNK, "depth": 2, "num_heads": 2, "embed_cfg": cfg}
    return next((side, small) for start, side, small in _TRUNKS if name.startswith(start))


def small_config(name: str) -> dict[str, Any]:
    """The configuration of one of open_clip's models, shrunk."""
    import open_clip

    config = copy.deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    trunk = vision.get("timm_model_name")
    # Without a projection the trunk's width is that of the features.
    config["embed_dim"] = _TRUNK if vision.get("timm_proj") == "none" else _FEATURES
    if trunk:
        vision["image_size"] = _trunk(trunk)[0]
    elif isinstance(vision["layers"], list):  # a ResNet
        vision |= {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": 64}
    else:
        vision |= {"layers": 2, "width": _TRUNK, "head_width": 16, "image_size": 16, "patch_size": 8}
    if "attn_pooler_heads" in vision or vision.get("attentional_pool"):
        vision |= {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
    vision.pop("mlp_ratio", None)
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "mlp_ratio"):
        text.pop(key, None)
    text.setdefault("context_length", 77)
    if text.get("vocab_size", CLIP_WORDS) != CLIP_WORDS or "hf_model_name" in text:
        text["vocab_size"] = _FOREIGN
    width = config["embed_dim"] if text.get("proj_type") == "none" else _TEXT
    text |= {"width": width, "heads": 2, "layers": 2}
    if "multimodal_cfg" in config:
        small = {
            "width": _TEXT,
            "heads": 2,
            "layers": 1,
            "vocab_size": _FOREIGN,
            "attn_pooler_heads": 2,
            "n_queries": 4,
        }
        known = config["multimodal_cfg"]
        config["multimodal_cfg"] = {**{k: v for k, v in known.items() if k != "dim_head"}, **small}
    return config


def kind(config: dict[str, Any]) -> str:
    """Text that is equal for models that shrink to the same one."""
    config = copy.deepcopy(config)
    trunk = config["vision_cfg"].get("timm_model_name")
    if trunk:  # sizes are parts of the name: base, large2, 224
        config["vision_cfg"]["timm_model_name"] = _family(trunk)
    for key in ("timm_drop", "timm_drop_path", "timm_model_pretrained"):
        config["vision_cfg"].pop(key, None)
    return json.dumps(config, sort_keys=True)


def _family(trunk: str) -> str:
    sizes = (
        "tiny",
        "small",
        "base",
        "large",
        "large2",
        "xlarge",
        "xxlarge",
        "giantopt",
        "gigantic",
        "enormous",
        "so400m",
    )
    return "_".join(
        word for word in trunk.split("_") if word not in sizes and not word.isdigit() and "patch" not in word
    )


@contextmanager
def _small_trunks() -> Iterator[None]:
    """open_clip hands timm no sizes: for as long as a model is built, what it calls adds them."""
    import timm
    from open_clip import timm_model

    def create(name: str, **options: Any) -> nn.Module:
        return timm.create_model(name, **{**options, **_trunk(name)[1]})

    kept, timm_model.timm = timm_model.timm, SimpleNamespace(create_model=create)
    try:
        yield
    finally:
        timm_model.timm = kept


def _encoder(text: dict[str, Any], features: int) -> nn.Module:
    """A text tower of Hugging Face."""
    import transformers
    from open_clip.hf_model import HFTextEncoder

    name = text["hf_model_name"]
    kind, own = next(found for start, found in _ENCODERS.items() if name.startswith(start))
    sizes = {
        "vocab_size": _FOREIGN, "hidden_size": _TEXT, "d_model": _TEXT, "num_hidden_layers": 2,
        "num_layers": 2, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 80,
        "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }  # fmt: skip
    taken = set(transformers.PretrainedConfig().to_dict()) | set(getattr(transformers, kind)().to_dict())
    config = getattr(transformers, kind)(**{k: v for k, v in sizes.items() if k in taken}, **own)
    encoder = HFTextEncoder(
        name, features, config=config, pooler_type=text.get("hf_pooler_type"),
        proj_type=text.get("hf_proj_type", "mlp"), output_tokens=text.get("output_tokens", False),
    )  # fmt: skip
    if getattr(config, "is_encoder_decoder", False):
        encoder.transformer = encoder.transformer.encoder
    return encoder


def build(config: dict[str, Any]) -> nn.Module:
    """The model of a shrunk configuration, random weights."""
    import open_clip

    config = copy.deepcopy(config)
    text, custom = config["text_cfg"], config.pop("custom_text", False)
    plain = {k: v for k, v in text.items() if not k.startswith("hf_")}
    encoder = _encoder(text, config["embed_dim"]) if "hf_model_name" in text else None
    config["text_cfg"] = plain
    if "multimodal_cfg" in config:
        make = open_clip.CoCa
    else:
        make = open_clip.CustomTextCLIP if custom or encoder is not None else open_clip.CLIP
    with _small_trunks():
        model = make(**config)
    if encoder is not None:
        model.text = encoder
        for name in ("context_length", "vocab_size"):
            if hasattr(model, name):
                setattr(model, name, getattr(encoder, name))
    return model


def tokenizer(config: dict[str, Any]) -> Words | None:
    """None where the vocabulary is CLIP's and the package is to find the tokenizer by itself."""
    text = config["text_cfg"]
    words, context = text.get("vocab_size", CLIP_WORDS), text["context_length"]
    if "hf_model_name" in text:
        pad = next(
            own["pad_token_id"]
            for start, (_, own) in _ENCODERS.items()
            if text["hf_model_name"].startswith(start)
        )
        return Words(words, 64, 2, pad)
    if words == CLIP_WORDS:
        return None
    end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else words - 1
    return Words(words, context, end, 0)
