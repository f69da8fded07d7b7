"""support_logits on the CPU: the fused core over keys in class order."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import compute_dtype, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view


def support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    order: Tensor | None,  # [S] int64; None: the keys lie in class order
    offsets: Tensor,  # [C + 1] int64
    beta: float,
    weights: Tensor | None,  # [S]
) -> Tensor:  # [N, C] float32, float64 where queries or keys are
    queries, keys = unit_columns(queries), unit_columns(keys)
    n, s, classes = queries.shape[0], keys.shape[0], offsets.shape[0] - 1
    compute = compute_dtype(queries.dtype, keys.dtype)
    out = torch.zeros(n, classes, dtype=compute, device="cpu")
    workspace = torch.empty(_C.support_logits_workspace(n, s), dtype=compute, device="cpu")
    if weights is not None:
        weights = values(weights.to(compute))
    order, offsets = None if order is None else values(order), values(offsets)
    _C.support_logits(
        view(queries), view(keys), address(order), address(offsets), classes, address(weights), beta,
        address(out), address(workspace), thread_count(),
    )  # fmt: skip
    return out


def sort_labels(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, int]:
    """Stable order [S], offsets [C + 1], and the position of the first label out of range, or -1."""
    labels = values(labels)
    order = torch.empty(labels.shape, dtype=torch.int64, device="cpu")
    offsets = torch.empty(num_classes + 1, dtype=torch.int64, device="cpu")
    bad = _C.sort_labels(address(labels), labels.numel(), num_classes, address(order), address(offsets))
    return order, offsets, bad
