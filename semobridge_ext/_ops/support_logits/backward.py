"""The gradients of support_logits (formulas: _ops/support_logits/op.py), as an operator of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.choice import see_through

_CHUNK_BYTES = 4 << 20  # of one [N, chunk] block of the backward pass: it stays in cache


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any tensor is, else float32."""
    wide = any(t.dtype is torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def parts(n: int, s: int) -> list[slice]:
    """Rows of s keys of which [n, chunk] float32 values stay in cache."""
    step = max(256, _CHUNK_BYTES // 4 // max(n, 1))
    return [slice(i, min(i + step, s)) for i in range(0, s, step)]


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
    if triton:
        return _triton_gradients(
            grad, queries, keys, labels, weights, beta, need_queries, need_keys, need_weights, triton
        )
    compute = compute_dtype(queries, keys)
    with torch.autocast(queries.device.type, enabled=False):
        return _gradients(
            grad.to(compute).T.contiguous(), queries, keys, labels, weights, beta, compute,
            need_queries, need_keys, need_weights,
        )  # fmt: skip


def _triton_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    beta: float,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from semobridge_ext._ops import triton_operators as operators

    wide = None if weights is None else weights.to(torch.float32).contiguous()
    grad_q, grad_k, grad_w = operators.support_logits_bwd(
        grad.to(torch.float32), queries, keys, labels, beta, wide, need_queries, need_keys, need_weights
    )
    dtype = torch.float32 if weights is None else weights.dtype
    return grad_q.to(queries.dtype), grad_k.to(keys.dtype), grad_w.to(dtype)


def _gradients(
    g: Tensor,  # [C, N]
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    beta: float,
    compute: torch.dtype,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    q = queries.to(compute)
    grad_q = torch.zeros_like(q) if need_queries else q.new_empty(0)
    grad_k = torch.empty_like(keys) if need_keys else keys.new_empty(0)
    weight_dtype = compute if weights is None else weights.dtype
    grad_w = q.new_empty(keys.shape[0] if need_weights else 0, dtype=weight_dtype)
    for part in parts(q.shape[0], keys.shape[0]):
        k = keys[part].to(compute)
        p = torch.mm(k, q.T).sub_(1).mul_(beta).exp_()  # [chunk, N]
        p.mul_(g.index_select(0, labels[part]))
        if need_weights:
            grad_w[part] = p.sum(1)
        if weights is not None:
            p.mul_(weights[part].to(compute).unsqueeze(1))
        if need_queries:
            grad_q.addmm_(p.T, k, alpha=beta)
        if need_keys:
            grad_k[part] = torch.mm(p, q).mul_(beta)
    return grad_q.to(queries.dtype), grad_k, grad_w


@support_logits_bwd.register_fake
def _(grad, queries, keys, labels, weights, beta, need_queries, need_keys, need_weights, triton):
    weight_dtype = compute_dtype(queries, keys) if weights is None else weights.dtype
    return (
        torch.empty_like(queries) if need_queries else queries.new_empty(0),
        torch.empty_like(keys) if need_keys else keys.new_empty(0),
        queries.new_empty(keys.shape[0] if need_weights else 0, dtype=weight_dtype),
    )


see_through(support_logits_bwd, lambda *args: args[-1], _triton_gradients)
