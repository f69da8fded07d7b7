"""A frozen transformer tower as plain tensors, and the rows that are learned in it.

semobridge_ext/clip extracts it from a model, the engines of this folder run it. Matrices multiply from the
right, ``x @ weight``; a block is pre-norm:

    x ← x + attention(LN1(x)·Wqkv + b)·Wo + b        x ← x + act(LN2(x)·W1 + b)·W2 + b

Letters: T tower width · M hidden width · D feature width · L positions · R learned vectors · S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


class Norm(NamedTuple):
    weight: Tensor  # [T]
    bias: Tensor  # [T]
    eps: float


class Linear(NamedTuple):
    weight: Tensor  # [K, M]
    bias: Tensor | None  # [M]


@dataclass(frozen=True)
class Block:
    norm1: Norm
    qkv: Linear  # [T, 3T]: queries, keys, values
    out: Linear  # [T, T]
    norm2: Norm
    fc: Linear  # [T, M]
    proj: Linear  # [M, T]
    # [T]: a pooling block, the last one: this constant query, and no residual around the attention.
    query: Tensor | None = None


@dataclass(frozen=True)
class Tower:
    """Everything between the input rows and the feature."""

    name: str
    heads: int
    activation: str  # one of ACTIVATIONS
    causal: bool
    blocks: tuple[Block, ...]
    norm_pre: Norm | None = None
    norm_final: Norm | None = None
    projection: Linear | None = None  # [T, D]

    @property
    def width(self) -> int:
        return self.blocks[0].qkv.weight.shape[0]

    @property
    def features(self) -> int:
        return self.width if self.projection is None else self.projection.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].qkv.weight.dtype

    @property
    def compute(self) -> torch.dtype:
        """Of sums, statistics, losses and learned rows."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return self.blocks[0].qkv.weight.device

    def linears(self) -> Iterator[Linear]:
        for block in self.blocks:
            yield from (block.qkv, block.out, block.fc, block.proj)
        if self.projection is not None:
            yield self.projection


@dataclass(frozen=True)
class LearnedRows:
    """Which positions of a tower's input are learned.

    Position l of sample s is ``base[l] + v[s, source[l]]``, or ``base[l]`` where ``source[l] < 0``.
    One vector may serve several positions (interpolated patches). With ``base`` [L, S, T] every sample
    has its own constants, as the class words behind CoOp's shared context; the positions before the
    first learned one must then be the same in all samples, and classes are grouped by length.
    """

    base: Tensor  # [L, T] or [L, S, T], positional embedding included
    source: tuple[int, ...]  # [L]
    pool: int | None  # the position whose row becomes the feature; None with a pooling block

    @property
    def vectors(self) -> int:
        return max(self.source) + 1


@dataclass(frozen=True)
class MaskedRows(LearnedRows):
    """Learned rows some of which serve as queries alone: CoCa's class embedding, which a mask hides."""

    unseen: tuple[int, ...] = ()  # positions whose keys no query sees, not even their own


def unseen_of(rows: LearnedRows) -> tuple[int, ...]:
    return rows.unseen if isinstance(rows, MaskedRows) else ()


class Slots(NamedTuple):
    """The positions that are computed in every step, the pooled one first, and the prefix."""

    prefix: int  # positions before the first learned one, constant
    order: tuple[int, ...]  # slot → position
    visible: tuple[tuple[int, ...], ...]  # per slot, the slots that its query sees


def slots_of(tower: Tower, rows: LearnedRows) -> Slots:
    """Drops the positions that cannot matter: after the pooled one and, as constants, before the first
    learned one, when attention is causal."""
    learned = [i for i, s in enumerate(rows.source) if s >= 0]
    if not learned:
        raise ValueError("slots_of: rows must have a learned position, got none")
    length = len(rows.source)
    prefix = 0
    if tower.causal:
        if rows.pool is None:
            raise ValueError("slots_of: a causal tower must have a pooled position, got None")
        if rows.pool < learned[0]:
            raise ValueError(
                f"slots_of: the pooled position must see a learned one, got pool {rows.pool} before "
                f"position {learned[0]}; the feature would not depend on what is learned"
            )
        prefix, length = learned[0], rows.pool + 1
        if any(position < prefix for position in unseen_of(rows)):
            raise ValueError(
                f"slots_of: what is unseen must not stand before a learned position, got {unseen_of(rows)} "
                f"before position {prefix}; leave such rows out"
            )
    own = list(range(prefix, length))
    first = [] if rows.pool is None else [rows.pool]
    rest = [i for i in own if i not in first]
    # Learned slots stand together, so that "all learned rows" is one slice.
    order = first + sorted(rest, key=lambda i: (rows.source[i] < 0, i))
    keys = [(j, p) for j, p in enumerate(order) if p not in unseen_of(rows)]
    visible = tuple(tuple(j for j, p in keys if not tower.causal or p <= position) for position in order)
    return Slots(prefix, tuple(order), visible)
