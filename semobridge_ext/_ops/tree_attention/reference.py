"""The oracle of tree_attention: one row and one head after another."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.tree_attention.spec import Paths


def tree_attention(
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
) -> Tensor:  # [N, T]
    out, width = torch.empty_like(queries), queries.shape[1] // heads
    for n in range(len(queries)):
        seen = paths.nodes[int(paths.path_of[n]), : int(paths.counts[n])].long()
        for at in range(0, queries.shape[1], width):
            head = slice(at, at + width)
            scores = keys[seen, head] @ queries[n, head] / width**0.5
            out[n, head] = torch.softmax(scores, dim=0) @ values[seen, head]
    return out


def tree_attention_bwd(
    grad_out: Tensor,  # [N, T]
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, T], [M, T], [M, T]
    """By autograd, of the same sums."""
    leaves = [t.detach().clone().requires_grad_() for t in (queries, keys, values)]
    total, width = leaves[0].new_zeros(()), queries.shape[1] // heads
    for n in range(len(queries)):
        seen = paths.nodes[int(paths.path_of[n]), : int(paths.counts[n])].long()
        for at in range(0, queries.shape[1], width):
            head = slice(at, at + width)
            p = torch.softmax(leaves[1][seen, head] @ leaves[0][n, head] / width**0.5, dim=0)
            total = total + (p @ leaves[2][seen, head]) @ grad_out[n, head]
    q, k, v = torch.autograd.grad(total, leaves)
    return q, k, v
