"""SeMoBridge's blend on the CPU: three products of one left operand and their epilogue in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext._ops.project_normalize.cpu import pack_matrix
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.rows import compute_dtype, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, packed_view, view


def _padded(classes: int) -> int:
    return -(-classes // _C.PANEL) * _C.PANEL


def pack_operand(
    blocks: tuple[Tensor, Tensor, Tensor],  # each [C, D] float64
    factor: Tensor | None,  # [D, r] float64
    compute: torch.dtype,
) -> tuple[Tensor, int]:
    """The packed right operand [D, 3·Cp + Rp], and its columns before packing."""
    classes, width = blocks[0].shape
    rows = torch.zeros(3, _padded(classes), width, dtype=torch.float64, device="cpu")
    for padded, block in zip(rows, blocks, strict=True):
        padded[:classes] = block
    # [3, panels, 32, D] -> panel by panel: text, bridged, raw
    columns = rows.view(3, -1, _C.PANEL, width).transpose(0, 1).reshape(-1, width).T
    if factor is not None:
        columns = torch.cat([columns, factor], dim=1)
    return pack_matrix(columns, compute), columns.shape[1]


def blend_logits(
    x: Tensor,  # [N, D]
    packed: tuple[Tensor, int],  # from `pack_operand`
    exponents: Tensor,  # [C] float64
    params: BlendParams,
    *,
    bridged: bool,  # the third block is divided by the norm of x·factor
    labels: Tensor | None = None,  # [N] int64, written
    logits: Tensor | None = None,  # [N, C], written
    blocks: Similarities | None = None,  # written
) -> None:
    """Writes what is given; the others are never made."""
    right, cols = packed
    classes = exponents.shape[0]
    x = unit_columns(x)
    weights = None
    if params.s != 0:
        weights = torch.ones(_padded(classes), dtype=compute_dtype(x.dtype), device="cpu")
        weights[:classes] = torch.exp(params.s * exponents)
    outputs = [address(t) for t in (labels, logits, *(blocks or (None,) * 3))]
    _C.blend_logits(
        view(x), packed_view(right, x.shape[1], cols), classes, bridged, address(weights), *params[1:],
        *outputs, thread_count(),
    )  # fmt: skip
