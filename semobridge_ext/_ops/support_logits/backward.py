"""The gradients of support_logits (formulas: _ops/support_logits/op.py), as an operator of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.support_logits import eager
from semobridge_ext.runtime.choice import see_through
from semobridge_ext.runtime.rows import compute_dtype


@torch.library.custom_op("semobridge::support_logits_bwd", mutates_args=())
def support_logits_bwd(
    grad: Tensor,  # [N, C]
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S]
    weights: Tensor | None,  # [S]
    beta: float,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S]; an unneeded one is empty
    run = _triton if triton else eager.support_logits_bwd
    return run(grad, queries, keys, labels, weights, beta, need_queries, need_keys, need_weights)


def _triton(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    beta: float,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
    triton: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    from semobridge_ext._ops.support_logits import triton_backward

    return triton_backward.support_logits_bwd(
        grad, queries, keys, labels, weights, beta, need_queries, need_keys, need_weights
    )


@support_logits_bwd.register_fake
def _(grad, queries, keys, labels, weights, beta, need_queries, need_keys, need_weights, triton):
    weight_dtype = compute_dtype(queries.dtype, keys.dtype) if weights is None else weights.dtype
    return (
        torch.empty_like(queries) if need_queries else queries.new_empty(0),
        torch.empty_like(keys) if need_keys else keys.new_empty(0),
        queries.new_empty(keys.shape[0] if need_weights else 0, dtype=weight_dtype),
    )


see_through(support_logits_bwd, lambda *args: args[-1], _triton)
