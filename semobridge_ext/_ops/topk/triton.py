"""Exact inner-product search: products of chunks by PyTorch, and a filter of their scores.

What `csrc/topk/cuda.h` does, for devices and installations without those kernels: a product inside the
kernel would need tiles of queries with their candidates, and loses to the library's. A program owns one
query and one split of a chunk, looks at BLOCK_G scores at a time and keeps k candidates in registers; a
second kernel takes the best of the splits' lists k times.

A candidate is one int64, larger for the better: the score's bits in an order of integers, then the
complement of the row, then whether the score is NaN. So equal scores stand by lower row, −0 equals +0, and
NaN ranks with −∞ and still comes out as NaN; no two candidates are equal. A block of scores whose best does
not pass the worst one kept costs one comparison; otherwise the best replaces the worst until nothing passes,
which is k·ln(G/k) replacements in all for rows in random order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext._ops.topk.chunks import blocks, chunks, columns
from semobridge_ext.runtime.multiprocessors import multiprocessors
from semobridge_ext.runtime.triton_tuning import Kernel, config

_WARPS = 16  # of a multiprocessor, one a program
_MERGED = 4096  # candidates that one program merges
_GROUP = 512  # scores of a block: 16 a lane
_NONE = tl.constexpr(-(1 << 63))  # below every candidate
_FULL = tl.constexpr((1 << 63) - 1)


@triton.jit
def _candidates(scores, rows, live):
    nan = scores != scores
    rank = tl.where(nan, float("-inf"), scores)
    rank = tl.where(rank == 0.0, 0.0, rank)
    bits = rank.to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    key = (bits.to(tl.int64) << 32) | ((0x7FFFFFFF - rows).to(tl.int64) << 1) | nan.to(tl.int64)
    return tl.where(live, key, _NONE)


@triton.jit(do_not_specialize=["cols", "first"])
def topk_filter_kernel(
    scores_ptr,  # [N, COLS] float32, gallery rows from `first` on
    exclude_ptr,  # [N] int64
    lists_ptr,  # [N, SPLITS, SLOTS] int64
    cols,
    first,
    k,
    stride,
    split_cols,
    splits,
    FRESH: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    query = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    slots = tl.arange(0, SLOTS)
    list_at = lists_ptr + (query * splits + split) * SLOTS + slots
    # Empty slots differ, so that one is replaced at a time; those past k are never the worst.
    best = tl.where(slots < k, _NONE + 1 + slots.to(tl.int64), _FULL)
    if not FRESH:
        best = tl.load(list_at)
    excluded = tl.full((), -1, tl.int64)
    if HAS_EXCLUDE:
        excluded = tl.load(exclude_ptr + query)
    end = tl.minimum((split + 1) * split_cols, cols)
    for begin in range(split * split_cols, end, BLOCK_G):
        at = begin + tl.arange(0, BLOCK_G)
        scores = tl.load(scores_ptr + query * stride + at, mask=at < end, other=0.0)
        rows = first + at
        found = _candidates(scores, rows, (at < end) & (rows != excluded))
        worst, high = tl.min(best, axis=0), tl.max(found, axis=0)
        while high > worst:
            best = tl.where(best == worst, high, best)
            found = tl.where(found == high, _NONE, found)
            worst, high = tl.min(best, axis=0), tl.max(found, axis=0)
    tl.store(list_at, best)


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


# One warp a query and split: what one query finds keeps no other waiting.
KERNEL = Kernel(topk_filter_kernel, (), lambda _: config(1, 1, BLOCK_G=_GROUP))
MERGE = Kernel(
    topk_merge_kernel,
    (),
    lambda a: config(4 if a["WIDTH"] < 4096 else 8, 1, BLOCK_N=max(1, 1024 // a["WIDTH"])),
)


def split_count(n: int, cols: int, slots: int, device: torch.device) -> int:
    """Of the shapes and the device alone, so that a call's result is one whatever else runs."""
    return max(1, min(_WARPS * multiprocessors(device) // max(n, 1), _MERGED // slots, cols // _GROUP))


def _search(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
    scores: Tensor,  # [N, k] float32, written
    indices: Tensor,  # [N, k] int64, written
) -> None:
    """One block of queries: a filter for each chunk, and the merge."""
    n, width = queries.shape[0], columns(queries.shape[0], gallery.shape[0])
    slots = max(16, triton.next_power_of_2(k))
    splits = split_count(n, width, slots, queries.device)
    split_cols = triton.cdiv(triton.cdiv(width, splits), _GROUP) * _GROUP
    lists = torch.empty(n, splits, slots, dtype=torch.int64, device=queries.device)
    for part, first in chunks(queries, gallery):
        KERNEL.launch(
            part, lambda meta: (n * splits,),
            part, lists if exclude is None else exclude, lists, part.shape[1], first, k, part.stride(0),
            split_cols, splits, FRESH=first == 0, HAS_EXCLUDE=exclude is not None, SLOTS=slots,
        )  # fmt: skip
    MERGE.launch(
        scores, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),),
        lists, scores, indices, n, k, splits, SLOTS=slots, WIDTH=slots * triton.next_power_of_2(splits),
    )  # fmt: skip


def launch_topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes, k <= MAX_LIST and G < 2^31.

    Memory: 24 MiB of scores, and 8 bytes per query, split and slot.
    """
    n = queries.shape[0]
    scores = torch.empty(n, k, dtype=torch.float32, device=queries.device)
    indices = torch.empty(n, k, dtype=torch.int64, device=queries.device)
    if n == 0 or k == 0:
        return scores, indices
    exclude = None if exclude is None else exclude.contiguous()
    for some in blocks(n):
        left = None if exclude is None else exclude[some]
        _search(queries[some], gallery, k, left, scores[some], indices[some])
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
