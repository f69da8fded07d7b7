"""What changes from epoch to epoch: the rates, the temperature of the self-distillation, the draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semobridge_ext import _numbers

FLOOR = 1e-3  # of the rate at the end of the cosine


def rate(epoch: int, epochs: int, first: float) -> float:
    """Cosine from ``first`` in epoch 0 towards ``first·1e-3``, which would be epoch ``epochs``."""
    return first * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))


def teacher_temperature(epoch: int, warmup: int, first: float, last: float) -> float:
    """Linear from ``first`` in epoch 0 to ``last`` in epoch warmup − 1, then constant."""
    if epoch >= warmup - 1:
        return last
    return first + (last - first) * epoch / (warmup - 1)


def epoch_batches(labelled: Tensor, batch_size: int, views: int, seed: int, epoch: int) -> list[Tensor]:
    """Rows and views of each step of an epoch, [B, 3] int64: image, first view, second view.

    As many images are drawn as there are, with replacement, labelled and unlabelled ones equally often in
    the mean; what fills no batch is dropped. The two views differ where there are two. Draws depend on seed
    and epoch alone, so that a resumed run repeats them.
    """
    generator = torch.Generator().manual_seed(_numbers.seed_of(seed, epoch))
    known = int(labelled.sum())
    unknown = len(labelled) - known
    weights = torch.ones(len(labelled), dtype=torch.float64)
    if known and unknown:
        weights[~labelled] = known / unknown
    images = torch.multinomial(weights, len(labelled), replacement=True, generator=generator)
    first = torch.randint(views, (len(images),), generator=generator)
    step = torch.randint(1, max(views, 2), (len(images),), generator=generator)
    drawn = torch.stack([images, first, (first + step) % views], dim=1)
    size = int(batch_size)
    return list(drawn[: len(images) // size * size].split(size))
