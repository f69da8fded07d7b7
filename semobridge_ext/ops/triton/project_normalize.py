"""Many rows times a matrix, normalised while the products are still in registers.

    n = x·M + b      y = s·n/‖n‖  (or s·n)

A program owns BLOCK_N rows and all columns: the norm needs no second pass and n never goes to memory.
Accumulators are float32; 64 rows of 512 columns are 128 registers for each of 256 threads. Products of
half types are exact in float32; float32 itself is multiplied as float32 ("ieee"), never as TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from semobridge_ext.ops.triton import interpreted

MAX_COLUMNS = 2048
_ACCUMULATORS = 1 << 15  # of a program


@triton.jit
def project_normalize_fwd_kernel(
    x_ptr,  # [N, K]
    m_ptr,  # [K, M]
    bias_ptr,  # [M] float32
    out_ptr,  # [N, M]
    norms_ptr,  # [N] float32
    n,
    k,
    m,
    x_stride,
    m_stride,
    out_stride,
    scale,
    WIDEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_M)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + inner[None, :], mask=(rows < n)[:, None] & (inner < k)[None, :], other=0.0)
        w = tl.load(
            m_ptr + inner[:, None] * m_stride + cols[None, :],
            mask=(inner < k)[:, None] & (cols < m)[None, :],
            other=0.0,
        )
        if WIDEN:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + cols, mask=cols < m, other=0.0)[None, :]
    # An infinite row has NaN in its padding columns (0·∞): they are no part of it.
    acc = tl.where((cols < m)[None, :], acc, 0.0)
    if NORMALIZE:
        # Divided by the largest entry first: squares overflow before the norm does.
        largest = tl.max(tl.abs(acc), axis=1)
        divisor = tl.where(largest > 0, largest, 1.0)
        scaled = acc / divisor[:, None]
        norms = tl.sqrt(tl.sum(scaled * scaled, axis=1)) * divisor
        tl.store(norms_ptr + rows, norms, mask=rows < n)
        acc = acc * tl.where(norms == 0, 0.0, scale / norms)[:, None]
    else:
        acc = acc * scale
    tl.store(
        out_ptr + rows.to(tl.int64)[:, None] * out_stride + cols[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=(rows < n)[:, None] & (cols < m)[None, :],
    )


def blocks(columns: int) -> dict[str, int]:
    """The tile of a program for that many columns."""
    block_m = max(16, triton.next_power_of_2(columns))
    block_n = max(16, min(128, _ACCUMULATORS // block_m))
    return {"BLOCK_N": block_n, "BLOCK_K": 32, "BLOCK_M": block_m}


OPTIONS = {"num_warps": 8, "num_stages": 3}


def launch_project_normalize_fwd(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M], dtype of x
    bias: Tensor | None,  # [M] float32
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N] float32
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes and M <= MAX_COLUMNS."""
    x = x if x.stride(1) == 1 else x.contiguous()
    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    (n, k), m = x.shape, matrix.shape[1]
    # The interpreter truncates to bfloat16 where the compiler rounds.
    out = x.new_empty(n, m, dtype=torch.float32 if interpreted(x) else x.dtype)
    norms = torch.zeros(n, dtype=torch.float32, device=x.device)
    if n == 0:
        return out.to(x.dtype), norms
    tile = blocks(m)
    project_normalize_fwd_kernel[(triton.cdiv(n, tile["BLOCK_N"]),)](
        x, matrix, bias if bias is not None else norms, out, norms, n, k, m,
        x.stride(0), matrix.stride(0), out.stride(0), scale,
        WIDEN=interpreted(x), HAS_BIAS=bias is not None, NORMALIZE=normalize, **tile, **OPTIONS,
    )  # fmt: skip
    return out.to(x.dtype), norms
