"""Small towers of random weights, and templates of every kind in them."""

from __future__ import annotations

from dataclasses import replace

import torch

from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower
from tests.support.towers import F64


def random_tower(
    dtype: torch.dtype = F64,
    *,
    width: int = 40,
    hidden: int = 70,
    heads: int = 2,
    layers: int = 2,
    activation: str = "gelu",
    causal: bool = True,
    pooling: bool = False,
    pre: bool = False,
) -> Tower:
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=F64) * scale).to(dtype)

    def norm() -> Norm:
        return Norm(1 + draw(width, scale=0.2), draw(width, scale=0.2), 1e-5)

    def linear(rows: int, cols: int) -> Linear:
        return Linear(draw(rows, cols, scale=rows**-0.5), draw(cols, scale=0.3))

    blocks = tuple(
        Block(norm(), linear(width, 3 * width), linear(width, width), norm(), linear(width, hidden),
              linear(hidden, width), draw(width) if pooling and i == layers - 1 else None)
        for i in range(layers)
    )  # fmt: skip
    return Tower(
        "random", heads, activation, causal, blocks, norm() if pre else None,
        None if pooling else norm(), None if pooling else linear(width, 24),
    )  # fmt: skip


def in_dtype(tower: Tower, dtype: torch.dtype) -> Tower:
    def norm(n: Norm | None) -> Norm | None:
        return None if n is None else Norm(n.weight.to(dtype), n.bias.to(dtype), n.eps)

    def linear(m: Linear | None) -> Linear | None:
        return m and Linear(m.weight.to(dtype), None if m.bias is None else m.bias.to(dtype))

    blocks = tuple(
        Block(norm(b.norm1), linear(b.qkv), linear(b.out), norm(b.norm2), linear(b.fc), linear(b.proj),
              None if b.query is None else b.query.to(dtype))
        for b in tower.blocks
    )  # fmt: skip
    return replace(
        tower, blocks=blocks, norm_pre=norm(tower.norm_pre), norm_final=norm(tower.norm_final),
        projection=linear(tower.projection),
    )  # fmt: skip


def some_rows(tower: Tower, source: tuple[int, ...], pool: int | None) -> LearnedRows:
    generator = torch.Generator().manual_seed(13)
    base = torch.randn(len(source), tower.width, generator=generator, dtype=F64)
    return LearnedRows(base.to(tower.dtype), source, pool)


SHAPES = {
    "prefix and suffix": ((-1, -1, 0, -1, -1, -1), 4),
    "first position": ((0, -1, -1), 2),
    "behind the pooled row": ((-1, 0, -1, -1, -1), 2),
    "apart": ((-1, 0, -1, 1, -1), 4),
    "one vector twice": ((-1, 0, 0, 1, -1), 4),
    "pooled is learned": ((-1, -1, 0), 2),
}
