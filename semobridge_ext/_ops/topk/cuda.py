"""topk on a CUDA device: products of chunks by cuBLAS, their best kept in registers (csrc/topk/cuda.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.topk.chunks import blocks, chunks, columns
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.multiprocessors import multiprocessors
from semobridge_ext.runtime.views import place, view

_WARPS = 8  # of a multiprocessor: with 2 KiB of loads each they keep its path to the cache full
GROUP = 512  # scores that a warp looks at at once


def split_count(n: int, cols: int, device: torch.device) -> int:
    """Ranges of a row of scores, one warp each, that fill the device."""
    return max(1, min(_WARPS * multiprocessors(device) // max(n, 1), -(-cols // GROUP)))


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    """Scores are float32; equal scores stand in order of row, NaN with −infinity.

    Memory: 24 MiB of scores, and 8·k bytes for each warp: 8 a multiprocessor, or one a query.
    """
    n, device = queries.shape[0], queries.device
    scores = torch.empty(n, k, dtype=torch.float32, device=device)
    indices = torch.empty(n, k, dtype=torch.int64, device=device)
    if exclude is not None:
        exclude = exclude.contiguous()
    for block in blocks(n):
        some = queries[block]
        size = some.shape[0]
        splits = split_count(size, columns(size, gallery.shape[0]), device)
        best = scores.new_empty(size, splits, k)
        rows = scores.new_empty(size, splits, k, dtype=torch.int32)
        left = 0 if exclude is None else exclude[block].data_ptr()
        for part, first in chunks(some, gallery):
            _C.topk_filter_cuda(
                view(part), first, first == 0, k, splits, left, best.data_ptr(), rows.data_ptr(),
                *place(scores),
            )  # fmt: skip
        _C.topk_merge_cuda(
            size, k, splits, best.data_ptr(), rows.data_ptr(), scores[block].data_ptr(),
            indices[block].data_ptr(), *place(scores),
        )  # fmt: skip
    return scores, indices
