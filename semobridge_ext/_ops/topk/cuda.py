"""topk on a CUDA device: products of chunks by cuBLAS, their best kept in registers (csrc/topk/cuda.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.views import place, view

_SCORES = 1 << 26  # of one chunk, 256 MiB
_WARPS = 4096  # that fill a large GPU


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32, [N, k] int64
    """Scores are float32; equal scores stand in order of row, NaN with −infinity."""
    # Rows of one half type are multiplied as they are. A gallery of another type is never cut into parts:
    # what they leave out would decide between near neighbours.
    q = queries.detach() if queries.dtype is gallery.dtype else queries.detach().to(torch.float32)
    n, g = q.shape[0], gallery.shape[0]
    scores = q.new_empty(n, k, dtype=torch.float32)
    indices = q.new_empty(n, k, dtype=torch.int64)
    if n == 0:
        return scores, indices
    if exclude is not None:
        exclude = exclude.contiguous()
    chunk = max(1024, _SCORES // n)
    splits = max(1, min(32, _WARPS // n, min(chunk, g) // 256))
    best = q.new_empty(n, splits, k, dtype=torch.float32)
    rows = q.new_empty(n, splits, k, dtype=torch.int32)
    for first in range(0, g, chunk):
        part = half_products.product(q, gallery[first : first + chunk].detach().T)
        _C.topk_filter_cuda(
            view(part), first, first == 0, k, splits, 0 if exclude is None else exclude.data_ptr(),
            best.data_ptr(), rows.data_ptr(), *place(q),
        )  # fmt: skip
    _C.topk_merge_cuda(
        n, k, splits, best.data_ptr(), rows.data_ptr(), scores.data_ptr(), indices.data_ptr(), *place(q)
    )
    return scores, indices
