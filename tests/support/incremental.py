"""A small multi-label problem: five findings, each a direction that is added to an image that shows it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import semobridge_ext as sb

NAMES = ["edema", "nodule", "mass", "fracture", "effusion"]
SMALL: dict[str, Any] = {"epochs": 4, "lr": 0.01, "logit_scale": 10.0, "checkpoint_every": 2}


class Findings(NamedTuple):
    x: Tensor  # [N, D]
    y: Tensor  # [N, 5] int64: 0, 1
    prompts: Tensor  # [5, 2, D]


def findings(
    count: int = 40, width: int = 8, noise: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Findings:
    """Prompts point near the findings' directions, on another side of a common offset than the images."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    shown, offset = draw(5, width), draw(width)
    y = (torch.rand(count, 5, generator=g) < 0.4).long()
    x = 2 * (y.double() @ shown + offset + noise * draw(count, width))
    texts = torch.stack([shown + 0.8 * draw(5, width), 0.8 * draw(5, width)], dim=1) - offset
    return Findings(x.to(dtype), y, texts.to(dtype))


def fit(data: Findings, columns: list[int], **changed: Any) -> sb.RETune:
    """One task of some findings, with what is changed by the names of the arguments."""
    given: dict[str, Any] = {"X": data.x, "Y": data.y[:, columns], "prompt_features": data.prompts[columns]}
    given |= {"findings": [NAMES[c] for c in columns], "known": None, "checkpoint": None, **SMALL, **changed}
    names = ("X", "Y", "prompt_features", "findings", "known", "checkpoint")
    x, y, prompts, findings, known, checkpoint = (given.pop(name) for name in names)
    return sb.RETune(**given).fit(x, y, prompts, findings=findings, known=known, checkpoint=checkpoint)
