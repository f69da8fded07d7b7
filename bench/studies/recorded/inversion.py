"""Inversion, towers, encoders and class texts, on the embedded CLIP and on tiny random ones."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

import semobridge_ext as sb
from recorded.problems import case, codes, draw
from semobridge_ext import clip

D, TEXT, VISION, CONTEXT = 24, 48, 32, 16
_VISION = {"image_size": 32, "patch_size": 8, "width": VISION, "layers": 2, "head_width": 16}
_TEXT = {"context_length": CONTEXT, "width": TEXT, "heads": 3, "layers": 3}
_SIGLIP = {**_TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def _scatter(model: nn.Module) -> nn.Module:
    """Norms, biases and scales away from 1 and 0, where a forgotten one would not show."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            if p.dim() <= 1 and p.numel() > 1:
                p.add_(draw(i, *p.shape) * 0.1)
    return model.eval()


def _open_clip(**options: Any) -> nn.Module:
    return _scatter(open_clip.CLIP(D, dict(_VISION), dict(_TEXT), **options))


def _custom(text: dict[str, Any]) -> nn.Module:
    return _scatter(open_clip.CustomTextCLIP(D, dict(_VISION), text))


def _hugging_face() -> nn.Module:
    import transformers

    text = {
        "hidden_size": TEXT, "intermediate_size": 2 * TEXT, "num_attention_heads": 3, "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT, "bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": 49408,
    }  # fmt: skip
    vision = {
        "hidden_size": VISION, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=D)
    return _scatter(transformers.CLIPModel(config))


def _openai() -> nn.Module:
    """From clip/model.py alone; the package itself needs a setuptools of its time to import."""
    found = importlib.util.find_spec("clip")
    assert found is not None and found.origin is not None
    file = Path(found.origin).with_name("model.py")
    spec = importlib.util.spec_from_file_location("openai_clip_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CLIP(D, 32, 2, 64, 8, CONTEXT, 49408, TEXT, 3, 3)  # one head for each 64 of the width
    model.visual.class_embedding.data.normal_()
    return _scatter(model)


class _TimmVisual(nn.Module):
    """open_clip's TimmModel around a trunk that is not in timm's registry."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, nn.Sequential(), (32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))


def _siglip() -> nn.Module:
    import timm

    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=VISION, depth=2, num_heads=2, class_token=False,
        global_pool="map", num_classes=0,
    )  # fmt: skip
    model = open_clip.CustomTextCLIP(VISION, dict(_VISION), dict(_SIGLIP))
    model.visual = _TimmVisual(trunk)
    with torch.no_grad():
        trunk.attn_pool.latent.normal_()
    return _scatter(model)


MODELS = {
    "open_clip": _open_clip,
    "quick_gelu": lambda: _open_clip(quick_gelu=True),
    "custom": lambda: _custom(dict(_TEXT)),
    "custom linear": lambda: _custom({**_TEXT, "proj_bias": True}),
    "custom tanh": lambda: _custom({**_TEXT, "act_kwargs": {"approximate": "tanh"}}),
    "siglip": _siglip,
    "openai": _openai,
    "hugging face": _hugging_face,
}


@functools.cache
def _model(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[kind]()


@functools.cache
def _picto() -> tuple[nn.Module, Any, Any]:
    return sb.load_picto_clip()


def _width(kind: str) -> int:
    return VISION if kind == "siglip" else D


@case
def oti() -> Any:
    found: dict[str, Any] = {}
    for kind in MODELS:
        model, f = _model(kind), 3 * draw(7, 5, _width(kind))
        start = {"generator": torch.Generator().manual_seed(3)}
        found[kind] = {
            "one": sb.oti(model, f, steps=12, record_steps=(0, 4, 12), **start),
            "two": sb.oti(model, f, steps=8, num_tokens=2, batch_size=2, template="{} in the wild",
                          init=0.02 * draw(8, 2, TEXT)),
            "bfloat16": sb.oti(model, f, steps=4, init=0.02 * draw(8, 1, TEXT), weights=torch.bfloat16),
        }  # fmt: skip
    return found


@case
def ovi() -> Any:
    found: dict[str, Any] = {}
    for kind in MODELS:
        if kind.startswith("custom"):  # the vision tower is open_clip's own
            continue
        model, f = _model(kind), 3 * draw(7, 5, _width(kind))
        width = 64 if kind == "openai" else VISION
        found[kind] = {
            "one": sb.ovi(model, f, steps=8, record_steps=(2,), generator=torch.Generator().manual_seed(3)),
            "four": sb.ovi(model, f, steps=6, num_patches=4, batch_size=2, init=0.02 * draw(8, 4, width)),
        }
    return found


@case
def inversion_options() -> Any:
    model, f = _model("open_clip"), 3 * draw(7, 6, D)
    f[3] = 0
    init = 0.02 * draw(8, 1, TEXT)
    torch.manual_seed(5)
    found = {
        "global generator": sb.oti(model, f, steps=3),
        "patience": sb.oti(model, f, steps=40, init=init, patience=10, min_delta=0.05, record_steps=(0, 40)),
        "settings": sb.oti(model, f, steps=10, init=init, lr=0.1, weight_decay=0.3),
        "no steps": sb.oti(model, f, steps=0, init=init),
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in ("first", "read again"):
            path = Path(folder) / "oti.safetensors"
            found[part] = sb.oti(model, f, steps=5, init=init, batch_size=2, out=path)
    with sb.backend("eager"):
        found["eager oti"] = sb.oti(model, f, steps=4, init=init)
        found["eager ovi"] = sb.ovi(model, f, steps=3, init=0.02 * draw(8, 1, VISION))
    torch.manual_seed(1)
    wide = _open_clip().double()
    found["float64"] = sb.oti(wide, f.double(), steps=5, init=init.double())
    return found


@case
def picto_inversion() -> Any:
    model, _, tokenizer = _picto()
    f, start = draw(7, 20, 192), {"generator": torch.Generator().manual_seed(3)}
    init = 0.02 * draw(8, 3, 192)
    return {
        "oti": sb.oti(model, f, tokenizer=tokenizer, steps=15, record_steps=(5,), **start),
        "oti one": sb.oti(model, f[:1], tokenizer=tokenizer, steps=10, num_tokens=3, init=init),
        "ovi": sb.ovi(model, f[:6], steps=6, num_patches=2, **start),
        "half": sb.oti(_half(model), f, tokenizer=tokenizer, steps=5, init=init[:1]),
    }


def _half(model: nn.Module) -> nn.Module:
    """Weights that float16 holds exactly, which the engine stores so."""
    import copy

    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for p in rounded.parameters():
            p.copy_(p.half().float())
    return rounded


@case
def reference_inversion() -> Any:
    found: dict[str, Any] = {}
    for kind in MODELS:
        model, f = _model(kind), 3 * draw(7, 3, _width(kind))
        init, patches = 0.02 * draw(8, 3, 1, TEXT), 0.02 * draw(8, 3, 2, 64 if kind == "openai" else VISION)
        found[kind] = {
            "oti": sb.reference.oti(model, f, steps=5, init=init, record_steps=(2, 5)),
            "ovi": sb.reference.ovi(model, f, steps=4, init=patches, num_patches=2),
        }
    return found


def _engine_verbs(engine: Any, tokens: torch.Tensor, dim: int) -> dict[str, Any]:
    n = len(tokens)
    state = [tokens.clone(), torch.zeros_like(tokens), torch.zeros_like(tokens)]
    targets = torch.nn.functional.normalize(draw(1, n, dim), dim=1)
    recorded = torch.zeros(2, n, dim)
    losses = engine.descend(*state, targets, 0, 6, grad_scale=1 / n, lr=0.02, weight_decay=0.01,
                            record_steps=(1, 5), recorded=recorded)  # fmt: skip
    return {
        "features": engine.features(tokens), "unit": engine.features(tokens, unit=True),
        "gradient": engine.gradient(tokens, draw(2, n, dim)), "losses": losses, "state": state,
        "recorded": recorded,
    }  # fmt: skip


@case
def engines() -> Any:
    """The two engines and the reference, on towers behind their public doors."""
    found: dict[str, Any] = {}
    for kind in MODELS:
        model, dim = _model(kind), _width(kind)
        for side, (tower, rows) in {
            "text": clip.text_tower(model, "a photo of {}", num_tokens=2),
            "vision": clip.vision_tower(model, num_patches=2),
        }.items():
            tokens = 0.02 * draw(3, 5, 2, tower.width)
            core = sb.ops.FrozenTower(sb.ops.PackedTower(tower), rows)
            launched = sb.ops.LaunchedTower(sb.ops.LaunchedWeights(tower), rows)
            found[f"{kind} {side}"] = {
                "core": _engine_verbs(core, tokens, dim),
                "launched": _engine_verbs(launched, tokens, dim),
                "reference": sb.reference.tower_features(tower, rows, tokens),
            }
    return found


@case
def encoders() -> Any:
    ids = torch.cat([torch.full((6, 1), 49406), codes(1, 36, 40000).reshape(6, 6)], dim=1)
    ids = torch.cat([ids, torch.full((6, 1), 49407), torch.zeros(6, CONTEXT - 8, dtype=torch.int64)], dim=1)
    images, found = draw(2, 5, 3, 32, 32), {}
    for kind in MODELS:
        model, mine = _model(kind), {}
        for project in (True, False):
            for name, encode, data in (("image", clip.encode_image, images), ("text", clip.encode_text, ids)):
                try:
                    mine[f"{name} {project}"] = encode(model, data, project=project, batch_size=2)
                except TypeError as error:  # a tower without a linear projection
                    mine[f"{name} {project}"] = type(error).__name__
        for name, read in (("image", clip.image_projection), ("text", clip.text_projection)):
            try:
                mine[f"{name} projection"] = read(model)
            except TypeError as error:
                mine[f"{name} projection"] = type(error).__name__
        found[kind] = mine
    mapping = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found["hugging face mapping"] = clip.encode_text(_model("hugging face"), mapping, project=False)
    return found


@case
def class_texts() -> Any:
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    names, own = ["star", "old house", 7], {"a": ["one a", "two a"], "b": ["only b"]}
    found: dict[str, Any] = {}
    ensemble = ("{}", "an icon of {}")
    for kind in ("open_clip", "custom", "openai", "hugging face"):
        found[kind] = {
            "default": sb.class_text_features(_model(kind), names, tokenizer=tokenizer),
            "ensemble": sb.class_text_features(
                _model(kind), names, ensemble, tokenizer=tokenizer, batch_size=4
            ),
            "own": sb.class_text_features(_model(kind), ["a", "b"], own, tokenizer=tokenizer),
        }  # fmt: skip
    model, _, tokens = _picto()
    found["picto"] = sb.class_text_features(model, names, ("{}", "a drawing of {}"), tokenizer=tokens)
    return found


@case
def embedded_data() -> Any:
    model, preprocess, tokenizer = _picto()
    found: dict[str, Any] = {"names": sb.list_picto(), "projection": sb.data.picto_text_projection()}
    for name in sb.list_picto():
        d = sb.load_picto(name)
        found[name] = [d.images, d.labels, d.train, d.val, d.test, d.class_names, d.styles, d.texts("a {}")]
    from PIL import Image

    flags = sb.load_picto("flags").images[:40]
    images = sb.picto_transform(flags)
    found["preprocess"] = preprocess(Image.fromarray(flags[0].numpy()))
    found["features"] = {
        "image": clip.encode_image(model, images), "before": clip.encode_image(model, images, project=False),
        "text": clip.encode_text(model, tokenizer(["a star", "red flag"])), "transform": images,
        "text before": clip.encode_text(model, tokenizer(["a star", "red flag"]), project=False),
    }  # fmt: skip
    return found
