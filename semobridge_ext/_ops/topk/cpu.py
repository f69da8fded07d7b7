"""topk on the CPU: the streamed search of the core."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.rows import compute_dtype, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view


def topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N] int64
) -> tuple[Tensor, Tensor]:  # [N, k] float32 (float64 where an operand is), [N, k] int64
    queries, gallery = unit_columns(queries), unit_columns(gallery)
    n, g = queries.shape[0], gallery.shape[0]
    compute, threads = compute_dtype(queries.dtype, gallery.dtype), thread_count()
    scores = torch.empty(n, k, dtype=compute, device="cpu")
    indices = torch.empty(n, k, dtype=torch.int64, device="cpu")
    size = _C.topk_workspace(n, g, k, DTYPE_CODES[compute], threads) if n and k else 0
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    if exclude is not None:
        exclude = values(exclude)
    _C.topk(
        view(queries), view(gallery), k, address(exclude), address(scores), address(indices),
        address(workspace), threads,
    )  # fmt: skip
    return scores, indices
