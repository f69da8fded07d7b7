"""The cache classifiers' class sums, streamed: no [N, S] array, no atomics, one fixed order.

    out[n, c] = Σ over the keys of class c of  w_s · exp(β·(⟨q_n, k_s⟩ − 1))

Keys are visited in class order (`order`, `offsets`: see ops/support_logits.py). A program owns BLOCK_N
queries and one class, multiplies BLOCK_S keys at a time and keeps one float32 sum per query. BLOCK_S
follows the mean size of a class, because a class's last tile is padded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from semobridge_ext.ops.triton import interpreted


@triton.jit
def support_logits_fwd_kernel(
    q_ptr,  # [N, D]
    k_ptr,  # [S, D]
    order_ptr,  # [S] int64
    offsets_ptr,  # [C + 1] int64
    weights_ptr,  # [S] float32
    out_ptr,  # [N, C] float32
    n,
    d,
    classes,
    q_stride,
    k_stride,
    beta,
    WIDEN: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs of one class follow each other: its keys are read from memory once, then from L2.
    c = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offsets_ptr + c), tl.load(offsets_ptr + c + 1)
    q_rows = q_ptr + rows.to(tl.int64)[:, None] * q_stride
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(begin, end, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        valid = at < end
        keys = tl.load(order_ptr + at, mask=valid, other=0) if HAS_ORDER else at
        k_rows = k_ptr + keys.to(tl.int64)[None, :] * k_stride
        acc = tl.zeros((BLOCK_N, BLOCK_S), dtype=tl.float32)
        for start in range(0, d, BLOCK_D):
            inner = start + tl.arange(0, BLOCK_D)
            q = tl.load(q_rows + inner[None, :], mask=(rows < n)[:, None] & (inner < d)[None, :], other=0.0)
            k = tl.load(k_rows + inner[:, None], mask=valid[None, :] & (inner < d)[:, None], other=0.0)
            if WIDEN:
                q, k = q.to(tl.float32), k.to(tl.float32)
            acc = tl.dot(q, k, acc, input_precision="ieee")
        term = tl.exp(beta * (acc - 1.0))
        if HAS_WEIGHTS:
            term *= tl.load(weights_ptr + keys, mask=valid, other=0.0)[None, :]
        total += tl.sum(tl.where(valid[None, :], term, 0.0), axis=1)
    tl.store(out_ptr + rows.to(tl.int64) * classes + c, total, mask=rows < n)


def blocks(queries: int, keys: int, classes: int) -> dict[str, int]:
    """The tile of a program: padding wastes half a tile per class."""
    mean = max(1, keys // max(classes, 1))
    block_s = 16 if mean <= 24 else 32 if mean <= 96 else 64
    block_n = 128 if queries > 64 else 64 if queries > 16 else 16
    return {"BLOCK_N": block_n, "BLOCK_S": block_s, "BLOCK_D": 32}


OPTIONS = {"num_warps": 4, "num_stages": 4}


def launch_support_logits_fwd(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D], dtype of queries
    order: Tensor | None,  # [S] int64; None: the keys lie in class order
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
) -> Tensor:  # [N, C] float32
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes and labels."""
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    keys = keys if keys.stride(1) == 1 else keys.contiguous()
    (n, d), classes = queries.shape, offsets.numel() - 1
    out = torch.zeros(n, classes, dtype=torch.float32, device=queries.device)
    if n == 0 or keys.shape[0] == 0:
        return out
    tile = blocks(n, keys.shape[0], classes)
    support_logits_fwd_kernel[(triton.cdiv(n, tile["BLOCK_N"]), classes)](
        queries, keys, offsets if order is None else order, offsets, out if weights is None else weights, out,
        n, d, classes, queries.stride(0), keys.stride(0), beta,
        WIDEN=interpreted(queries), HAS_ORDER=order is not None, HAS_WEIGHTS=weights is not None,
        **tile, **OPTIONS,
    )  # fmt: skip
    return out
