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
