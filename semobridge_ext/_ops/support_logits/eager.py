"""support_logits and its gradients by PyTorch alone: chunks of keys, products by torch.mm.

The gradients serve the native backend too: their products are large, and torch.mm's are fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.rows import compute_dtype

_CHUNK_BYTES = 4 << 20  # of one [N, chunk] block: it stays in cache


def parts(n: int, s: int) -> list[slice]:
    """Rows of s keys of which [n, chunk] float32 values stay in cache."""
    step = max(256, _CHUNK_BYTES // 4 // max(n, 1))
    return [slice(i, min(i + step, s)) for i in range(0, s, step)]


def class_sums(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D], the dtype of the queries
    labels: Tensor,  # [S] int64
    num_classes: int,
    beta: float,
    weights: Tensor | None,  # [S]
) -> Tensor:  # [N, C]
    """All keys at once, by one product with their votes; open to autograd and function transforms."""
    terms = torch.exp(beta * (queries @ keys.T - 1))  # [N, S]
    votes = torch.nn.functional.one_hot(labels, num_classes).to(terms.dtype)  # [S, C]
    return terms @ (votes if weights is None else votes * weights.unsqueeze(1))


def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    num_classes: int,
    beta: float,
    weights: Tensor | None,  # [S]
) -> Tensor:  # [N, C] float32, float64 where queries or keys are
    """Chunk by chunk, in the dtypes of the schema whatever autocast says."""
    compute = compute_dtype(queries.dtype, keys.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        q = queries.to(compute)
        out = q.new_zeros(q.shape[0], num_classes)
        for part in parts(q.shape[0], keys.shape[0]):
            w = None if weights is None else weights[part].to(compute)
            out += class_sums(q, keys[part].to(compute), labels[part], num_classes, beta, w)
    return out


def support_logits_bwd(
    grad: Tensor,  # [N, C]
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    weights: Tensor | None,  # [S]
    beta: float,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S]; an unneeded one is empty
    compute = compute_dtype(queries.dtype, keys.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        g = grad.to(compute).T.contiguous()  # [C, N]
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
