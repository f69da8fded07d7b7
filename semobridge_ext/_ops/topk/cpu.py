"""topk on the CPU: the streamed search of the core, by way of 8-bit codes where they pay."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.quantize_rows.op import Codes
from semobridge_ext._ops.topk import filtering
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.rows import compute_dtype, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
    *,
    coded: Codes | None = None,  # of the gallery
    allow: Tensor | None = None,  # [G] bool
    rows: range | None = None,
) -> tuple[Tensor, Tensor]:  # [N, k] float32 (float64 where an operand is), [N, k] int64
    """`allow` and `rows` (a step of one) say which gallery rows take part; k are at least left of them."""
    rows = range(gallery.shape[0]) if rows is None else rows
    if filtering.filters(queries, gallery, k, prepared=coded is not None, rows=len(rows)):
        scores, indices, _ = topk_filtered(queries, gallery, k, exclude, coded=coded, allow=allow, rows=rows)
        return scores, indices
    queries, gallery = unit_columns(queries), unit_columns(gallery)
    n, g = queries.shape[0], len(rows)
    compute, threads = compute_dtype(queries.dtype, gallery.dtype), thread_count()
    scores = torch.empty(n, k, dtype=compute, device="cpu")
    indices = torch.empty(n, k, dtype=torch.int64, device="cpu")
    exclude = exclude if k else None  # of no row none can be left out
    size = _C.topk_workspace(n, g, k, DTYPE_CODES[compute], threads) if n and k else 0
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    exclude = None if exclude is None else values(exclude)
    allow = None if allow is None else values(allow)
    _C.topk(
        view(queries), view(gallery), k, address(exclude), address(allow), rows.start, rows.stop,
        address(scores), address(indices), address(workspace), threads,
    )  # fmt: skip
    return scores, indices


def topk_filtered(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
    *,
    coded: Codes | None = None,  # None: rows are quantised on the way
    allow: Tensor | None = None,  # [G] bool
    rows: range | None = None,
) -> tuple[Tensor, Tensor, dict[str, int]]:  # [N, k] float32, [N, k] int64
    """The search by way of codes whatever the size, and how it went (csrc/topk/topk.h)."""
    rows = range(gallery.shape[0]) if rows is None else rows
    queries, gallery = unit_columns(queries), unit_columns(gallery)
    n, threads = queries.shape[0], thread_count()
    scores = torch.empty(n, k, dtype=torch.float32, device="cpu")
    indices = torch.empty(n, k, dtype=torch.int64, device="cpu")
    size = _C.topk_filtered_workspace(n, gallery.shape[0], k, threads) if n and k else 0
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    exclude = None if exclude is None else values(exclude)
    allow = None if allow is None else values(allow)
    codes, bounds = (None, None) if coded is None else coded
    found = _C.topk_filtered(
        view(queries), view(gallery), address(codes), address(bounds), k, address(exclude), address(allow),
        rows.start, rows.stop, address(scores), address(indices), address(workspace), threads,
    )  # fmt: skip
    return scores, indices, found
