"""Triton kernels and launchers of the large fused products; imported only where they are used."""

from __future__ import annotations

from torch import Tensor


def interpreted(tensor: Tensor) -> bool:
    """True where Triton's interpreter runs the kernels (CPU tensors).

    Triton 3.8's interpreter multiplies the bits of bfloat16 as integers; the kernels widen for it. The
    products are the same: those of half types are exact in float32.
    """
    return not tensor.is_cuda
