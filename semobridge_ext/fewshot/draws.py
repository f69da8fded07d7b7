"""Draws of shots: which rows of a training part an episode learns from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sample_support(
    labels: Tensor,  # [S] int64, of the training part
    shots: int,
    seed: int,
) -> Tensor:  # sorted rows, at most `shots` per class
    """The first ``shots`` rows of every class in a seeded order.

    For one seed the draws are nested: 1 ⊂ 2 ⊂ 4 shots. A class with fewer rows gives all it has.
    Pass the labels of the training part alone: only its rows can then be drawn.
    """
    if shots < 1:
        raise ValueError(f"sample_support: shots must be ≥ 1, got {shots}; try 1, 2, 4 and 8")
    labels = torch.as_tensor(labels, device="cpu")
    # RandomState's stream is frozen by NumPy's policy; Generator's may change between releases.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = (sizes.cumsum(0) - sizes)[labels[order]]
    rank = torch.arange(len(order), device="cpu") - starts
    return order[rank < shots].sort().values
