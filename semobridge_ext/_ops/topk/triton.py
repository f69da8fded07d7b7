"""Exact inner-product search, streamed: the [N, G] product never exists.

A program owns BLOCK_N queries and one split of the gallery. It multiplies BLOCK_G rows at a time and keeps
k candidates per query in registers; a second kernel takes the best of the splits' lists k times.

A candidate is one int64, larger for the better: the score's bits in an order of integers, then the
complement of the row, then whether the score is NaN. So equal scores stand by lower row, −0 equals +0, and
NaN ranks with −∞ and still comes out as NaN; no two candidates are equal. A tile whose best does not pass
the worst one kept costs one comparison; otherwise each query replaces its worst by the tile's best until
nothing passes, which is k·ln(G/k) replacements in all for rows in random order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, product_of

_PROGRAMS = 512  # that fill a large GPU
_MERGED = 2048  # candidates that one program merges
_NONE = tl.constexpr(-(1 << 63))  # below every candidate
_FULL = tl.constexpr((1 << 63) - 1)


@triton.jit
def _candidates(scores, rows, live):
    nan = scores != scores
    rank = tl.where(nan, float("-inf"), scores)
    rank = tl.where(rank == 0.0, 0.0, rank)
    bits = rank.to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    key = (bits.to(tl.int64) << 32) | ((0x7FFFFFFF - rows).to(tl.int64) << 1)[None, :] | nan.to(tl.int64)
    return tl.where(live, key, _NONE)


@triton.jit(do_not_specialize=["bucket"])
def topk_scan_kernel(
    q_ptr,  # [N, D]
    g_ptr,  # [G, D]
    exclude_ptr,  # [N] int64
    lists_ptr,  # [N, SPLITS, SLOTS] int64
    n,
    g_rows,
    d,
    k,
    q_stride,
    g_stride,
    split_rows,
    splits,
    bucket,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    queries = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    slots = tl.arange(0, SLOTS)
    q_rows = q_ptr + queries.to(tl.int64)[:, None] * q_stride
    # Empty slots differ, so that one is replaced at a time; those past k are never the worst.
    empty = tl.where(slots < k, _NONE + 1 + slots.to(tl.int64), _FULL)
    best = tl.zeros((BLOCK_N, SLOTS), dtype=tl.int64) + empty[None, :]
    excluded = tl.full((BLOCK_N,), -1, tl.int64)
    if HAS_EXCLUDE:
        excluded = tl.load(exclude_ptr + queries, mask=queries < n, other=-1)
    end = tl.minimum((split + 1) * split_rows, g_rows)
    for first in range(split * split_rows, end, BLOCK_G):
        rows = first + tl.arange(0, BLOCK_G)
        g_at = g_ptr + rows.to(tl.int64)[None, :] * g_stride
        acc = tl.zeros((BLOCK_N, BLOCK_G), dtype=tl.float32)
        for start in range(0, d, BLOCK_D):
            inner = start + tl.arange(0, BLOCK_D)
            q = tl.load(
                q_rows + inner[None, :], mask=(queries < n)[:, None] & (inner < d)[None, :], other=0.0
            )
            g = tl.load(g_at + inner[:, None], mask=(rows < end)[None, :] & (inner < d)[:, None], other=0.0)
            if WIDEN:
                q, g = q.to(tl.float32), g.to(tl.float32)
            acc = tl.dot(q, g, acc, input_precision=PRECISION)
        live = (rows < end)[None, :] & (rows[None, :] != excluded[:, None]) & (queries < n)[:, None]
        found = _candidates(acc, rows, live)
        worst, high = tl.min(best, axis=1), tl.max(found, axis=1)
        while tl.max((high > worst).to(tl.int32), axis=0) > 0:
            better = (high > worst)[:, None]
            best = tl.where((best == worst[:, None]) & better, high[:, None], best)
            found = tl.where((found == high[:, None]) & better, _NONE, found)
            worst, high = tl.min(best, axis=1), tl.max(found, axis=1)
    at = lists_ptr + (queries.to(tl.int64)[:, None] * splits + split) * SLOTS + slots[None, :]
    tl.store(at, best, mask=(queries < n)[:, None])


@triton.jit
def topk_merge_kernel(
    lists_ptr,  # [N, SPLITS, SLOTS] int64
    scores_ptr,  # [N, k] float32
    indices_ptr,  # [N, k] int64
    n,
    k,
    splits,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    queries = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = tl.arange(0, WIDTH)
    live = (queries < n)[:, None] & ((places < splits * SLOTS) & (places % SLOTS < k))[None, :]
    at = lists_ptr + queries.to(tl.int64)[:, None] * splits * SLOTS + places[None, :]
    keys = tl.load(at, mask=live, other=_NONE)
    out = queries.to(tl.int64) * k
    for place in range(0, k):
        best = tl.max(keys, axis=1)
        keys = tl.where(keys == best[:, None], _NONE, keys)
        bits = (best >> 32).to(tl.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        scores = tl.where((best & 1) == 1, float("nan"), bits.to(tl.float32, bitcast=True))
        tl.store(scores_ptr + out + place, scores, mask=queries < n)
        tl.store(indices_ptr + out + place, 0x7FFFFFFF - ((best >> 1) & 0x7FFFFFFF), mask=queries < n)


def _list(a: Arguments) -> list[triton.Config]:
    return SINGLE if a["WIDEN"] or a["q_ptr"].element_size() == 4 else HALF


def _fits(c: triton.Config, a: Arguments) -> bool:
    # A thread holds candidates and scores, two registers each.
    return c in _list(a) and c.kwargs["BLOCK_N"] * max(c.kwargs["BLOCK_G"], a["SLOTS"]) <= 512 * c.num_warps


HALF = [
    config(4, 3, BLOCK_N=16, BLOCK_G=128, BLOCK_D=64),
    config(4, 3, BLOCK_N=16, BLOCK_G=64, BLOCK_D=64),
    config(4, 4, BLOCK_N=32, BLOCK_G=64, BLOCK_D=64),
    config(4, 4, BLOCK_N=32, BLOCK_G=64, BLOCK_D=32),
    config(8, 2, BLOCK_N=32, BLOCK_G=128, BLOCK_D=64),
]
SINGLE = [
    config(4, 2, BLOCK_N=16, BLOCK_G=64, BLOCK_D=16),
    config(4, 1, BLOCK_N=16, BLOCK_G=128, BLOCK_D=16),
    config(4, 1, BLOCK_N=16, BLOCK_G=32, BLOCK_D=16),
]
KERNEL = Kernel(topk_scan_kernel, HALF + SINGLE, lambda a: _list(a)[0], _fits)
MERGE = Kernel(topk_merge_kernel, (), lambda a: config(4, 1, BLOCK_N=max(1, 1024 // a["WIDTH"])))


def _splits(n: int, g: int, slots: int) -> int:
    """Of shapes alone, so that a call's result is one whatever else runs."""
    return max(1, min(_PROGRAMS // triton.cdiv(n, 32), _MERGED // slots, g // 256))


def launch_topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes, k <= MAX_LIST and G < 2^31.

    Memory: 8 bytes per query, split and slot, at most 16 KiB a query.
    """
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    gallery = gallery if gallery.stride(1) == 1 else gallery.contiguous()
    (n, d), g = queries.shape, gallery.shape[0]
    scores = torch.empty(n, k, dtype=torch.float32, device=queries.device)
    indices = torch.empty(n, k, dtype=torch.int64, device=queries.device)
    if n == 0 or k == 0:
        return scores, indices
    slots = max(16, triton.next_power_of_2(k))
    splits = _splits(n, g, slots)
    split_rows = triton.cdiv(triton.cdiv(g, splits), 128) * 128
    lists = torch.empty(n, splits, slots, dtype=torch.int64, device=queries.device)
    widen, precision = product_of(queries, gallery)
    KERNEL.launch(
        queries, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), splits),
        queries, gallery, lists if exclude is None else exclude.contiguous(), lists, n, g, d, k,
        queries.stride(0), gallery.stride(0), split_rows, splits, bucket(queries, n, g, d, slots),
        WIDEN=widen, PRECISION=precision, HAS_EXCLUDE=exclude is not None, SLOTS=slots,
    )  # fmt: skip
    width = slots * triton.next_power_of_2(splits)
    MERGE.launch(
        queries, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),),
        lists, scores, indices, n, k, splits, SLOTS=slots, WIDTH=width,
    )  # fmt: skip
    return scores, indices


@triton_op("semobridge::topk_triton", mutates_args=())
def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    """The launches as an operator: a call runs the kernels, torch.compile records them."""
    return launch_topk(queries, gallery, k, exclude)
