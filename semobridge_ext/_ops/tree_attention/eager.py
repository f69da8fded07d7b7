"""tree_attention in plain PyTorch, on any device: keys and values gathered, a part of the rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from semobridge_ext._ops.tree_attention.spec import Paths

_GATHERED = {"cpu": 1 << 20, "cuda": 1 << 27}  # keys' elements at once: a CPU's cache, a GPU's share


def _parts(queries: Tensor, paths: Paths) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows n at a time, their lists [n, L], and which places [n, L] are in them."""
    (count, width), length = queries.shape, paths.nodes.shape[1]
    step = max(1, _GATHERED.get(queries.device.type, 1 << 24) // (length * width))
    places = torch.arange(length, device=queries.device)
    for start in range(0, count, step):
        part = slice(start, start + step)
        # Past its end a list repeats its own last row, masked: 0 · NaN of a foreign row would be NaN.
        ends = paths.counts[part].long().unsqueeze(1)  # [n, 1]
        nodes = paths.nodes[paths.path_of[part].long()].gather(1, torch.minimum(places, ends - 1)).long()
        yield part, nodes, places < ends


def tree_attention(
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
) -> Tensor:  # [N, T]
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for part, nodes, seen in _parts(queries, paths):
        q = queries[part].unflatten(1, (heads, 1, -1))
        k, v = (rows[nodes].unflatten(2, (heads, -1)).transpose(1, 2) for rows in (keys, values))
        mask = seen[:, None, None]
        out[part] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)
    return out


def tree_attention_bwd(
    grad_out: Tensor,  # [N, T]
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
    out: tuple[Tensor, Tensor, Tensor],  # [N, T], [M, T], [M, T], written
) -> None:
    """On a GPU the sums of a key run in any order."""
    grad_queries, grad_keys, grad_values = out
    for grad in (grad_keys, grad_values):
        grad.zero_()
    root = (queries.shape[1] // heads) ** -0.5
    for part, nodes, seen in _parts(queries, paths):
        q, g = (rows[part].unflatten(1, (heads, 1, -1)) for rows in (queries, grad_out))
        k, v = (rows[nodes].unflatten(2, (heads, -1)).transpose(1, 2) for rows in (keys, values))
        scores = (q @ k.transpose(2, 3) * root).masked_fill(~seen[:, None, None], -torch.inf)
        p = torch.softmax(scores, dim=-1)  # [n, heads, 1, L]
        dp = g @ v.transpose(2, 3)
        ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True)) * root
        grad_queries[part] = (ds @ k).flatten(1)
        for grad, share, rows in ((grad_keys, ds, q), (grad_values, p, g)):
            # [n, heads, L, 1] · [n, heads, 1, d] -> [n · L, T]; what is masked adds 0 to a row of its list.
            terms = (share.transpose(2, 3) * rows).transpose(1, 2).flatten(2)
            grad.index_add_(0, nodes.flatten(), terms.flatten(0, 1))
