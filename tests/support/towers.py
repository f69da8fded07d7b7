"""Tiny random models of every kind that inversion supports."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.plain_clip import PlainCLIP, WordTokenizer

D, TEXT, VISION = 24, 48, 32
F32, F64 = torch.float32, torch.float64

_VISION = {"image_size": 32, "patch_size": 8, "width": VISION, "layers": 2, "head_width": 16}
TEXT_CONFIG = {"context_length": 16, "width": TEXT, "heads": 3, "layers": 3}
_SIGLIP = {**TEXT_CONFIG, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def _open_clip() -> ModuleType:
    return pytest.importorskip("open_clip", reason="open_clip is not installed; the model is one of its own")


def scatter(model: nn.Module) -> nn.Module:
    """Norms, biases and scales away from 1 and 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() <= 1 and p.numel() > 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def open_clip_model(*, text: dict | None = None, vision: dict | None = None, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    vision, text = {**_VISION, **(vision or {})}, {**TEXT_CONFIG, **(text or {})}
    return scatter(_open_clip().CLIP(D, vision, text, **options))


def custom_text_model(text: dict) -> nn.Module:
    torch.manual_seed(1)
    return scatter(_open_clip().CustomTextCLIP(D, dict(_VISION), text))


def coca_text(correct: bool = False) -> nn.Module:
    """A class embedding behind the tokens; the mask over padding as in the released weights, or in place."""
    model = custom_text_model({**TEXT_CONFIG, "embed_cls": True})
    model.text.correct_cls_mask = correct
    return model


def hugging_face_model(eos: int = 49407) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common = {"num_hidden_layers": 2, "projection_dim": D}
    text = {
        "hidden_size": TEXT, "intermediate_size": 2 * TEXT, "num_attention_heads": 3, "eos_token_id": eos,
        "max_position_embeddings": 16, "bos_token_id": 49406, "vocab_size": 49408, **common,
    }  # fmt: skip
    vision = {
        "hidden_size": VISION, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, **common,
    }  # fmt: skip
    torch.manual_seed(1)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=D)
    return scatter(transformers.CLIPModel(config))


def _openai_module() -> ModuleType:
    """OpenAI's clip/model.py; the package itself needs a setuptools of its time to import."""
    spec = importlib.util.find_spec("clip")
    if spec is None or spec.origin is None:
        pytest.skip("OpenAI's clip is not installed (pip install openai-clip); needed as an oracle")
    file = Path(spec.origin).with_name("model.py")
    own = importlib.util.spec_from_file_location("openai_clip_model", file)
    assert own is not None and own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module


def openai_model(half: bool = False) -> nn.Module:
    module = _openai_module()
    torch.manual_seed(1)
    model = module.CLIP(D, 32, 2, 64, 8, 16, 49408, TEXT, 3, 3)  # one head for each 64 of the width
    model.visual.class_embedding.data.normal_()
    scatter(model)
    if half:
        module.convert_weights(model)
    return model


class _TimmVisual(nn.Module):
    """open_clip's TimmModel around a trunk that is not in timm's registry."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, nn.Sequential(), (32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))


def siglip_model() -> nn.Module:
    """CustomTextCLIP with a bidirectional text tower and a timm trunk with attention pooling."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    small = {
        "img_size": 32, "patch_size": 8, "embed_dim": VISION, "depth": 2, "num_heads": 2,
        "class_token": False, "global_pool": "map", "num_classes": 0,
    }  # fmt: skip
    trunk = timm.models.vision_transformer.VisionTransformer(**small)
    model = _open_clip().CustomTextCLIP(VISION, dict(_VISION), dict(_SIGLIP))
    model.visual = _TimmVisual(trunk)
    with torch.no_grad():
        trunk.attn_pool.latent.normal_()
    return scatter(model)


def timm_linear(bias: bool = False) -> nn.Module:
    """CustomTextCLIP over a timm trunk with a class token, then dropout and a linear head."""
    timm = pytest.importorskip("timm")
    model = custom_text_model(dict(TEXT_CONFIG))
    small = {"img_size": 32, "patch_size": 8, "embed_dim": VISION, "depth": 2, "num_heads": 2}
    visual = _TimmVisual(timm.models.vision_transformer.VisionTransformer(**small, num_classes=0))
    visual.head.add_module("drop", nn.Dropout(0.5))
    visual.head.add_module("proj", nn.Linear(VISION, D, bias=bias))
    model.visual = visual
    return model.eval()


def plain_model(bidirectional: bool = False) -> nn.Module:
    """The sizes of the others without their libraries; few words, so that drawing them takes no time."""
    torch.manual_seed(1)
    text, vision = (TEXT, 3, 3), (32, 8, VISION, 2, 2)
    return scatter(PlainCLIP(D, text, vision, context_length=16, words=64, bidirectional=bidirectional))


# Models that need no library: what a machine with a GPU and PyTorch alone can run.
PLAIN_MODELS = {"plain": plain_model, "plain bidirectional": lambda: plain_model(bidirectional=True)}
PLAIN_TOKENIZER = WordTokenizer(words=64, context_length=16)


def _kept(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A fresh copy of a model that is built once: drawing 49408 words takes longer than the tests."""
    kept = functools.cache(make)
    return lambda: copy.deepcopy(kept())


TEXT_MODELS = {
    "open_clip": open_clip_model,
    "open_clip quick_gelu": lambda: open_clip_model(quick_gelu=True),
    "open_clip one layer": lambda: open_clip_model(text={"layers": 1}),
    "open_clip layer scale": lambda: open_clip_model(text={"ls_init_value": 0.3}),
    "open_clip odd width": lambda: open_clip_model(text={"width": 60, "heads": 5}),
    "CustomTextCLIP": lambda: custom_text_model(dict(TEXT_CONFIG)),
    "CustomTextCLIP linear": lambda: custom_text_model({**TEXT_CONFIG, "proj_bias": True}),
    "CustomTextCLIP no projection": lambda: custom_text_model({**TEXT_CONFIG, "proj_type": "none"}),
    "CustomTextCLIP eos": lambda: custom_text_model({**TEXT_CONFIG, "pool_type": "eos", "eos_id": 49407}),
    "CustomTextCLIP tanh": lambda: custom_text_model({**TEXT_CONFIG, "act_kwargs": {"approximate": "tanh"}}),
    "CoCa text": lambda: coca_text(),
    "CoCa text, mask in place": lambda: coca_text(correct=True),
    "SigLIP text": lambda: custom_text_model(dict(_SIGLIP)),
    "OpenAI": openai_model,
    "Hugging Face": hugging_face_model,
    "Hugging Face old eos": lambda: hugging_face_model(eos=2),
}
VISION_MODELS = {
    "open_clip": open_clip_model,
    "open_clip quick_gelu": lambda: open_clip_model(quick_gelu=True),
    "open_clip no ln_pre": lambda: open_clip_model(vision={"no_ln_pre": True}),
    "open_clip ln after pool": lambda: open_clip_model(vision={"final_ln_after_pool": True}),
    "SigLIP timm": siglip_model,
    "OpenAI": openai_model,
    "Hugging Face": hugging_face_model,
}
TEXT_MODELS = {name: _kept(make) for name, make in TEXT_MODELS.items()}
VISION_MODELS = {name: _kept(make) for name, make in VISION_MODELS.items()}


def exact_dtype(kind: str) -> torch.dtype:
    """OpenAI's layer norm computes in float32 whatever comes in; the others follow their input."""
    return F32 if kind == "OpenAI" else F64


def feature_width(model: nn.Module) -> int:
    return VISION if hasattr(getattr(model, "visual", None), "trunk") else D


def targets(count: int, width: int, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(count, width, generator=generator, dtype=F64) * 3).to(dtype)


def start(count: int, vectors: int, width: int, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return (torch.randn(count, vectors, width, generator=generator, dtype=F64) * 0.02).to(dtype)
