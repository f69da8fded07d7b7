"""A small stand-in for the embedded CLIP and its sets: same interface, no weights, known structure.

A drawing of class c is a fixed pattern plus noise; its feature is a linear map of the pixels. The
text feature of class c is that pattern's feature, disturbed, plus an offset: a modality gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import semobridge_ext.data

CLASSES, WIDTH, SIZE = 12, 24, 8
TRAIN, VAL, TEST = 9, 1, 6


class FakeVisual(nn.Module):
    image_size = (SIZE, SIZE)
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)


class FakeClip(nn.Module):
    def __init__(self, patterns: np.ndarray, image_map: Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.visual = FakeVisual()
        self.image_map = image_map
        u, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
        spectrum = torch.linspace(0.05, 2.0, WIDTH)  # some values lie under the cut of 0.3
        self.text_projection = nn.Parameter((u * spectrum) @ v.T, requires_grad=False)
        target = self.encode_image(prepare(torch.from_numpy(patterns)))
        target = target + 0.6 * target.std() * torch.randn(target.shape, generator=generator)
        target = target + 0.5 * target.norm(dim=1).mean() * v[:, 0]
        words = target @ torch.linalg.pinv(self.text_projection)
        self.words = nn.Embedding.from_pretrained(
            torch.cat([torch.zeros(1, WIDTH), words, torch.zeros(1, WIDTH)])
        )
        self.ln_final = nn.Identity()

    def encode_image(self, batch: Tensor) -> Tensor:
        return batch.flatten(1) @ self.image_map

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = self.ln_final(x.cumsum(dim=1))  # causal, as CLIP's text tower is
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


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


def tokenize(texts: list[str]) -> Tensor:
    words = [int(text.split()[-1]) + 1 for text in texts]
    return torch.tensor([[word, CLASSES + 1, 0] for word in words])


def make() -> tuple[FakeClip, FakeSet]:
    rng = np.random.RandomState(0)
    patterns = rng.randint(60, 196, size=(CLASSES, SIZE, SIZE, 3)).astype(np.uint8)
    each = TRAIN + VAL + TEST
    labels = np.repeat(np.arange(CLASSES), each)
    noise = rng.normal(0, 55, size=(len(labels), SIZE, SIZE, 3))
    images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    place = np.tile(np.arange(each), CLASSES)
    image_map = torch.from_numpy(rng.normal(0, 0.2, size=(SIZE * SIZE * 3, WIDTH))).float()
    parts = (place < TRAIN, (place >= TRAIN) & (place < TRAIN + VAL), place >= TRAIN + VAL)
    dataset = FakeSet(
        "things",
        "patterns with noise",
        torch.from_numpy(images),
        torch.from_numpy(labels),
        [f"thing {c}" for c in range(CLASSES)],
        ["plain"] * len(labels),
        *map(torch.from_numpy, parts),
    )
    return FakeClip(patterns, image_map).eval(), dataset


def install(patch: pytest.MonkeyPatch) -> tuple[FakeClip, FakeSet]:
    """Puts the stand-in in place of the embedded data; two sets of the same drawings."""
    model, dataset = make()
    for name, value in {
        "load_picto_clip": lambda: (model, preprocess, tokenize),
        "load_picto": lambda name: dataset,
        "list_picto": lambda: ["things", "flags"],
    }.items():
        patch.setattr(semobridge_ext.data, name, value, raising=False)
    return model, dataset
