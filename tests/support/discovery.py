"""A small problem of category discovery: five classes in two views, three of them partly labelled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import semobridge_ext as sb

SMALL: dict[str, Any] = {
    "num_classes": 5, "temperature": 0.2, "width": 12, "hidden": 16, "projection": 8, "epochs": 3,
    "batch_size": 16, "warmup": 2,
}  # fmt: skip


class Images(NamedTuple):
    x: Tensor  # [2, N, D]
    y: list[Any]  # N, None where unlabelled
    true: Tensor  # [N]
    concepts: Tensor  # [K, D]
    teacher: tuple[Tensor, Tensor]


def images(count: int = 60, noise: float = 0.6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Images:
    """Every second image of the classes 0, 1 and 2 is labelled."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    centres, true = draw(5, 10), torch.arange(count) % 5
    x = (centres[true] + noise * draw(2, count, 10)) * 2
    concepts = torch.cat([centres + 0.4 * draw(5, 10), draw(7, 10)])
    teacher = (centres[true] + 0.3 * draw(count, 10)) @ draw(10, 6), draw(12, 6)
    known = (true < 3) & (torch.arange(count) % 2 == 0)
    y = [int(c) if k else None for c, k in zip(true.tolist(), known.tolist(), strict=True)]
    return Images(x.to(dtype), y, true, concepts.to(dtype), (teacher[0].to(dtype), teacher[1].to(dtype)))


def fit(data: Images, **changed: Any) -> sb.SpectralGCD:
    """One training, with what is changed by the names of the arguments."""
    given = {"X": data.x, "y": data.y, "teacher": data.teacher, "checkpoint": None}
    given |= {"concept_features": data.concepts, **SMALL, **changed}
    x, y, teacher, checkpoint = (given.pop(name) for name in ("X", "y", "teacher", "checkpoint"))
    gcd = sb.SpectralGCD(given.pop("concept_features"), **given)
    return gcd.fit(x, y, teacher=teacher, checkpoint=checkpoint)
