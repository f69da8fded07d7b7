"""tree_attention in plain PyTorch, on any device: keys and values gathered, a part of the rows at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semobridge_ext._ops.tree_attention.spec import Paths

_GATHERED = {"cpu": 1 << 20, "cuda": 1 << 27}  # keys' elements at once: a CPU's cache, a GPU's share


def tree_attention(
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
) -> Tensor:  # [N, T]
    (count, width), length = queries.shape, paths.nodes.shape[1]
    out = queries.new_empty(count, width)
    step = max(1, _GATHERED.get(queries.device.type, 1 << 24) // (length * width))
    places = torch.arange(length, device=queries.device)
    for start in range(0, count, step):
        part = slice(start, start + step)
        seen = paths.counts[part].long().unsqueeze(1)  # [n, 1]
        # Past its end a list repeats its own last row, masked: 0 · NaN of a foreign row would be NaN.
        nodes = paths.nodes[paths.path_of[part].long()].gather(1, torch.minimum(places, seen - 1)).long()
        q = queries[part].unflatten(1, (heads, 1, -1))
        k, v = (rows[nodes].unflatten(2, (heads, -1)).transpose(1, 2) for rows in (keys, values))
        mask = (places < seen)[:, None, None]
        out[part] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)
    return out
