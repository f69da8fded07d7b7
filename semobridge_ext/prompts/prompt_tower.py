"""Text features of prompts with learned rows, and their gradient, through a frozen causal tower.

    x ← x + attention(LN1(x)·Wqkv + b)·Wo + b        x ← x + act(LN2(x)·W1 + b)·W2 + b

Rows are the nodes of a prefix tree of all prompts (clip/prefix_tree.py), of which some are learned. A shared
context and what stands before it are the trunk of the tree: they run once in every layer, whatever the number
of classes, and their keys' and values' gradients are sums over all that see them. Both passes are written
out. Three parts are shorter than a layer: of the last one only the end nodes are needed, and keys and values
of the others; behind the first one only the learned rows need a gradient; and no weight needs any.

Letters: N nodes · P prompts · V learned vectors · T tower width · M hidden width · D feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Block, Linear, Norm, Tower
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.tree_attention.op import runs_native, tree_attention, tree_attention_bwd
from semobridge_ext.clip.prefix_tree import Group

# Rows of the hidden layer at once: on a CPU they stay in the cache between its two products.
_CHUNK = 1024


class Product:
    """``x·W + b`` and, for the way back, ``g·Wᵀ``; packed once where the core runs."""

    def __init__(self, layer: Linear, packed: bool) -> None:
        self.weight, self.bias = layer
        self._forward = self._backward = None
        if packed:
            compute = self.weight.dtype
            self._forward = Projection(self.weight, compute=compute, normalize=False)
            self._backward = Projection(self.weight.T, compute=compute, normalize=False)

    def __call__(self, x: Tensor) -> Tensor:  # [N, K] -> [N, M]
        if self._forward is not None:
            return self._forward(x, bias=self.bias)
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def backward(self, grad: Tensor) -> Tensor:  # [N, M] -> [N, K]
        return grad @ self.weight.T if self._backward is None else self._backward(grad)


class Normed(NamedTuple):
    """Rows behind a norm, and what its gradient needs."""

    rows: Tensor  # [N, T]
    x: Tensor  # [N, T], before the norm
    mean: Tensor
    rstd: Tensor
    norm: Norm

    def backward(self, grad: Tensor, of: Tensor | None = None) -> Tensor:
        """Of the rows ``of`` alone, whose gradients are given."""
        x, mean, rstd = (t if of is None else t[of] for t in (self.x, self.mean, self.rstd))
        weight, bias, _ = self.norm
        return torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, mean, rstd, weight, bias, [True, False, False]
        )[0]


def normed(x: Tensor, norm: Norm) -> Normed:
    rows, mean, rstd = torch.native_layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return Normed(rows, x, mean, rstd, norm)


def activated(h: Tensor, activation: str) -> Tensor:
    if activation == "quick_gelu":
        return torch.sigmoid(1.702 * h).mul_(h)
    return F.gelu(h, approximate="tanh" if activation == "gelu_tanh" else "none")


def activation_backward(grad: Tensor, h: Tensor, activation: str) -> Tensor:
    if activation == "quick_gelu":  # σ + 1.702·h·σ·(1 − σ)
        s = torch.sigmoid(1.702 * h)
        return (1 - s).mul_(h).mul_(1.702).add_(1).mul_(s).mul_(grad)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(grad, h, approximate=approximate)


class Mlp(NamedTuple):
    normed: Normed
    hidden: Tensor  # [N, M], before the activation


class Kept(NamedTuple):
    """What a layer leaves for the way back: about 9 T numbers a row."""

    first: Normed
    queries: Tensor  # [N, T], of the last layer [P, T]
    keys: Tensor  # [N, T]
    values: Tensor  # [N, T]
    mlp: Mlp


class Part(NamedTuple):
    """Prompts that are computed at once, and which of their nodes are learned."""

    group: Group
    learned: Tensor  # [n] int64 nodes
    source: Tensor  # [n] int64, the vector of each


class Pass(NamedTuple):
    part: Part
    before: Normed | None  # LN before the first layer
    layers: list[Kept]
    final: Normed | None


class _Layer:
    def __init__(self, block: Block, activation: str, heads: int, last: bool, packed: bool) -> None:
        self.norm1, self.norm2, self.activation, self.heads = block.norm1, block.norm2, activation, heads
        self.last, width = last, block.out.weight.shape[0]
        weight, bias = block.qkv
        # The last layer's queries are those of the end nodes alone.
        cuts = (slice(0, width), slice(width, None)) if last else (slice(None),)
        parts = [Linear(weight[:, cut], None if bias is None else bias[cut]) for cut in cuts]
        self.inputs = [Product(part, packed) for part in parts]
        self.out, self.fc, self.proj = (Product(p, packed) for p in (block.out, block.fc, block.proj))

    def forward(self, x: Tensor, group: Group) -> tuple[Tensor, Kept]:  # [N, T] -> [N, T] or [P, T]
        first = normed(x, self.norm1)
        paths = group.paths
        if self.last:
            paths, ends = group.end_paths, group.ends
            q, (k, v) = self.inputs[0](first.rows[ends]), self.inputs[1](first.rows).chunk(2, dim=1)
            x = x[ends]
        else:
            q, k, v = self.inputs[0](first.rows).chunk(3, dim=1)
        middle = self.out(tree_attention(q, k, v, paths, self.heads)).add_(x)
        second = normed(middle, self.norm2)
        # In parts: the hidden rows are read again while they are in the cache.
        hidden, out = [], []
        for part, rest in zip(second.rows.split(_CHUNK), middle.split(_CHUNK), strict=True):
            hidden.append(self.fc(part))
            out.append(self.proj(activated(hidden[-1], self.activation)).add_(rest))
        whole = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        kept = Kept(first, q, k, v, Mlp(second, whole))
        return out[0] if len(out) == 1 else torch.cat(out), kept

    def _mlp_backward(self, grad: Tensor, mlp: Mlp) -> Tensor:
        parts = [
            self.fc.backward(activation_backward(self.proj.backward(g), h, self.activation))
            for g, h in zip(grad.split(_CHUNK), mlp.hidden.split(_CHUNK), strict=True)
        ]
        return mlp.normed.backward(parts[0] if len(parts) == 1 else torch.cat(parts)).add_(grad)

    def backward(
        self,
        grad: Tensor,  # as forward gave
        kept: Kept,
        group: Group,
        of: Tensor | None,  # the rows whose gradient is needed; None: all
    ) -> Tensor:  # [N, T], or of those rows
        grad = self._mlp_backward(grad, kept.mlp)
        grad_out = self.out.backward(grad)
        q, k, v = kept[1:4]
        if self.last:
            grad_q, grad_kv = torch.empty_like(q), k.new_empty(len(k), 2 * k.shape[1])
            grad_k, grad_v = grad_kv.chunk(2, dim=1)
            written = (grad_q, grad_k, grad_v)
            tree_attention_bwd(grad_out, q, k, v, group.end_paths, self.heads, written)
            inner = self.inputs[1].backward(grad_kv)
            # Prompts are distinct, and so are the nodes that they end in.
            inner[group.ends] += self.inputs[0].backward(grad_q)
            residual = torch.zeros_like(inner)
            residual[group.ends] = grad
            if of is not None:
                inner, residual = inner[of], residual[of]
            return kept.first.backward(inner, of).add_(residual)
        grad_qkv = q.new_empty(len(q), 3 * q.shape[1])
        grad_q, grad_k, grad_v = grad_qkv.chunk(3, dim=1)
        tree_attention_bwd(grad_out, q, k, v, group.paths, self.heads, (grad_q, grad_k, grad_v))
        if of is not None:
            grad_qkv, grad = grad_qkv[of], grad[of]
        return kept.first.backward(self.inputs[0].backward(grad_qkv), of).add_(grad)


class PromptTower:
    """A frozen tower with the products of both ways ready.

    Args:
        tower: a causal one. embedding: [words, T]. positions: [L, T].
        packed: the core's products, which repay their second copy of the weights from some hundred rows on.
    """

    def __init__(self, tower: Tower, embedding: Tensor, positions: Tensor, packed: bool) -> None:
        self.tower = tower
        self._embedding, self._positions = embedding.detach(), positions.detach().to(tower.dtype)
        packed = packed and runs_native(tower.device, tower.dtype)
        last = tower.blocks[-1]
        self._layers = [
            _Layer(block, tower.activation, tower.heads, block is last, packed) for block in tower.blocks
        ]
        self._projection = None if tower.projection is None else Product(tower.projection, packed)

    @property
    def bytes_per_row(self) -> int:
        """What a node leaves for the way back."""
        block = self.tower.blocks[0]
        numbers = 5 * self.tower.width + block.fc.weight.shape[1]
        return len(self._layers) * numbers * self.tower.dtype.itemsize

    @property
    def words(self) -> int:
        return len(self._embedding)

    def part(self, group: Group) -> Part:
        """Token ``words + v`` stands for vector v."""
        learned = (group.tokens >= self.words).nonzero().flatten()
        source = group.tokens[learned] - self.words
        return Part(group._replace(tokens=group.tokens.clamp(max=self.words - 1)), learned, source)

    def forward(self, part: Part, vectors: Tensor) -> tuple[Tensor, Pass]:  # [V, T] -> [P, D]
        """Features as the projection leaves them."""
        group = part.group
        x = self._embedding[group.tokens].to(self.tower.dtype)
        x[part.learned] = vectors[part.source]
        x += self._positions[group.positions]
        before = final = None
        if self.tower.norm_pre is not None:
            before = normed(x, self.tower.norm_pre)
            x = before.rows
        layers = []
        for layer in self._layers:
            x, kept = layer.forward(x, group)
            layers.append(kept)
        if self.tower.norm_final is not None:
            final = normed(x, self.tower.norm_final)
            x = final.rows
        return x if self._projection is None else self._projection(x), Pass(part, before, layers, final)

    def backward(self, grad: Tensor, made: Pass, vectors: int) -> Tensor:  # [P, D] -> [V, T]
        """The gradient of ``forward`` in the vectors."""
        part = made.part
        if self._projection is not None:
            grad = self._projection.backward(grad)
        if made.final is not None:
            grad = made.final.backward(grad)
        for i in reversed(range(len(self._layers))):
            of = part.learned if i == 0 else None
            grad = self._layers[i].backward(grad, made.layers[i], part.group, of)
        if made.before is not None:
            grad = made.before.backward(grad, part.learned)
        return grad.new_zeros(vectors, grad.shape[1]).index_add_(0, part.source, grad)
