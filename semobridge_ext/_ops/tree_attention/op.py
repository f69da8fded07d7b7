"""tree_attention: softmax attention of rows over listed keys, a list for each row.

    o[n, h] = Σ_j p_j · v[a_j, h]     p = softmax_j(q[n, h] · k[a_j, h] / √d)     j < counts[n]

with a = nodes[path_of[n]] and d the width of a head. The nodes of a prefix tree see their ancestors so, and
nothing is gathered. No gradient: the text towers that run on it are frozen.
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
