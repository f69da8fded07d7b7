"""Synthetic few-shot problems: Gaussian clusters with a text offset, raw lengths, unequal shots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import reference
from semobridge_ext._ops.blend_logits.reference import blend_logits, class_weights, prototypes


class Problem(NamedTuple):
    shots: Tensor  # [M, D]
    labels: Tensor  # [M]
    queries: Tensor  # [N, D]
    targets: Tensor  # [N]
    text: Tensor  # [C, D] not normalised
    hidden: Tensor  # [C, T] not normalised
    projection: Tensor  # [T, D]

    def bridge(self, dtype: torch.dtype = torch.float32) -> sb.Bridge:
        return sb.Bridge(self.projection.to(dtype))


def make(
    classes: int = 7, shots: int | list[int] = 3, queries: int = 60, width: int = 24, text_width: int = 20,
    noise: float = 0.8, seed: int = 0, dtype: torch.dtype = torch.float32,
) -> Problem:  # fmt: skip
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    counts = torch.tensor([shots] * classes if isinstance(shots, int) else shots)
    labels = torch.arange(classes).repeat_interleave(counts)
    labels = labels[torch.randperm(len(labels), generator=g)]
    means = draw(classes, width) + 0.3
    images = (means[labels] + noise * draw(len(labels), width)) * (
        1 + 2 * torch.rand(len(labels), 1, generator=g)
    )
    targets = torch.randint(classes, (queries,), generator=g)
    points = (means[targets] + noise * draw(queries, width)) * 2.5
    text = means + noise * draw(classes, width)
    projection = draw(text_width, width) * 0.3
    hidden = text @ torch.linalg.pinv(projection) + 0.5 * draw(classes, text_width)
    rounded = (v.to(dtype) for v in (images, points, text, hidden, projection))
    images, points, text, hidden, projection = rounded
    return Problem(images, labels, points, targets, text, hidden, projection)


def reference_blocks(p: Problem, bridged: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z1, z2, z3 and the exponents' classes weights at s = 1, in float64 from the rounded inputs."""
    unit = reference.scale_rows
    w = p.projection.double()

    def cross(f: Tensor) -> Tensor:
        return reference.bridge(f, w, normalize=False) if bridged else unit(f)

    text, f = unit(p.text.double()), p.queries.double()
    raw = prototypes(p.shots.double(), p.labels, len(text))
    hat = prototypes(cross(p.shots.double()), p.labels, len(text))
    z = unit(f) @ text.T, unit(f) @ hat.T, unit(cross(f)) @ raw.T
    return *z, class_weights(raw, text, 1.0)


def reference_logits(p: Problem, params: dict[str, float], bridged: bool = True) -> Tensor:
    z1, z2, z3, weights = reference_blocks(p, bridged)
    lambdas = tuple(params.get(f"lambda{i}", 1.0) for i in (1, 2, 3))
    sharp = {name: params.get(name, 1.0) for name in ("alpha", "beta", "gamma")}
    return blend_logits(z1, z2, z3, weights=weights ** params.get("s", 0.0), lambdas=lambdas, **sharp)
