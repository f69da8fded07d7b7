"""What changes from epoch to epoch: the rate and the draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semobridge_ext import _numbers


def rate(epoch: int, epochs: int, lr: float, first: float) -> float:
    """``first`` in epoch 0; then a cosine from ``lr`` in epoch 1 towards 0, one epoch behind, as Dassl's."""
    if epoch == 0:
        return first
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def epoch_batches(images: int, batch_size: int, views: int, seed: int, epoch: int) -> list[Tensor]:
    """Image and view of each step of an epoch, [B, 2] int64.

    Every image once, in a random order; what fills no batch is dropped, unless it is all there is. Draws
    depend on seed and epoch alone, so that a resumed run repeats them.
    """
    generator = torch.Generator().manual_seed(_numbers.seed_of(seed, epoch))
    order = torch.randperm(images, generator=generator)
    drawn = torch.stack([order, torch.randint(views, (images,), generator=generator)], dim=1)
    size = min(int(batch_size), images)  # beyond it there is one batch
    return list(drawn[: images // size * size].split(size))
