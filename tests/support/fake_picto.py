"""A small stand-in for the embedded CLIP and its sets: same interface, random towers, known structure.

A drawing of class c is a fixed pattern plus noise; its feature is what a random vision tower makes of it.
The word of class c has the embedding whose text feature is nearest to a disturbed feature of that pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
import semobridge_ext.data
from semobridge_ext.cli import demo_fewshot, demo_retrieval, demo_speed

CLASSES, WIDTH, SIZE = 12, 24, 8
TRAIN, VAL, TEST = 9, 1, 6
# One token each.
NAMES = ["cat", "dog", "car", "sun", "tree", "fish", "bird", "house", "book", "ring", "boat", "rose"]


@dataclass
class FakeSet:
    name: str
    description: str
    images: Tensor
    labels: Tensor
    class_names: list[str]
    styles: list[str]
    train: Tensor
    val: Tensor
    test: Tensor


def prepare(images: Tensor) -> Tensor:
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def preprocess(image) -> Tensor:
    return prepare(torch.from_numpy(np.array(image))[None])[0]


tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=10)


@cache
def _model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision = {"image_size": SIZE, "patch_size": 4, "width": 32, "layers": 1, "head_width": 16}
        text = {"context_length": 10, "width": 24, "heads": 2, "layers": 1}
        model = open_clip.CLIP(WIDTH, vision, text).eval().requires_grad_(False)
        open_clip.set_model_preprocess_cfg(model.visual, {"mean": (0.5,) * 3, "std": (0.5,) * 3})
        u, _ = torch.linalg.qr(torch.randn(24, WIDTH))
        v, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
        # Some singular values lie under the bridge's cut of 0.3.
        model.text_projection.copy_((u * torch.linspace(0.05, 2.0, WIDTH)) @ v.T)
        features = model.encode_image(prepare(torch.from_numpy(_patterns())))
        targets = features + 0.6 * features.std() * torch.randn(features.shape)
        found = sb.reference.oti(model, targets, tokenizer=tokenize, template="{}", steps=80)
        words = [int(tokenize([name])[0, 1]) for name in NAMES]
        model.token_embedding.weight[words] = found.tokens[:, 0]
    return model


def _patterns() -> np.ndarray:
    patterns = np.random.RandomState(0).randint(60, 196, size=(CLASSES, SIZE, SIZE, 3))
    return patterns.astype(np.uint8)


def make() -> tuple[torch.nn.Module, FakeSet]:
    rng = np.random.RandomState(1)
    each = TRAIN + VAL + TEST
    labels = np.repeat(np.arange(CLASSES), each)
    noise = rng.normal(0, 40, size=(len(labels), SIZE, SIZE, 3))
    images = np.clip(_patterns()[labels] + noise, 0, 255).astype(np.uint8)
    place = np.tile(np.arange(each), CLASSES)
    parts = (place < TRAIN, (place >= TRAIN) & (place < TRAIN + VAL), place >= TRAIN + VAL)
    dataset = FakeSet(
        "things",
        "patterns with noise",
        torch.from_numpy(images),
        torch.from_numpy(labels),
        list(NAMES),
        ["plain"] * len(labels),
        *map(torch.from_numpy, parts),
    )
    return _model(), dataset


def install(patch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, FakeSet]:
    """Puts the stand-in in place of the embedded data; two sets of the same drawings."""
    model, dataset = make()
    for name, value in {
        "load_picto_clip": lambda: (model, preprocess, tokenize),
        "load_picto": lambda name: dataset if name == "things" else replace(dataset, name=name),
        "list_picto": lambda: ["things", "flags"],
    }.items():
        patch.setattr(semobridge_ext.data, name, value, raising=False)
    return model, dataset


def shrink_demo(patch: pytest.MonkeyPatch) -> None:
    """The same work of the demo, less of it."""
    patch.setattr(demo_fewshot, "OPTIONS", demo_fewshot.OPTIONS._replace(trials=20, steps=5))
    small = {"pilots": 20, "steps": 4, "refine": (2,), "hidden": 8, "train_steps": 10}
    patch.setattr(demo_retrieval, "START", small)
    patch.setattr(demo_speed, "GALLERY", 400)
