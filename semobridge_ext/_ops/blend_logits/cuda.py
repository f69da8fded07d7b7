"""SeMoBridge's blend on a CUDA device: one product by cuBLAS and its epilogue (csrc/blend_logits/cuda.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.half_products import Parts
from semobridge_ext.runtime.views import place, view

_VALUES = 1 << 23  # of one block of products: 32 MiB, which the epilogue finds in an L2 of 40 MB
Right = Tensor | Parts  # [D, 3·C + r] float32, or as rows of a half type meet it


def join_operand(
    blocks: tuple[Tensor, Tensor, Tensor],  # each [C, D] float64
    factor: Tensor | None,  # [D, r] float64
    device: torch.device,
    dtype: torch.dtype,  # of the product's operands: float32, or a half type that the device multiplies
) -> Right:
    parts = [rows.T for rows in blocks]
    if factor is not None:
        parts.append(factor)
    joined = torch.cat(parts, dim=1)
    if dtype in half_products.HALVES:
        return half_products.on(half_products.split(joined, dtype), device)
    return joined.to(device, torch.float32)


def products(x: Tensor, right: Right) -> Tensor:  # [N, D] -> [N, 3·C + r] float32
    if isinstance(right, Parts):
        return half_products.multiply(x, right)
    return half_products.product(x, right)


def blend_logits(
    x: Tensor,  # [N, D]
    right: Right,  # from `join_operand`
    classes: int,
    weights: Tensor | None,  # [C] float32 exp(s·D_c)
    params: BlendParams,
    *,
    labels: Tensor | None = None,  # [N] int64, written
    logits: Tensor | None = None,  # [N, C] float32, written
) -> None:
    """Writes what is given, block by block of rows."""
    cols = (right.matrix if isinstance(right, Parts) else right).shape[1]
    x = x.detach() if x.stride(1) == 1 else x.detach().contiguous()
    step = max(1, _VALUES // cols)
    for i in range(0, x.shape[0], step):
        rows = x[i : i + step]
        z = products(rows, right)
        _C.blend_logits_cuda(
            view(rows), view(z), classes, cols - 3 * classes, 0 if weights is None else weights.data_ptr(),
            *params[1:], *(0 if t is None else t[i:].data_ptr() for t in (labels, logits)), *place(x),
        )  # fmt: skip
