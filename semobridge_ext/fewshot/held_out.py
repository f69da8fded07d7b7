"""Accuracy of unit features that have no fixed parts: on the rows that are no shots, by nearest mean or text.

For one seed the shots of every class are its first K rows in a random order, and the test rows are
those behind the largest K: every K is tested on the same rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def usable_shots(labels: Tensor, wanted: list[int]) -> tuple[list[int], int]:
    """The numbers of shots that leave two classes a test row, and how many classes the largest leaves."""
    sizes = torch.bincount(labels)
    shots = [k for k in sorted(set(wanted)) if int((sizes > k).sum()) >= 2]
    return shots, int((sizes > max(shots)).sum()) if shots else 0


def nearest_mean_accuracy(
    features: Tensor,  # [N, D] unit rows
    labels: Tensor,  # [N] int64
    shots: list[int],
    seeds: int,
) -> dict[int, list[float]]:
    """Accuracy of the nearest class mean with K shots per class, by K and seed.

    Classes with too few rows for the largest K and one test row take part nowhere, so that every K
    answers the same question.
    """
    sizes = torch.bincount(labels)
    usable = sizes > max(shots)
    codes, classes = torch.cumsum(usable, 0) - 1, int(usable.sum())
    found: dict[int, list[float]] = {k: [] for k in shots}
    mine = usable[labels].nonzero().squeeze(1)
    for seed in range(seeds):
        shuffled = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))]
        order = shuffled[torch.sort(labels[shuffled], stable=True).indices]
        y = codes[labels[order]]
        starts = torch.searchsorted(y, torch.arange(classes))
        place = torch.arange(len(y)) - starts[y]  # within its class
        test = place >= max(shots)
        asked, answers = order[test], y[test]
        for k in shots:
            shot = place < k
            means = torch.zeros(classes, features.shape[1])
            means.index_add_(0, y[shot], features[order[shot]])
            found[k].append(_share_nearest(features, asked, answers, normalize(means, dim=1)))
    return found


_BLOCK = 4096  # rows that are compared with all classes at once


def _share_nearest(features: Tensor, rows: Tensor, answers: Tensor, classes: Tensor) -> float:
    """Share of the rows whose nearest class is the answer; nothing of the set's size is made."""
    hits, texts = 0, classes.T
    block = features.new_empty(min(_BLOCK, len(rows)), features.shape[1])
    for part, y in zip(rows.split(_BLOCK), answers.split(_BLOCK), strict=True):
        # One buffer: a new one for each block, with a small result kept behind it, lets the heap grow
        # by every block.
        mine = torch.index_select(features, 0, part, out=block[: len(part)])
        hits += int(((mine @ texts).argmax(dim=1) == y).sum())
    return hits / len(rows)


def nearest_text_accuracy(
    features: Tensor,  # [N, D] unit rows
    labels: Tensor,  # [N] int64, rows of `texts`
    texts: Tensor,  # [C, D] unit rows
) -> float:
    """Accuracy of the nearest class text, over all classes and rows."""
    blocks = zip(features.split(_BLOCK), labels.split(_BLOCK), strict=True)
    return sum(int(((x @ texts.T).argmax(dim=1) == y).sum()) for x, y in blocks) / len(features)
