"""rank_counts on the CPU: the streamed count of the core, and the metrics that follow from counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import compute_dtype
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view


def query_block() -> int:
    """Queries of one call."""
    return _C.RANK_BLOCK


def rank_counts(
    queries: Tensor,  # [*, D], unit column stride
    gallery: Tensor,  # [G, D], unit column stride
    query_rows: Tensor,  # [N] int64; symmetric: [G], the queries first
    marked_rows: Tensor,  # [M] int64
    begin: Tensor,  # [N] int64
    end: Tensor,  # [N] int64
    exclude: Tensor | None,  # [N] int64
    offsets: Tensor,  # [N + 1] int64
    in_order: bool = False,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # each [offsets[N]]: the fields of RankCounts
    n, threads = len(offsets) - 1, thread_count()
    total = int(offsets[-1])
    scores = torch.empty(total, dtype=compute_dtype(queries.dtype, gallery.dtype), device="cpu")
    greater, equal = torch.empty(2, total, dtype=torch.int64, device="cpu")
    placed = torch.empty_like(scores) if in_order else None
    size = _C.rank_counts_workspace(address(offsets), n, threads)
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    keep = [values(t) for t in (query_rows, marked_rows, begin, end)]
    exclude = None if exclude is None else values(exclude)
    _C.rank_counts(
        view(queries), view(gallery), n, *(address(t) for t in keep), address(exclude),
        address(offsets), address(scores), address(greater), address(equal), address(placed),
        symmetric, address(workspace), threads,
    )  # fmt: skip
    return scores, greater, equal, placed


def rank_metrics(
    offsets: Tensor,  # [N + 1] int64
    greater: Tensor,  # [M] int64
    equal: Tensor,  # [M] int64
    recall_at: Sequence[int],
) -> Tensor:  # [N, 3 + len(recall_at)] float64: AP, AP@R, R-precision, Recall@k..
    n = len(offsets) - 1
    ks = torch.tensor(list(recall_at), dtype=torch.int64, device="cpu")
    out = torch.empty(n, 3 + len(ks), dtype=torch.float64, device="cpu")
    _C.rank_metrics(n, address(offsets), address(greater), address(equal), address(ks), len(ks), address(out))
    return out
