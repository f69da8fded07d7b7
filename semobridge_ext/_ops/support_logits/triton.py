"""The cache classifiers' class sums, streamed: no [N, S] array, no atomics, one fixed order.

    out[n, c] = Σ over the keys of class c of  w_s · exp(β·(⟨q_n, k_s⟩ − 1))

Keys are visited in class order (`order`, `offsets`: see _ops/support_logits/op.py). A program owns BLOCK_N
queries and one split of the keys, whatever classes lie there. Queries of a half type stay on the chip, all
D columns of them, and every key is read once a program; other queries are read again with each block of keys.

A class that ends inside a block is summed and stored there. One that a split's border cuts leaves a sum on
either side, and a second kernel adds these in the order of the splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext._ops.support_logits.class_order import class_order
from semobridge_ext.runtime.multiprocessors import multiprocessors, parts_to_fill
from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, product_of

_FAR = tl.constexpr(1 << 62)  # where the class behind the last one would end


@triton.jit
def _columns(at_ptr, live, d, FIRST: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """[rows, WIDTH] of rows that begin at at_ptr; columns past D are 0."""
    cols = FIRST + tl.arange(0, WIDTH)
    mask = live[:, None] if EVEN else live[:, None] & (cols < d)[None, :]
    return tl.load(at_ptr[:, None] + cols[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["bucket"])
def support_logits_fwd_kernel(
    q_ptr,  # [N, D]
    k_ptr,  # [S, D]
    order_ptr,  # [S] int64
    offsets_ptr,  # [C + 1] int64
    weights_ptr,  # [S] float32
    out_ptr,  # [N, C] float32, zero
    edges_ptr,  # [2, SPLITS, N] float32: of the class that a split's first key continues, and of its last
    n,
    d,
    classes,
    q_stride,
    k_stride,
    split_keys,
    splits,
    beta,
    bucket,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs of one split follow each other: its keys are read from memory once, then from L2.
    blocks = tl.cdiv(n, BLOCK_N)
    split = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < n
    begin = tl.maximum(split * split_keys, tl.load(offsets_ptr))
    end = tl.minimum((split + 1) * split_keys, tl.load(offsets_ptr + classes))
    # The class of the first key: as many end before it. (A loop in a function of its own would look to
    # torch.compile as if the function wrote the offsets.)
    c = tl.full((), 0, tl.int32)
    for base in range(0, classes, 1024):
        some = base + tl.arange(0, 1024)
        ends = tl.load(offsets_ptr + some + 1, mask=some < classes, other=_FAR)
        c += tl.sum((ends <= begin).to(tl.int32), axis=0)
    start = tl.load(offsets_ptr + c)
    stop = tl.load(offsets_ptr + c + 1, mask=c < classes, other=_FAR)
    continued = start < begin
    q_at = q_ptr + rows.to(tl.int64) * q_stride
    out_at = out_ptr + rows.to(tl.int64) * classes
    edge_at = edges_ptr + split * n + rows
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if BLOCK_D == 0:
        q0 = _columns(q_at, inside, d, 0, D0, EVEN)
        if WIDEN:
            q0 = q0.to(tl.float32)
        if D1 > 0:
            q1 = _columns(q_at, inside, d, D0, D1, EVEN)
            if WIDEN:
                q1 = q1.to(tl.float32)
    for first in range(begin, end, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        valid = at < end
        keys = tl.load(order_ptr + at, mask=valid, other=0) if HAS_ORDER else at
        k_at = k_ptr + keys * k_stride
        acc = tl.zeros((BLOCK_N, BLOCK_S), dtype=tl.float32)
        if BLOCK_D == 0:
            k = _columns(k_at, valid, d, 0, D0, EVEN)
            if WIDEN:
                k = k.to(tl.float32)
            acc = tl.dot(q0, tl.trans(k), acc, input_precision=PRECISION)
            if D1 > 0:
                k = _columns(k_at, valid, d, D0, D1, EVEN)
                if WIDEN:
                    k = k.to(tl.float32)
                acc = tl.dot(q1, tl.trans(k), acc, input_precision=PRECISION)
        else:
            for inner in range(0, d, BLOCK_D):
                cols = inner + tl.arange(0, BLOCK_D)
                q = tl.load(
                    q_at[:, None] + cols[None, :], mask=inside[:, None] & (cols < d)[None, :], other=0.0
                )
                k = tl.load(
                    k_at[None, :] + cols[:, None], mask=valid[None, :] & (cols < d)[:, None], other=0.0
                )
                if WIDEN:
                    q, k = q.to(tl.float32), k.to(tl.float32)
                acc = tl.dot(q, k, acc, input_precision=PRECISION)
        term = tl.exp(beta * (acc - 1.0))
        if HAS_WEIGHTS:
            term *= tl.load(weights_ptr + keys, mask=valid, other=0.0)[None, :]
        last = tl.minimum(first + BLOCK_S, end)
        # The loop stands in a branch of its own: a loop that holds a loop is not pipelined.
        if stop <= last:
            while stop <= last:  # class c ends in this block
                mine = (at >= start) & (at < stop)
                total += tl.sum(tl.where(mine[None, :], term, 0.0), axis=1)
                tl.store(out_at + c, total, mask=inside & (continued == 0))
                tl.store(edge_at, total, mask=inside & continued)
                total = tl.zeros((BLOCK_N,), dtype=tl.float32)
                continued = stop < stop
                start = stop
                c += 1
                stop = tl.load(offsets_ptr + c + 1, mask=c < classes, other=_FAR)
        total += tl.sum(tl.where((valid & (at >= start))[None, :], term, 0.0), axis=1)
    if start < end:  # class c goes on in the next split
        tail = tl.where(continued, split * 0, split * 0 + 1)
        tl.store(edge_at + tail * splits * n, total, mask=inside)


@triton.jit
def support_logits_join_kernel(
    offsets_ptr,  # [C + 1] int64
    edges_ptr,  # [2, SPLITS, N] float32
    out_ptr,  # [N, C] float32
    n,
    classes,
    split_keys,
    splits,
    BLOCK_N: tl.constexpr,
):
    """The class that goes on past the end of a split, if it begins there: the sums of all its splits."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    border = (split + 1) * split_keys
    c = tl.full((), 0, tl.int32)
    for base in range(0, classes, 1024):
        some = base + tl.arange(0, 1024)
        ends = tl.load(offsets_ptr + some + 1, mask=some < classes, other=_FAR)
        c += tl.sum((ends <= border - 1).to(tl.int32), axis=0)
    start = tl.load(offsets_ptr + c)
    stop = tl.load(offsets_ptr + c + 1, mask=c < classes, other=0)
    if (start >= split * split_keys) & (start < border) & (stop > border):
        total = tl.load(edges_ptr + (splits + split) * n + rows, mask=rows < n, other=0.0)
        for later in range(split + 1, tl.cdiv(stop, split_keys)):
            total += tl.load(edges_ptr + later * n + rows, mask=rows < n, other=0.0)
        tl.store(out_ptr + rows.to(tl.int64) * classes + c, total, mask=rows < n)


def _half(a: Arguments) -> bool:
    return a["q_ptr"].element_size() == 2 and a["q_ptr"].dtype is a["k_ptr"].dtype


def _fixed(a: Arguments) -> triton.Config:
    if not _half(a):
        return SINGLE[0] if a["n"] > 16 else SINGLE[-1]
    # Longer rows leave room for fewer of them.
    fit = [c for c in RESIDENT if _fits(c, a) and _shared(c, a) <= _MOST_SHARED]
    wanted = 128 if a["n"] > 64 else 64 if a["n"] > 16 else 16
    return next((c for c in fit if c.kwargs["BLOCK_N"] <= wanted), STREAMED[0])


def _fits(c: triton.Config, a: Arguments) -> bool:
    if not _half(a):
        return c in SINGLE
    if c.kwargs["BLOCK_S"] == 16 and (a["D0"] < 1024 or not a["EVEN"]):
        return False  # for long rows; masks of odd ones would spill
    return c in STREAMED or (c in RESIDENT and a["D0"] + a["D1"] <= 1024)


def _shared(c: triton.Config, a: Arguments) -> int:
    """The queries, and the blocks of keys on their way."""
    if c.kwargs["BLOCK_D"] > 0:
        return 0
    width = a["D0"] + a["D1"]
    return 2 * width * (c.kwargs["BLOCK_N"] + c.num_stages * c.kwargs["BLOCK_S"]) + 1024


_MOST_SHARED = 227 << 10  # of a block on any architecture
# BLOCK_D = 0: the queries stay.
RESIDENT = [
    config(8, 3, BLOCK_N=128, BLOCK_S=32, BLOCK_D=0),
    config(4, 2, BLOCK_N=64, BLOCK_S=64, BLOCK_D=0),
    config(4, 2, BLOCK_N=64, BLOCK_S=32, BLOCK_D=0),
    config(8, 2, BLOCK_N=64, BLOCK_S=16, BLOCK_D=0),
    config(4, 3, BLOCK_N=16, BLOCK_S=64, BLOCK_D=0),
    config(4, 2, BLOCK_N=16, BLOCK_S=32, BLOCK_D=0),
]
STREAMED = [config(4, 3, BLOCK_N=64, BLOCK_S=64, BLOCK_D=64)]  # where nothing fits
SINGLE = [
    config(4, 1, BLOCK_N=64, BLOCK_S=32, BLOCK_D=16),  # with two stages Triton 3.6 spills
    config(4, 2, BLOCK_N=16, BLOCK_S=64, BLOCK_D=32),
]
KERNEL = Kernel(support_logits_fwd_kernel, RESIDENT + STREAMED + SINGLE, _fixed, _fits, _shared)
JOIN = Kernel(support_logits_join_kernel, (), lambda _: config(4, 1, BLOCK_N=128))


def row_parts(width: int) -> tuple[int, int]:
    """D as a power of two and, where that wastes less than the next one, a second."""
    whole = max(16, triton.next_power_of_2(width))
    if whole == 16 or width > 3 * whole // 4:
        return whole, 0
    return whole // 2, max(16, triton.next_power_of_2(width - whole // 2))


def split_count(queries: Tensor, n: int, s: int) -> int:
    """Of the shapes and the device alone, so that a call's result is one whatever else runs."""
    blocks = triton.cdiv(n, 128 if n > 64 else 64 if n > 16 else 16)
    return parts_to_fill(blocks, max(1, s // 256), multiprocessors(queries.device))


def launch_support_logits_fwd(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    order: Tensor | None,  # [S] int64; None: the keys lie in class order
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
    splits: int = 0,  # 0: as many as fill the device
) -> Tensor:  # [N, C] float32
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes and labels.

    Memory: the result, and two values for each query and split.
    """
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    keys = keys if keys.stride(1) == 1 else keys.contiguous()
    (n, d), s, classes = queries.shape, keys.shape[0], offsets.shape[0] - 1
    out = torch.zeros(n, classes, dtype=torch.float32, device=queries.device)
    if n == 0 or s == 0:
        return out
    splits = splits or split_count(queries, n, s)
    split_keys = triton.cdiv(triton.cdiv(s, splits), 16) * 16
    splits = triton.cdiv(s, split_keys)
    edges = torch.empty(2, splits, n, dtype=torch.float32, device=queries.device)
    widen, precision = product_of(queries, keys)
    first, second = row_parts(d)
    KERNEL.launch(
        queries, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]) * splits,),
        queries, keys, offsets if order is None else order, offsets, out if weights is None else weights, out,
        edges, n, d, classes, queries.stride(0), keys.stride(0), split_keys, splits, beta,
        bucket(queries, n, s, d, classes),
        WIDEN=widen, PRECISION=precision, HAS_ORDER=order is not None, HAS_WEIGHTS=weights is not None,
        D0=first, D1=second, EVEN=first + second == d,
    )  # fmt: skip
    if splits > 1:
        JOIN.launch(
            queries, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), splits - 1),
            offsets, edges, out, n, classes, split_keys, splits,
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
