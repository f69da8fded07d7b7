"""The launches as operators, and how torch.compile sees the kernels behind the public operators.

Each is a ``torch.library.triton_op``: a call runs the kernels, tracing records them. The public operators
(`semobridge::project_normalize` …) keep their schema, gradient and fake on every backend; `see_through` makes
them dissolve into these while torch.compile traces with ``backend("triton")``, which is then fixed in the
compiled code.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from semobridge_ext._ops.project_normalize.triton import launch_project_normalize_fwd, split_matrix
from semobridge_ext._ops.support_logits.triton import launch_support_logits_fwd
from semobridge_ext._ops.support_logits.triton_backward import launch_support_logits_bwd
from semobridge_ext._ops.topk.triton import launch_topk


@triton_op("semobridge::project_normalize_triton", mutates_args=())
def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M] float32
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    return launch_project_normalize_fwd(x, split_matrix(matrix, x.dtype)[0], bias, scale, normalize)


@triton_op("semobridge::support_logits_triton", mutates_args=())
def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    order: Tensor | None,  # [S] int64
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
) -> Tensor:  # [N, C] float32
    return launch_support_logits_fwd(queries, keys, order, offsets, beta, weights)


@triton_op("semobridge::support_logits_bwd_triton", mutates_args=())
def support_logits_bwd(
    grad: Tensor,  # [N, C] float32
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S] float32; an unneeded one is empty
    return launch_support_logits_bwd(
        grad, queries, keys, labels, beta, weights, need_queries, need_keys, need_weights
    )


@triton_op("semobridge::topk_triton", mutates_args=())
def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    return launch_topk(queries, gallery, k, exclude)
