"""The cache classifiers' class sums, streamed: no [N, S] array, no atomics, one fixed order.

    out[n, c] = Σ over the keys of class c of  w_s · exp(β·(⟨q_n, k_s⟩ − 1))

Keys are visited in class order (`order`, `offsets`: see _ops/support_logits/op.py). A program owns BLOCK_N
queries and one class, multiplies BLOCK_S keys at a time and keeps one float32 sum per query. BLOCK_S
follows the mean size of a class, because a class's last tile is padded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext._ops.support_logits.class_order import class_order
from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, product_of


@triton.jit(do_not_specialize=["bucket"])
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
    bucket,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs of one class follow each other: its keys are read from memory once, then from L2.
    blocks = tl.cdiv(n, BLOCK_N)
    c = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
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
            acc = tl.dot(q, k, acc, input_precision=PRECISION)
        term = tl.exp(beta * (acc - 1.0))
        if HAS_WEIGHTS:
            term *= tl.load(weights_ptr + keys, mask=valid, other=0.0)[None, :]
        total += tl.sum(tl.where(valid[None, :], term, 0.0), axis=1)
    tl.store(out_ptr + rows.to(tl.int64) * classes + c, total, mask=rows < n)


def _plain(a: Arguments) -> bool:
    return a["WIDEN"] or a["q_ptr"].element_size() == 4


def _fixed(a: Arguments) -> triton.Config:
    block_n = 128 if a["n"] > 64 else 64 if a["n"] > 16 else 16
    return config(4, 2 if _plain(a) else 4, BLOCK_N=min(block_n, 64) if _plain(a) else block_n, BLOCK_D=32)


def _fits(c: triton.Config, a: Arguments) -> bool:
    block_n, block_d, block_s = c.kwargs["BLOCK_N"], c.kwargs["BLOCK_D"], a["BLOCK_S"]
    plain = _plain(a)
    if block_n * block_s > (32 if plain else 64) * 32 * c.num_warps or (plain and c.num_stages > 2):
        return False
    return block_n * block_s * block_d <= 1 << 16 + c.num_warps // 2  # beyond, it spills


CONFIGS = [
    config(4, 4, BLOCK_N=128, BLOCK_D=32),
    config(4, 3, BLOCK_N=128, BLOCK_D=64),
    config(8, 3, BLOCK_N=128, BLOCK_D=64),
    config(4, 3, BLOCK_N=64, BLOCK_D=64),
    config(4, 2, BLOCK_N=64, BLOCK_D=32),
    config(4, 4, BLOCK_N=16, BLOCK_D=64),
]
KERNEL = Kernel(support_logits_fwd_kernel, CONFIGS, _fixed, _fits)


def key_block(keys: int, classes: int) -> int:
    """Keys of a tile: padding wastes half a tile per class."""
    mean = keys // max(classes, 1)
    return 16 if mean <= 24 else 32 if mean <= 96 else 64


def launch_support_logits_fwd(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    order: Tensor | None,  # [S] int64; None: the keys lie in class order
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
) -> Tensor:  # [N, C] float32
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes and labels."""
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    keys = keys if keys.stride(1) == 1 else keys.contiguous()
    (n, d), s, classes = queries.shape, keys.shape[0], offsets.shape[0] - 1
    out = torch.zeros(n, classes, dtype=torch.float32, device=queries.device)
    if n == 0 or s == 0:
        return out
    widen, precision = product_of(queries, keys)
    KERNEL.launch(
        queries, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]) * classes,),
        queries, keys, offsets if order is None else order, offsets, out if weights is None else weights, out,
        n, d, classes, queries.stride(0), keys.stride(0), beta, bucket(queries, n, s, d, classes),
        WIDEN=widen, PRECISION=precision, HAS_ORDER=order is not None, HAS_WEIGHTS=weights is not None,
        BLOCK_S=key_block(s, classes),
    )  # fmt: skip
    return out


@triton_op("semobridge::support_logits_triton", mutates_args=())
def support_logits_fwd(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    order: Tensor | None,  # [S] int64
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
) -> Tensor:  # [N, C] float32
    """The launch as an operator: a call runs the kernel, torch.compile records it."""
    return launch_support_logits_fwd(queries, keys, order, offsets, beta, weights)


def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    weights: Tensor | None,  # [S]
    order: Tensor | None,  # [S] int64
    offsets: Tensor | None,  # [C + 1] int64
    num_classes: int,
    beta: float,
) -> Tensor:  # [N, C]
    """The public operator's call by these kernels."""
    if offsets is None:  # traced: nothing is read back, and labels out of range belong to no class
        order, offsets, _ = class_order(labels, num_classes)
    weights = None if weights is None else weights.to(torch.float32).contiguous()
    return support_logits_fwd(queries, keys, order, offsets, beta, weights).to(queries.dtype)
