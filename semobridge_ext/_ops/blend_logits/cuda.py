"""SeMoBridge's blend on a CUDA device: one product by cuBLAS and its epilogue (csrc/blend_logits/cuda.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.views import place, view

_VALUES = 1 << 26  # of one block of products, 256 MiB


def join_operand(
    blocks: tuple[Tensor, Tensor, Tensor],  # each [C, D] float64
    factor: Tensor | None,  # [D, r] float64
    device: torch.device,
) -> Tensor:  # [D, 3·C + r] float32
    parts = [rows.T for rows in blocks]
    if factor is not None:
        parts.append(factor)
    return torch.cat(parts, dim=1).to(device, torch.float32)


def blend_logits(
    x: Tensor,  # [N, D]
    right: Tensor,  # [D, 3·C + r] float32, from `join_operand`
    exponents: Tensor,  # [C] float64
    params: BlendParams,
    *,
    labels: Tensor | None = None,  # [N] int64, written
    logits: Tensor | None = None,  # [N, C] float32, written
) -> None:
    """Writes what is given, block by block of rows."""
    classes = exponents.shape[0]
    rank = right.shape[1] - 3 * classes
    x = x.detach() if x.stride(1) == 1 else x.detach().contiguous()
    weights = None
    if params.s != 0:
        weights = torch.exp(params.s * exponents).to(x.device, torch.float32)
    step = max(1, _VALUES // right.shape[1])
    for i in range(0, x.shape[0], step):
        rows = x[i : i + step]
        with torch.autocast(x.device.type, enabled=False):  # the kernel reads float32
            z = rows.to(torch.float32) @ right
        _C.blend_logits_cuda(
            view(rows), view(z), classes, rank, 0 if weights is None else weights.data_ptr(),
            *params[1:], *(0 if t is None else t[i:].data_ptr() for t in (labels, logits)), *place(x),
        )  # fmt: skip
