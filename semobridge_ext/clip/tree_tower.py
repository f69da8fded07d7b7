"""A causal text tower over the nodes of a prefix tree, layer by layer.

    x ← x + attention(LN1(x)·Wqkv + b)·Wo + b        x ← x + act(LN2(x)·W1 + b)·W2 + b

Every node sees its ancestors and itself. Two layers are shorter: before the first attention a row depends on
(token, position) alone, whatever stands before it; and of the last layer only the end nodes are needed, and
keys and values of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.forward import activated, normed
from semobridge_ext._engines.tower_descent.spec import Block, Linear, Tower
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.tree_attention.op import runs_native, tree_attention
from semobridge_ext.clip.adapter import TextInput
from semobridge_ext.clip.prefix_tree import Group

# Rows of the hidden layer at once: on a CPU they stay in the cache between its two products.
_CHUNK = 1024
# From here on the core's products repay the packing of the weights.
_PACKED_ROWS = 256

Product = Callable[[Tensor], Tensor]  # x·W + b


class _Layer(NamedTuple):
    block: Block
    inputs: tuple[
        Product, ...
    ]  # to queries, keys and values at once; of the last block queries, then the rest
    out: Product
    fc: Product
    proj: Product


def _plain(layer: Linear, x: Tensor) -> Tensor:
    return x @ layer.weight if layer.bias is None else torch.addmm(layer.bias, x, layer.weight)


def _product(layer: Linear, packed: bool) -> Product:
    if not packed:
        return partial(_plain, layer)
    projection = Projection(layer.weight, compute=layer.weight.dtype, normalize=False)
    return partial(projection, bias=layer.bias)


def _columns(layer: Linear, begin: int, end: int | None) -> Linear:
    return Linear(layer.weight[:, begin:end], None if layer.bias is None else layer.bias[begin:end])


class TreeTower:
    """A tower with its products ready for ``rows`` nodes in all."""

    def __init__(self, tower: Tower, own: TextInput, rows: int) -> None:
        self.tower, self.own = tower, own
        packed = rows >= _PACKED_ROWS and runs_native(tower.device, tower.dtype)
        self._layers = []
        for block in tower.blocks:
            inputs: tuple[Linear, ...] = (block.qkv,)
            if block is tower.blocks[-1]:
                inputs = _columns(block.qkv, 0, tower.width), _columns(block.qkv, tower.width, None)
            ready = [_product(layer, packed) for layer in (*inputs, block.out, block.fc, block.proj)]
            self._layers.append(_Layer(block, tuple(ready[:-3]), *ready[-3:]))

    def _mlp(self, x: Tensor, layer: _Layer) -> None:  # in place
        for part in x.split(_CHUNK if x.device.type == "cpu" else max(1, len(x))):
            hidden = activated(layer.fc(normed(part, layer.block.norm2)), self.tower.activation)
            part += layer.proj(hidden)

    def end_rows(self, group: Group) -> Tensor:  # [P, T], normed, before the projection
        tower, own = self.tower, self.own
        embedding, places = own.embedding.detach(), own.positions.detach()
        pairs, which = torch.unique(group.tokens * len(places) + group.positions, return_inverse=True)
        tokens, positions = pairs // len(places), pairs % len(places)
        x = embedding[tokens].to(tower.dtype) + places[positions].to(tower.dtype)
        x = normed(x, tower.norm_pre)
        for i, layer in enumerate(self._layers):
            last = layer is self._layers[-1]
            seen, y = group.end_paths if last else group.paths, normed(x, layer.block.norm1)
            # The rows of this layer: end nodes or all nodes, which in the first are rows of pairs.
            rows = group.ends if last else None
            if i == 0:
                seen = seen._replace(nodes=which[seen.nodes.long()].int())
                rows = which if rows is None else which[rows]
            if last:
                q, (k, v) = layer.inputs[0](y[rows]), layer.inputs[1](y).chunk(2, dim=1)
            else:
                q, k, v = layer.inputs[0](y).chunk(3, dim=1)
                q = q if rows is None else q[rows]
            x = x if rows is None else x[rows]
            x += layer.out(tree_attention(q, k, v, seen, tower.heads))
            self._mlp(x, layer)
        return normed(x, tower.norm_final)

    def projected(self, x: Tensor) -> Tensor:  # [P, T] -> [P, D]
        return x if self.tower.projection is None else _plain(self.tower.projection, x)
