"""The tower in plain PyTorch over whole sequences: the frozen prefix of every engine, and autograd's way.

    x ← x + attention(LN1(x)·Wqkv + b)·Wo + b        x ← x + act(LN2(x)·W1 + b)·W2 + b

Letters as in spec.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower, unseen_of

_QUICK = 1.702


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _product(x: Tensor, linear: Linear) -> Tensor:
    y = x @ linear.weight
    return y if linear.bias is None else y + linear.bias


def activated(x: Tensor, activation: str) -> Tensor:
    if activation == "quick_gelu":
        return x * torch.sigmoid(_QUICK * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _attended(
    tower: Tower,
    q: Tensor,  # [S, L or 1, T]
    k: Tensor,  # [S, L, T]
    v: Tensor,  # [S, L, T]
    unseen: tuple[int, ...],
) -> Tensor:  # [S, L or 1, T]
    samples, length, width = k.shape
    head = width // tower.heads
    q, k, v = (t.reshape(samples, -1, tower.heads, head).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * head**-0.5
    if tower.causal:
        later = torch.ones(length, length, dtype=torch.bool, device=k.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if unseen:
        hidden = torch.zeros(length, dtype=torch.bool, device=k.device)
        hidden[list(unseen)] = True
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(samples, -1, width)


def run_block(
    tower: Tower,
    block: Block,
    x: Tensor,  # [S, L, T]
    unseen: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:  # output [S, L or 1, T], keys and values [S, L, T]
    """One block, and the keys and values that it used, but for positions whose keys are unseen."""
    q, k, v = _product(normed(x, block.norm1), block.qkv).chunk(3, dim=-1)
    if block.query is not None:
        q = block.query.expand(len(x), 1, -1)
    attended = _product(_attended(tower, q, k, v, unseen), block.out)
    x = attended if block.query is not None else x + attended
    hidden = activated(_product(normed(x, block.norm2), block.fc), tower.activation)
    return x + _product(hidden, block.proj), k, v


def run_tower(
    tower: Tower,
    rows: LearnedRows,
    tokens: Tensor,  # [S, R, T]
) -> Tensor:  # [S, D], not normalised
    """The features of learned vectors, all L positions through all blocks; differentiable in the tokens."""
    base = rows.base if rows.base.dim() == 3 else rows.base.unsqueeze(1)  # [L, S or 1, T]
    x = base.transpose(0, 1).expand(len(tokens), -1, -1)
    source = torch.tensor(rows.source, device=x.device)
    learned = tokens[:, source.clamp(min=0)] * (source >= 0).to(x.dtype).reshape(1, -1, 1)
    x = normed(x + learned, tower.norm_pre)
    for block in tower.blocks:
        x = run_block(tower, block, x, unseen_of(rows))[0]
    x = normed(x[:, 0 if rows.pool is None else rows.pool], tower.norm_final)
    return x if tower.projection is None else _product(x, tower.projection)
