"""Small random models of Hugging Face's classes, of OpenAI's clip and of timm alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from semobridge_ext.cli.sweep.words import Words

WORDS, CONTEXT, _PROJECTED = 600, 20, 24
_TEXT = {
    "vocab_size": WORDS, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": CONTEXT,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_SPECIAL = {"bos_token_id": 4, "eos_token_id": WORDS - 1, "pad_token_id": 1}
_SIGLIP = {**_TEXT, **_SPECIAL, "projection_size": 32}
_ROWS = {k: v for k, v in _VISION.items() if k != "image_size"} | {"num_patches": 4}


def _hugging_face(kind: str, text: dict[str, Any], vision: dict[str, Any], **options: Any) -> nn.Module:
    import transformers

    if not hasattr(transformers, f"{kind}Model"):
        raise ImportError(f"this transformers has no {kind}Model; pip install --upgrade transformers")
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **options)
    return getattr(transformers, f"{kind}Model")(config)


def _clip(kind: str, **special: Any) -> Callable[[], nn.Module]:
    text = {**_TEXT, **_SPECIAL, **special, "projection_dim": _PROJECTED}
    return lambda: _hugging_face(
        kind, text, {**_VISION, "projection_dim": _PROJECTED}, projection_dim=_PROJECTED
    )


def _align() -> nn.Module:
    vision = {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2}
    return _hugging_face("Align", {**_TEXT, "pad_token_id": 1}, vision, projection_dim=_PROJECTED)


def _groupvit() -> nn.Module:
    vision = {
        **_VISION,
        "num_hidden_layers": 3,
        "depths": [1, 1, 1],
        "num_group_tokens": [4, 2, 0],
        "num_output_groups": [4, 2, 0],
    }
    return _hugging_face("GroupViT", {**_TEXT, **_SPECIAL}, vision, projection_dim=_PROJECTED)


def _openai() -> nn.Module:
    """From its model file: the package needs a setuptools of its time to import."""
    spec = importlib.util.find_spec("clip")
    if spec is None or spec.origin is None:
        raise ImportError("OpenAI's clip is not installed; pip install openai-clip")
    own = importlib.util.spec_from_file_location("openai_clip_model", Path(spec.origin).with_name("model.py"))
    assert own is not None and own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    model = module.CLIP(_PROJECTED, 16, 2, 64, 8, CONTEXT, 49408, 64, 1, 2)
    nn.init.normal_(model.visual.class_embedding)
    return model


def _timm() -> nn.Module:
    import timm

    return timm.create_model(
        "vit_base_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformers AlignModel": _align,
    "transformers AltCLIPModel": _clip("AltCLIP", project_dim=_PROJECTED),
    "transformers ChineseCLIPModel": _clip("ChineseCLIP"),
    "transformers CLIPModel": _clip("CLIP"),
    "transformers CLIPSegModel": _clip("CLIPSeg"),
    "transformers GroupViTModel": _groupvit,
    "transformers MetaClip2Model": _clip("MetaClip2"),
    "transformers OwlViTModel": _clip("OwlViT"),
    "transformers Siglip2Model": lambda: _hugging_face("Siglip2", _SIGLIP, _ROWS),
    "transformers SiglipModel": lambda: _hugging_face("Siglip", _SIGLIP, _VISION),
    "OpenAI's clip": _openai,
    "timm VisionTransformer": _timm,
}


def tokenizer(name: str) -> Words | None:
    return None if name.startswith("OpenAI") else Words(WORDS, CONTEXT, WORDS - 1, 1)
