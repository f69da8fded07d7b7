"""When the search goes by way of 8-bit codes. It costs or saves time and never changes a result.

The numbers are where codes began to pay on a quiet machine (docs/ops/topk.md, "Figures"); a processor
without an instruction for products of codes gains from prepared codes alone, where memory is the limit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.quantize_rows.op import can_quantize
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import compute_dtype

LEAST_ROWS = 4096  # of the gallery; below, thresholds are never tight
LEAST_WIDTH = 32
ROWS_PER_BEST = 64  # gallery rows for each of the k: the bound drops few of a large share
ON_THE_WAY = 128  # queries that share the work of quantising the gallery
WITHOUT_DOT = 4  # queries at most, on a processor without such an instruction


def filters(queries: Tensor, gallery: Tensor, k: int, *, prepared: bool, rows: int) -> bool:
    """Whether a search of `rows` gallery rows goes by way of codes."""
    if compute_dtype(queries.dtype, gallery.dtype) is not torch.float32 or not can_quantize(gallery):
        return False
    if rows < LEAST_ROWS or gallery.shape[1] < LEAST_WIDTH or k < 1 or rows < ROWS_PER_BEST * k:
        return False
    n = queries.shape[0]
    if not _C.active_dot():
        return prepared and n <= WITHOUT_DOT
    return prepared or n >= ON_THE_WAY
