"""Triton kernels and launchers of the large fused products; imported only where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_COLUMNS = {2: 2048, 4: 1024}  # of project_normalize, whose program holds whole rows; by operand's bytes
MAX_LIST = 128  # of topk: candidates that one program keeps per query


def interpreted(tensor: Tensor) -> bool:
    """True where Triton's interpreter runs the kernels (CPU tensors).

    Triton 3.8's interpreter multiplies the bits of bfloat16 as integers; the kernels widen for it. The
    products are the same: those of half types are exact in float32.
    """
    return not tensor.is_cuda


def product_of(a: Tensor, b: Tensor) -> tuple[bool, str]:
    """Whether a product's operands are widened to float32, and the precision of that product.

    Two half types multiply exactly on tensor cores: as they are, or, if they differ, as TF32.
    """
    if a.dtype is b.dtype:
        return interpreted(a), "ieee"
    return True, "ieee" if torch.float32 in (a.dtype, b.dtype) else "tf32"
