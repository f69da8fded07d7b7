"""tree_attention by the native core."""

from __future__ import annotations

from torch import Tensor

from semobridge_ext._ops.tree_attention.spec import Paths
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, view


def tree_attention(
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,  # contiguous int32
    heads: int,
) -> Tensor:  # [N, T]
    out = queries.new_empty(queries.shape)
    _C.tree_attention(
        view(queries), view(keys), view(values), heads, address(paths.nodes), *paths.nodes.shape,
        address(paths.path_of), address(paths.counts), view(out), thread_count(),
    )  # fmt: skip
    return out


def tree_attention_bwd(
    grad_out: Tensor,  # [N, T]
    queries: Tensor,  # [N, T]
    keys: Tensor,  # [M, T]
    values: Tensor,  # [M, T]
    paths: Paths,  # contiguous int32
    heads: int,
    out: tuple[Tensor, Tensor, Tensor],  # [N, T], [M, T], [M, T], written
) -> None:
    _C.tree_attention_bwd(
        view(queries), view(keys), view(values), heads, address(paths.nodes), *paths.nodes.shape,
        address(paths.path_of), address(paths.counts), view(grad_out), *(view(grad) for grad in out),
        thread_count(),
    )  # fmt: skip
