"""Reference of APE's criterion (arXiv 2304.01195); the cache's own is _ops/support_logits/reference.py."""

from __future__ import annotations

import torch
from torch import Tensor


def ape_criterion(
    text: Tensor,  # [C, D] unit rows
    shots: Tensor,  # [C, K, D] unit rows
    *,
    w0: float = 0.7,
    w1: float = 0.3,
) -> Tensor:  # [D], higher is better
    """APE's score of a channel, pair by pair: ``−w0·(mean inter-class product) + w1·var(text)``."""
    rows = torch.cat([text.unsqueeze(1), shots], dim=1)
    classes, samples = rows.shape[:2]
    total, count = torch.zeros_like(rows[0, 0]), 0
    for i in range(classes):
        for j in range(classes):
            for m in range(samples if i != j else 0):
                total += (rows[i, m] * rows[j]).sum(dim=0)
                count += samples
    return -w0 * total / count + w1 * text.var(dim=0)
