"""Many rows times a matrix, normalised while the products are still in registers.

    n = x·M + b      y = s·n/‖n‖  (or s·n)

A program owns BLOCK_N rows and all columns: the norm needs no second pass and n never goes to memory.
Accumulators are float32; 64 rows of 512 columns are 128 registers for each of 256 threads. Products of
half types are exact in float32; float32 itself is multiplied as float32 ("ieee"), never as TF32.
Half rows with a float32 matrix meet it in two parts that add up to it (`split_matrix`), each on tensor
cores: one rounding of the matrix to a half type would cost half a unit in the result's last place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, interpreted

_ACCUMULATORS = 1 << 15  # of a program


@triton.jit(do_not_specialize=["bucket"])
def project_normalize_fwd_kernel(
    x_ptr,  # [N, K]
    m_ptr,  # [PARTS·K, M]
    bias_ptr,  # [M] or [N, M] float32
    out_ptr,  # [N, M]
    norms_ptr,  # [N] float32
    n,
    k,
    m,
    x_stride,
    m_stride,
    bias_stride,
    out_stride,
    scale,
    bucket,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_M)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        m_rows = m_ptr + part * k * m_stride
        for start in range(0, k, BLOCK_K):
            inner = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_rows + inner[None, :], mask=(rows < n)[:, None] & (inner < k)[None, :], other=0.0)
            w = tl.load(
                m_rows + inner[:, None] * m_stride + cols[None, :],
                mask=(inner < k)[:, None] & (cols < m)[None, :],
                other=0.0,
            )
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        b = bias_ptr + rows.to(tl.int64)[:, None] * bias_stride + cols[None, :]
        acc += tl.load(b, mask=(rows < n)[:, None] & (cols < m)[None, :], other=0.0)
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


def _single(a: Arguments) -> bool:
    return a["WIDEN"] or a["x_ptr"].element_size() == 4


def _accumulators(a: Arguments) -> int:
    """Of a program of 256 threads, so that none spills: operands of 4 bytes take registers too."""
    if _single(a) or (a["PARTS"] > 1 and a["BLOCK_M"] > 512):
        return _ACCUMULATORS >> 1
    return _ACCUMULATORS


def _fixed(a: Arguments) -> triton.Config:
    block_n = max(16, min(128, _accumulators(a) // a["BLOCK_M"]))
    if a["BLOCK_M"] > 1024:
        return config(8, 1, BLOCK_N=block_n, BLOCK_K=16)
    single = _single(a) or block_n * a["BLOCK_M"] < _ACCUMULATORS
    return config(8, 2 if single else 3, BLOCK_N=block_n, BLOCK_K=16 if single else 32)


def _fits(c: triton.Config, a: Arguments) -> bool:
    # What the compiler was seen to spill is left out (bench/gpu/triton_resources.py).
    block_n, block_k, block_m = c.kwargs["BLOCK_N"], c.kwargs["BLOCK_K"], a["BLOCK_M"]
    if block_m > (512 if c.num_warps < 8 else 1024) or (_single(a) and block_k > 16):
        return False
    if block_k == 16 and block_n > 16 and not _single(a):
        return False
    return block_n * block_m * 8 <= _accumulators(a) * c.num_warps


def _shared(c: triton.Config, a: Arguments) -> int:
    block_n, block_k = c.kwargs["BLOCK_N"], c.kwargs["BLOCK_K"]
    # The last stage is in registers, but not on Hopper's and Blackwell's units, which take 64 rows or more.
    stages = c.num_stages if block_n >= 64 else max(1, c.num_stages - 1)
    return stages * block_k * (block_n + a["BLOCK_M"]) * (4 if _single(a) else 2) + 1024


CONFIGS = [
    config(8, 3, BLOCK_N=128, BLOCK_K=32),
    config(8, 3, BLOCK_N=64, BLOCK_K=32),
    config(8, 2, BLOCK_N=64, BLOCK_K=64),
    config(8, 3, BLOCK_N=32, BLOCK_K=32),
    config(4, 3, BLOCK_N=16, BLOCK_K=32),
    config(8, 2, BLOCK_N=32, BLOCK_K=16),
    config(8, 2, BLOCK_N=16, BLOCK_K=16),
]
KERNEL = Kernel(project_normalize_fwd_kernel, CONFIGS, _fixed, _fits, _shared)


def split_matrix(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """[PARTS·K, M] for rows of that dtype, and PARTS: the sum of the parts is the matrix to 2^-17.

    bfloat16 rows take bfloat16 parts. float16's range is too small for parts of a float32 matrix: they
    are float32 numbers that TF32 holds exactly, as it holds float16 rows.
    """
    if matrix.dtype is dtype:
        return matrix, 1
    matrix = matrix.to(torch.float32)
    if dtype is torch.float32:
        return matrix, 1
    high = matrix.to(torch.bfloat16) if dtype is torch.bfloat16 else _round_tf32(matrix)
    low = matrix - high.to(torch.float32)
    # What is infinite has no remainder: ∞ − ∞ would spoil it.
    low = torch.where(torch.isfinite(matrix), low, torch.zeros_like(low))
    return torch.cat([high, low.to(torch.bfloat16) if dtype is torch.bfloat16 else _round_tf32(low)]), 2


def _round_tf32(x: Tensor) -> Tensor:
    """To 10 bits of fraction; NaN and infinity stay."""
    bits = (x.view(torch.int32) + 0x1000) & ~0x1FFF
    return torch.where(torch.isfinite(x), bits.view(torch.float32), x)


def launch_project_normalize_fwd(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [PARTS·K, M] of `split_matrix`
    bias: Tensor | None,  # [M] or [N, M] float32
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N] float32
    """Runs on the current stream; the caller has checked kinds, dtypes, shapes and MAX_COLUMNS."""
    x = x if x.stride(1) == 1 else x.contiguous()
    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    if bias is not None and bias.stride(-1) != 1:
        bias = bias.contiguous()
    (n, k), m = x.shape, matrix.shape[1]
    # The interpreter truncates to bfloat16 where the compiler rounds.
    out = x.new_empty(n, m, dtype=torch.float32 if interpreted(x) else x.dtype)
    norms = torch.zeros(n, dtype=torch.float32, device=x.device)
    if n == 0:
        return out.to(x.dtype), norms
    widen = interpreted(x) or matrix.dtype is not x.dtype
    KERNEL.launch(
        x, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),),
        x, matrix, norms if bias is None else bias, out, norms, n, k, m,
        x.stride(0), matrix.stride(0), 0 if bias is None or bias.dim() == 1 else bias.stride(0),
        out.stride(0), scale, bucket(x, n, k, m),
        WIDEN=widen, PRECISION="tf32" if matrix.dtype is not x.dtype else "ieee",
        PARTS=matrix.shape[0] // k, HAS_BIAS=bias is not None, NORMALIZE=normalize,
        BLOCK_M=max(16, triton.next_power_of_2(m)),
    )  # fmt: skip
    return out.to(x.dtype), norms


@triton_op("semobridge::project_normalize_triton", mutates_args=())
def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    """The launch as an operator: a call runs the kernel, torch.compile records it."""
    bias = None if bias is None else bias.to(torch.float32)
    return launch_project_normalize_fwd(x, split_matrix(matrix, x.dtype)[0], bias, scale, normalize)


class Projection:
    """``scale·norm(x·matrix + bias)`` in one kernel, with the matrix split once for each dtype of rows.

    Args:
        matrix: [K, M] on any device; kept in float32 on `device`. bias: [M] or None, likewise.
        device: of the rows.
        normalize: False skips the norm.
        scale: length of the rows that come out, or a plain factor.

    Numerics: float32 sums of exact products; half rows meet the float32 matrix in two parts.

    Memory: the matrix, and its parts for each half dtype that rows had.
    """

    def __init__(
        self,
        matrix: Tensor,  # [K, M]
        bias: Tensor | None,  # [M]
        device: torch.device,
        *,
        normalize: bool = True,
        scale: float = 1.0,
    ) -> None:
        self._matrix = matrix.detach().to(device, torch.float32).contiguous()
        bias = None if bias is None else bias.detach().to(device, torch.float32)
        self._finish = bias, scale, normalize  # what follows the product
        self._parts: dict[torch.dtype, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        if x.dtype not in self._parts:
            self._parts[x.dtype] = split_matrix(self._matrix, x.dtype)[0]
        rows = x.detach().reshape(-1, x.shape[-1])
        out, _ = launch_project_normalize_fwd(rows, self._parts[x.dtype], *self._finish)
        return out.reshape(*x.shape[:-1], out.shape[1])
