"""What keeps rows and takes more: a support set and a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import rows, saved

S = "safetensors"


def support() -> Any:
    g = torch.Generator().manual_seed(2)
    keys = torch.nn.functional.normalize(torch.randn(9, 4, generator=g), dim=1)
    return sb.SupportSet(keys, torch.arange(9) % 3, 3, weights=torch.rand(9, generator=g))


def use_support(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SupportSet.load(path))
    x = torch.nn.functional.normalize(rows(found.width), dim=1)
    before = found.logits(x, beta=1.5)
    if found.num_classes:
        keys = torch.ones(2, found.width, dtype=found.keys.dtype)
        weights = None if found.weights is None else torch.ones(2)
        found.append(keys, torch.tensor([0, found.num_classes - 1]), weights)
    after = found.logits(x)
    found.save(path)
    return [before, after]


def gallery() -> Any:
    return sb.Gallery(torch.randn(40, 4, generator=torch.Generator().manual_seed(5)))


def use_gallery(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.Gallery.load(path))
    k = min(3, len(found))
    before = found.topk(rows(found.width), k).scores
    return [before, found.add(rows(found.width)).topk(rows(found.width), k).scores]


TARGETS = [
    Target("Gallery.load", S, ("Gallery.load",), saved(gallery), use_gallery, nan=True, sealed=True),
    Target("SupportSet.load", S, ("SupportSet.load",), saved(support), use_support, nan=True, sealed=True),
]
