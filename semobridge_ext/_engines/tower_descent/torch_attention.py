"""Attention of an inversion step in plain PyTorch: batched products over copies of the heads.

    p = softmax(q·Kᵀ/√d)    o = p·V        over  [prefix | visible own slots]

The same numbers as csrc/tower_descent/cuda_attention.h, for any number of slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Scratch:
    """Tensors that no later layer needs, shared by all of them under a name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._outgrown: list[Tensor] = []  # a graph may still name their addresses

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < size:
            if kept is not None:
                self._outgrown.append(kept)
            kept = self._kept[name, dtype] = torch.zeros(size, dtype=dtype, device=self.device)
        return kept[:size].view(shape)


@dataclass(frozen=True)
class Heads:
    """One layer's attention: slot-major rows, a shared prefix, and what each query sees."""

    samples: int
    heads: int
    prefix: Tensor | None  # [2, P, T] keys, then values
    visible: tuple[tuple[int, ...], ...]  # per query, the slots that it sees
    constant_query: bool
    qkv: Tensor  # [n·S, 3T]

    @property
    def slots(self) -> int:
        return self.qkv.shape[0] // self.samples

    @property
    def model(self) -> int:
        return self.qkv.shape[1] // 3

    @property
    def prefix_rows(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]


class TorchAttention:
    """One layer's copies of queries, keys and values, and what the way back needs of them."""

    def __init__(self, heads: Heads, stored: torch.dtype, scratch: Scratch) -> None:
        self.heads, self.stored, self.scratch = heads, stored, scratch
        samples, slots, prefix = heads.samples, heads.slots, heads.prefix_rows
        self.queries, self.width = len(heads.visible), heads.model // heads.heads
        self.batch, self.keys = samples * heads.heads, prefix + slots
        self.grid = (samples, heads.heads)

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=stored, device=scratch.device)

        self.q = new(*self.grid, self.queries, self.width)
        self.kv = new(2, *self.grid, self.keys, self.width)
        self.p = new(self.batch, self.queries, self.keys)
        if heads.prefix is not None:
            rows = heads.prefix.view(2, 1, prefix, heads.heads, self.width)
            self.kv[:, :, :, :prefix] = rows.transpose(2, 3)
        self.mask = None
        if any(len(own) < slots for own in heads.visible):
            seen = [[j < prefix or j - prefix in own for j in range(self.keys)] for own in heads.visible]
            hidden = torch.tensor(seen).logical_not()
            mask = torch.zeros(hidden.shape, dtype=stored).masked_fill_(hidden, float("-inf"))
            self.mask = mask.to(scratch.device)

    def _query_rows(self, qkv: Tensor) -> Tensor:  # [S, heads, queries, d] of [n·S, 3T]
        h = self.heads
        rows = qkv[: self.queries * h.samples, : h.model]
        return rows.view(self.queries, *self.grid, self.width).permute(1, 2, 0, 3)

    def _key_rows(self, qkv: Tensor) -> Tensor:  # [2, S, heads, n, d] of [n·S, 3T]
        h = self.heads
        return qkv[:, h.model :].view(h.slots, h.samples, 2, h.heads, self.width).permute(2, 1, 3, 0, 4)

    def _flat(self, x: Tensor) -> Tensor:  # [S·heads, queries, d] of [queries·S, T], a view
        return x.view(self.queries, self.batch, self.width).transpose(0, 1)

    def forward(self, o: Tensor) -> None:
        prefix = self.heads.prefix_rows
        torch.mul(self._query_rows(self.heads.qkv), self.width**-0.5, out=self.q)
        self.kv[:, :, :, prefix:].copy_(self._key_rows(self.heads.qkv))
        k, v = self.kv.view(2, self.batch, self.keys, self.width)
        scores = self.scratch.take("scores", tuple(self.p.shape), self.stored)
        torch.bmm(self.q.view(self.batch, self.queries, self.width), k.transpose(1, 2), out=scores)
        if self.mask is not None:
            scores.add_(self.mask)
        torch.softmax(scores, -1, out=self.p)
        torch.bmm(self.p, v, out=self._flat(o))

    def backward(self, grad_o: Tensor, grad_qkv: Tensor) -> None:
        h, prefix = self.heads, self.heads.prefix_rows
        k, v = self.kv.view(2, self.batch, self.keys, self.width)
        grad = self._flat(grad_o)
        dp = self.scratch.take("scores", tuple(self.p.shape), self.stored)
        ds = self.scratch.take("ds", tuple(self.p.shape), self.stored)
        torch.bmm(grad, v.transpose(1, 2), out=dp)
        torch.ops.aten._softmax_backward_data.out(dp, self.p, -1, self.stored, grad_input=ds)
        own = self.scratch.take("key gradients", (2, self.batch, h.slots, self.width), self.stored)
        q = self.q.view(self.batch, self.queries, self.width)  # holds 1/√d
        torch.bmm(ds[:, :, prefix:].transpose(1, 2), q, out=own[0])
        torch.bmm(self.p[:, :, prefix:].transpose(1, 2), grad, out=own[1])
        self._key_rows(grad_qkv).copy_(own.view(2, *self.grid, h.slots, self.width))
        if h.constant_query:
            return
        grad_q = self.scratch.take("query gradients", tuple(q.shape), self.stored)
        torch.bmm(ds, k, out=grad_q)
        torch.mul(grad_q.view(self.q.shape), self.width**-0.5, out=self._query_rows(grad_qkv))
        if self.queries < h.slots:
            grad_qkv[self.queries * h.samples :, : h.model].zero_()
