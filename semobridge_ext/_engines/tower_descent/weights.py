"""A tower's weights as the products of a device take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Block, Linear, Norm, Tower


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


class LaunchedWeights:
    """A tower's weights as the products of a device take them.

    Args:
        tower: on any device.
        weights: dtype of products and activations. None: the tower's own (float32 or float64), exact;
            torch.float16 and torch.bfloat16 round both. A float64 tower stays float64.

    Raises:
        RuntimeError: from the first product, where a matrix does not fit its layer.

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
        self.compute = tower.compute
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
