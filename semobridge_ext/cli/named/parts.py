"""Training, validation and test rows of a data set: its own splits, and stated draws where it has none.

A draw goes class by class, by NumPy's RandomState of one seed: 20 % of the training images for validation, or
50, 20 and 30 % of all for the three parts. CoOp draws as many; the images are others, as its own lie in files
that are not shipped here (--split takes them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SEED = 0
VALIDATION = 0.2  # of a class's training images
SHARES = (0.5, 0.2)  # of all images for training and validation; the rest is tested on
_ALIASES = {
    "validation": "val", "valid": "val", "dev": "val", "trainval": "train", "training": "train",
    "testing": "test",
}  # fmt: skip


class Parts(NamedTuple):
    train: Tensor  # [n] int64 row numbers, ascending
    val: Tensor
    test: Tensor
    told: str  # where they come from


def _ranks(labels: Tensor) -> tuple[Tensor, Tensor]:  # [N] -> [N], [N]
    """The place of each row in a seeded order of its class, and the size of that class."""
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(labels)))
    order = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - starts[labels[order]]
    return ranks, sizes[labels]


def _share(sizes: Tensor, share: float) -> Tensor:
    """Rows that a share of each class has: one at least where the class has two."""
    return (sizes * share).round().long().clamp(min=1).minimum((sizes - 1).clamp(min=0))


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero().flatten()


def parts_of(labels: Tensor, splits: Sequence[str | None] | None) -> Parts:  # labels [N] from 0
    """The three parts of labelled rows; `splits` names the part of each row where that is known."""
    given = splits or [None] * len(labels)
    known = [None if s is None else _ALIASES.get(s.lower(), s.lower()) for s in given]
    is_part = {p: torch.tensor([s == p for s in known]) for p in ("train", "val", "test")}
    has = {p: bool(chosen.any()) for p, chosen in is_part.items()}
    if all(has.values()):
        rows = {p: _rows(chosen) for p, chosen in is_part.items()}
        return Parts(rows["train"], rows["val"], rows["test"], "train, val and test as given")
    if has["train"] and (has["test"] or has["val"]):
        test = "test" if has["test"] else "val"
        own = _rows(is_part["train"])
        ranks, sizes = _ranks(labels[own])
        held = ranks < _share(sizes, VALIDATION)
        told = f"validation: {VALIDATION:.0%} of each class's training images, drawn with seed {SEED}"
        if not has["test"]:
            told += "; the given validation part is the test part"
        return Parts(own[~held], own[held], _rows(is_part[test]), told)
    ranks, sizes = _ranks(labels)
    held = _share(sizes, SHARES[1])
    train = (sizes * SHARES[0]).round().long().clamp(min=1)
    train = train.minimum((sizes - held).clamp(min=1))
    told = f"50, 20 and 30 % of each class for training, validation and test, drawn with seed {SEED}"
    return Parts(
        _rows(ranks < train),
        _rows((ranks >= train) & (ranks < train + held)),
        _rows(ranks >= train + held),
        told,
    )
