"""tree_attention: softmax attention of rows over listed keys, a list for each row.

    o[n, h] = Σ_j p_j · v[a_j, h]     p = softmax_j(q[n, h] · k[a_j, h] / √d)     j < counts[n]

with a = nodes[path_of[n]] and d the width of a head. The nodes of a prefix tree see their ancestors so, and
nothing is gathered. The gradient is a call of its own, for towers whose backward pass is written out: with
g = ∂L/∂o and dp_j = g[n, h]·v[a_j, h],

    ds_j = p_j·(dp_j − Σ_i p_i·dp_i)/√d
    grad_q[n] = Σ_j ds_j·k[a_j]     grad_k[a_j] += ds_j·q[n]     grad_v[a_j] += p_j·g[n]
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.tree_attention import cpu, eager
from semobridge_ext._ops.tree_attention.spec import Paths
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.backend import requested

_NATIVE = (torch.float32, torch.float64)


def runs_native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the core takes such rows. Else, on a GPU or under ``backend("eager")``, plain PyTorch does."""
    return _backend._C is not None and device.type == "cpu" and dtype in _NATIVE and requested() != "eager"


def tree_attention(
    queries: Tensor,  # [N, T], unit column stride, as all three
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,  # divides T
) -> Tensor:  # [N, T] in their dtype
    """The caller has checked everything."""
    run = cpu if runs_native(queries.device, queries.dtype) else eager
    return run.tree_attention(queries, keys, values, paths, heads)


def tree_attention_bwd(
    grad_out: Tensor,  # [N, T], unit column stride, as all
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,
    heads: int,
    out: tuple[Tensor, Tensor, Tensor],  # [N, T], [M, T], [M, T]
) -> None:
    """Writes the gradients of queries, keys and values into ``out``, which may be slices of wider rows."""
    run = cpu if runs_native(queries.device, queries.dtype) and len(queries) else eager
    run.tree_attention_bwd(grad_out, queries, keys, values, paths, heads, out)
