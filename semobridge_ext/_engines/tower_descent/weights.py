"""A tower's weights and a template's rows on a device, as _engines/tower_descent/plan.py runs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower, slots_of


@dataclass(frozen=True)
class LaunchedLayer:
    """A block's weights on the device."""

    norm1: Norm
    qkv: Linear  # [T, 3T]; with a constant query [T, 2T], keys and values
    out: Linear
    norm2: Norm
    fc: Linear
    proj: Linear
    query: Tensor | None  # [T]


@dataclass(frozen=True)
class LaunchedRows:
    """What is learned, in slots, and the constants around it."""

    base: Tensor  # [n, 1 or S, T]
    source: tuple[int, ...]  # [n], −1 for none
    visible: tuple[tuple[int, ...], ...]  # per slot
    prefixes: tuple[Tensor, ...]  # per layer [2, P, T], or none at all
    vectors: int

    @property
    def learned(self) -> range:
        slots = [i for i, s in enumerate(self.source) if s >= 0]
        return range(slots[0], slots[-1] + 1)


class LaunchedWeights:
    """A tower's weights as a device's products take them.

    Args:
        tower: on any device.
        weights: dtype of products and activations. None: the tower's own (float32 or float64), exact;
            torch.float16 and torch.bfloat16 round both. A float64 tower stays float64.

    Raises:
        Nothing: a matrix that does not fit its layer shows in the first product.

    Memory: one copy of every matrix in ``weights``; none where that is the tower's own type.

    Example:
        >>> import open_clip
        >>> from semobridge_ext import clip, ops
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> tower, _ = clip.text_tower(open_clip.CLIP(16, vision, text), "a photo of {}")
        >>> ops.LaunchedWeights(tower, torch.bfloat16).stored
        torch.bfloat16
    """

    def __init__(self, tower: Tower, weights: torch.dtype | None = None) -> None:
        self.tower = tower
        self.compute = torch.float64 if tower.dtype == torch.float64 else torch.float32
        self.stored = self.compute if weights is None or self.compute == torch.float64 else weights
        self.norm_pre, self.norm_final = self._norm(tower.norm_pre), self._norm(tower.norm_final)
        self.projection = None if tower.projection is None else self._linear(tower.projection)
        self.layers = [self._layer(block) for block in tower.blocks]

    def _norm(self, norm: Norm | None) -> Norm | None:
        if norm is None:
            return None
        weight, bias = norm.weight.to(self.compute), norm.bias.to(self.compute)
        return Norm(weight.contiguous(), bias.contiguous(), norm.eps)

    def _linear(self, linear: Linear, skip: int = 0) -> Linear:
        """From column `skip` on."""
        bias = None if linear.bias is None else linear.bias[skip:].to(self.stored).contiguous()
        return Linear(linear.weight[:, skip:].to(self.stored), bias)

    def _layer(self, block: Block) -> LaunchedLayer:
        norm1, norm2 = self._norm(block.norm1), self._norm(block.norm2)
        assert norm1 is not None and norm2 is not None
        skip = 0 if block.query is None else self.tower.width
        return LaunchedLayer(
            norm1, self._linear(block.qkv, skip), self._linear(block.out), norm2, self._linear(block.fc),
            self._linear(block.proj), None if block.query is None else block.query.to(self.stored),
        )  # fmt: skip


def launched_rows(tower: Tower, rows: LearnedRows, compute: torch.dtype, stored: torch.dtype) -> LaunchedRows:
    """The slots of ``rows``, and the keys and values of the positions before them."""
    from semobridge_ext._engines.tower_descent.reference import run_block

    slots = slots_of(tower, rows)
    base = rows.base.to(compute)
    base = base.unsqueeze(1) if base.dim() == 2 else base  # [L, 1 or S, T]
    prefixes: list[Tensor] = []
    x = base[: slots.prefix, 0].unsqueeze(0)  # [1, P, T]
    for block in tower.blocks if slots.prefix else ():
        x, k, v = run_block(tower, block, x)
        prefixes.append(torch.cat([k, v]).to(stored).contiguous())  # [2, P, T]
    source = tuple(rows.source[p] for p in slots.order)
    return LaunchedRows(
        base[list(slots.order)].contiguous(), source, slots.visible, tuple(prefixes), rows.vectors
    )
