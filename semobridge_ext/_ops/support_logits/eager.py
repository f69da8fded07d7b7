"""support_logits and its gradients by PyTorch alone: chunks of keys, products by torch.mm.

The gradients serve the native backend too: their products are large, and torch.mm's are fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.rows import compute_dtype

# Of the widest block of a chunk. A CPU's stays in its cache. On a GPU every chunk costs eight launches, and
# what they hand to each other should stay in L2.
_CHUNK_BYTES, _GPU_CHUNK_BYTES = 4 << 20, 32 << 20
_LEAST = 256  # keys of a chunk, so that a product is worth its call


def parts(s: int, width: int, block: Tensor) -> list[slice]:
    """Chunks of s keys whose blocks have up to ``width`` values a key, of the block's dtype and device."""
    most = _CHUNK_BYTES if block.device.type == "cpu" else _GPU_CHUNK_BYTES
    step = max(_LEAST, most // block.element_size() // max(width, 1))
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
    none, at = terms.new_zeros(labels.shape[0], num_classes), labels.unsqueeze(1)
    if weights is None:
        return terms @ none.scatter(1, at, 1.0)
    return terms @ none.scatter(1, at, weights.to(terms.dtype).unsqueeze(1))


def chunked_sums(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    num_classes: int,
    beta: float,
    weights: Tensor | None,  # [S]
    *,
    apart: bool = False,
) -> Tensor:  # [N, C] float32, float64 where queries or keys are
    """Chunk by chunk, in the dtypes of the schema whatever autocast says; labels are in range.

    Votes are written into one block and taken out again. Without ``apart`` a term that is not finite
    spreads to all classes of its query: its product with a vote of 0 is NaN. With it such terms are added
    one by one.
    """
    compute = compute_dtype(queries.dtype, keys.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        q = queries.to(compute)
        out = q.new_zeros(q.shape[0], num_classes)
        copied = 0 if keys.dtype is compute else keys.shape[1]
        chunks = parts(keys.shape[0], max(q.shape[0], num_classes, copied), q)
        votes = q.new_zeros(chunks[0].stop if chunks else 0, num_classes)
        for part in chunks:
            terms = torch.mm(q, keys[part].to(compute).T).sub_(1).mul_(beta).exp_()  # [N, chunk]
            at = labels[part].unsqueeze(1)
            block = votes[: at.shape[0]]  # [chunk, C]
            if weights is None:
                block.scatter_(1, at, 1.0)
            else:
                block.scatter_(1, at, weights[part].to(compute).unsqueeze(1))
            if apart:
                row, key = torch.isfinite(terms).logical_not_().nonzero(as_tuple=True)
                lone = terms[row, key]
                if weights is not None:
                    lone *= weights[part].to(compute)[key]
                # With accumulate a GPU sorts: equal calls give equal bits.
                out.index_put_((row, labels[part][key]), lone, accumulate=True)
                terms[row, key] = 0
            out.addmm_(terms, block)
            block.scatter_(1, at, 0.0)
    return out


def _capturing(queries: Tensor) -> bool:
    return queries.is_cuda and torch.cuda.is_current_stream_capturing()


def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    num_classes: int,
    beta: float,
    weights: Tensor | None,  # [S]
) -> Tensor:  # [N, C] float32, float64 where queries or keys are
    """The sums; what is not finite in a key stays in its class: queries that meet it take a second pass.

    But for a CUDA graph's capture, in which the host cannot look at the first one.
    """
    out = chunked_sums(queries, keys, labels, num_classes, beta, weights)
    if _capturing(queries):
        return out
    rows = torch.isfinite(out).all(1).logical_not_()
    if bool(rows.any()):
        out[rows] = chunked_sums(queries[rows], keys, labels, num_classes, beta, weights, apart=True)
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
        for part in parts(keys.shape[0], max(q.shape), q):
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
