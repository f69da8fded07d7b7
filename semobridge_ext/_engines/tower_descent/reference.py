"""Oracle of tower_descent: the tower in plain PyTorch, every position, autograd's gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower


def _norm(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _linear(x: Tensor, linear: Linear) -> Tensor:
    y = x @ linear.weight
    return y if linear.bias is None else y + linear.bias


def _activate(x: Tensor, kind: str) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def block_attention(
    tower: Tower,
    block: Block,
    x: Tensor,  # [S, L, T]
    unseen: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:  # attention output [S, L or 1, T], keys and values [S, L, T]
    s, length, width = x.shape
    q, k, v = _linear(_norm(x, block.norm1), block.qkv).chunk(3, dim=-1)
    if block.query is not None:
        q = block.query.expand(s, 1, width)
    split = [t.reshape(s, -1, tower.heads, width // tower.heads).transpose(1, 2) for t in (q, k, v)]
    scores = split[0] @ split[1].transpose(-1, -2) * (width // tower.heads) ** -0.5
    if tower.causal:
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    for position in unseen:
        scores[..., position] = float("-inf")
    o = (scores.softmax(-1) @ split[2]).transpose(1, 2).reshape(s, -1, width)
    return _linear(o, block.out), k, v


def run_block(
    tower: Tower, block: Block, x: Tensor, unseen: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """One block: its output [S, L, T], and the keys and values [S, L, T] that it used."""
    o, k, v = block_attention(tower, block, x, unseen)
    x = o if block.query is not None else x + o
    hidden = _activate(_linear(_norm(x, block.norm2), block.fc), tower.activation)
    return x + _linear(hidden, block.proj), k, v


def tower_features(
    tower: Tower,
    rows: LearnedRows,
    tokens: Tensor,  # [S, R, T]
) -> Tensor:  # [S, D], not normalised
    """The features of learned vectors: all L positions through all blocks.

    Args:
        tower: weights of a frozen tower, in the dtype of the computation.
        rows: which position takes which learned vector, and what is added.
        tokens: [S, R, T] floating point, the learned vectors.

    Returns:
        [S, D] of the same dtype, not normalised.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: in the dtype of the tensors. Differentiable in ``tokens``.

    Memory: O(S·L·T) for each block, more under autograd.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> from semobridge_ext import clip
        >>> tower, rows = clip.text_tower(sb.load_picto_clip()[0])
        >>> f = sb.reference.tower_features(tower, rows, torch.zeros(3, 1, tower.width))
        >>> f.shape == (3, tower.features)
        True

    docs/methods.md §3.
    """
    base = rows.base if rows.base.dim() == 3 else rows.base.unsqueeze(1)  # [L, S or 1, T]
    x = base.transpose(0, 1).expand(tokens.shape[0], -1, -1)
    source = torch.tensor(rows.source, device=x.device)
    learned = tokens[:, source.clamp(min=0)] * (source >= 0).to(x.dtype).reshape(1, -1, 1)
    x = _norm(x + learned, tower.norm_pre)
    for block in tower.blocks:
        x = run_block(tower, block, x, getattr(rows, "unseen", ()))[0]
    x = _norm(x[:, 0 if rows.pool is None else rows.pool], tower.norm_final)
    return x if tower.projection is None else _linear(x, tower.projection)
