"""Products of rows in a half type, with float32 sums and a float32 result.

Products of bfloat16 or float16 numbers are exact in float32, so cuBLAS's tensor cores with a float32 result
(`torch.mm(out_dtype=)`, PyTorch 2.8) lose nothing against widened operands and take a sixteenth of the time.
A matrix of float32 meets such rows in two parts that add up to it,

    M ≈ hi + lo      x·M = [x | x]·[hi ; lo]      error of M 2⁻¹⁷ (bfloat16) or 2⁻²² (float16)

below the rounding of the result to the half type. The parts stand under each other and the sum stays in the
product's own accumulator: PyTorch 2.8's `addmm` takes no float32 accumulator for half operands. In front of a
kernel that adds them up they may lie side by side, which saves the copy of x:

    x·[hi | lo] = [x·hi | x·lo]

Many rows of bfloat16 can do with one part. float16 holds their eight bits exactly once a power of two has
brought a row into its range, and a matrix rounded to it is eight times nearer than one rounded to bfloat16:
`rounded` makes that part, and who multiplies by it scales the rows.

Devices and versions without such products get widened operands.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext.runtime.rows import compute_dtype

HALVES = (torch.bfloat16, torch.float16)
SPLIT_ROWS = 2048  # from here on cutting a matrix for one call alone costs less than widening the rows
_LEAST, _MOST = 2.0**-4, 2.0**12  # of a largest entry whose float16 parts keep 22 bits as they are
_BROUGHT_TO = 8  # the exponent that the largest entry of another matrix gets


class Parts(NamedTuple):
    """A right operand for rows of one half type."""

    matrix: Tensor  # [number·K, M] of that type, or [K, number·M] with `beside`
    number: int
    beside: bool = False
    unscale: Tensor | None = None  # [] float32, a power of two that the product is multiplied by


@lru_cache(maxsize=64)
def _capable(device: torch.device, dtype: torch.dtype) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return False
    if "dtype" not in torch.ops.aten.mm.overloads():
        return False
    return torch.cuda.get_device_capability(device)[0] >= (8 if dtype is torch.bfloat16 else 7)


def served(x: Tensor) -> bool:
    """Whether rows like these are multiplied as they are: a half type, on a device whose cores take it."""
    return x.dtype in HALVES and x.is_cuda and _capable(x.device, x.dtype)


def _mm(x: Tensor, matrix: Tensor) -> Tensor:  # [N, K], [K, M] of one half type -> [N, M] float32
    return torch.mm(x, matrix, out_dtype=torch.float32)


def _mm_into(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    torch.mm(x, matrix, out_dtype=torch.float32, out=out)


def _float16_scale(matrix: Tensor) -> Tensor | None:
    """[] a power of two that brings the matrix into float16's range; None: it lies there.

    On a GPU it is never None: looking would wait for the device.
    """
    largest = matrix.abs().amax() if matrix.numel() else matrix.new_ones(())
    usable = (largest > 0) & torch.isfinite(largest)
    if matrix.device.type == "cpu" and (not usable or _LEAST <= float(largest) < _MOST):
        return None
    exponent = (_BROUGHT_TO - torch.frexp(largest)[1]).clamp(-120, 120)
    return torch.where(usable, torch.exp2(exponent.to(matrix.dtype)), torch.ones_like(largest))


def split(matrix: Tensor, dtype: torch.dtype, *, beside: bool = False) -> Parts:  # [K, M]
    """A matrix of any float dtype as rows of a half type meet it; one part where it has their dtype.

    With `beside` the parts lie side by side, and so do their products.
    """
    matrix = matrix.detach()
    if matrix.dtype is dtype:
        return Parts(matrix, 1)
    matrix = matrix.to(compute_dtype(matrix.dtype))
    scale = _float16_scale(matrix) if dtype is torch.float16 else None
    if scale is not None:
        matrix = matrix * scale
    high = matrix.to(dtype)
    low = matrix - high.to(matrix.dtype)
    # What is infinite has no remainder: ∞ − ∞ would make another number of it.
    low = torch.where(torch.isfinite(high), low, torch.zeros_like(low)).to(dtype)
    unscale = None if scale is None else scale.reciprocal().to(torch.float32)
    return Parts(torch.cat([high, low], dim=int(beside)), 2, beside, unscale)


def rounded(matrix: Tensor, dtype: torch.dtype) -> Parts:  # [K, M]
    """A matrix of any float dtype in one part: half a unit of an entry is left out."""
    matrix = matrix.detach().to(compute_dtype(matrix.dtype))
    scale = _float16_scale(matrix) if dtype is torch.float16 else None
    if scale is None:
        return Parts(matrix.to(dtype), 1)
    return Parts((matrix * scale).to(dtype), 1, unscale=scale.reciprocal().to(torch.float32))


def on(parts: Parts, device: torch.device) -> Parts:
    """The same on a device."""
    unscale = None if parts.unscale is None else parts.unscale.to(device)
    return parts._replace(matrix=parts.matrix.to(device), unscale=unscale)


def multiply(x: Tensor, parts: Parts) -> Tensor:  # [N, K] -> [N, M] float32; [N, number·M] with `beside`
    """Rows that are `served` times a matrix that `split` made for them."""
    with torch.autocast(x.device.type, enabled=False):
        whole = parts.beside or parts.number == 1
        z = _mm(x if whole else torch.cat([x] * parts.number, dim=1), parts.matrix)
        return z if parts.unscale is None else z.mul_(parts.unscale)


def product(x: Tensor, matrix: Tensor) -> Tensor:  # [N, K], [K, M] -> [N, M] float32, float64 of float64 rows
    """``x·matrix`` with wide sums, whatever autocast says; not differentiable where `served`.

    Rows of a half type with a matrix of their own dtype, and many of them with any matrix, are multiplied
    as they are; all others are widened to the dtype of the sums.
    """
    if served(x) and (matrix.dtype is x.dtype or x.shape[0] >= SPLIT_ROWS):
        return multiply(x, split(matrix, x.dtype))
    compute = compute_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(compute) @ matrix.to(compute)


def product_into(out: Tensor, x: Tensor, matrix: Tensor) -> None:  # [N, M] float32, [N, K], [K, M]
    """``x·matrix`` into ready memory: two operands of one half type as they are, others widened.

    A matrix of another dtype is never cut into parts: what they leave out would decide between near
    neighbours.
    """
    with torch.autocast(x.device.type, enabled=False):
        if served(x) and matrix.dtype is x.dtype:
            _mm_into(x, matrix, out)
        else:
            torch.mm(x.to(torch.float32), matrix.to(torch.float32), out=out)
