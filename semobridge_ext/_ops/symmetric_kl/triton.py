"""symmetric_kl by Triton: a program owns a few rows and runs over their logits once.

The sums of w = (u − u_0) − (v − v_0) are taken about w at u's largest logit, and moved when a larger one
comes: a constant between the two rows, or one odd logit of little weight, costs no digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, interpreted


@triton.jit
def _logits(ptr, rows, cols, live, stride, inverse):
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(at, mask=live, other=0.0).to(tl.float32) * inverse


@triton.jit(do_not_specialize=["bucket"])
def symmetric_kl_fwd_kernel(
    a_ptr,  # [N, K]
    b_ptr,  # [N, K]
    rows_ptr,  # [N] float32
    stats_ptr,  # [N, 6] float32
    n,
    classes,
    a_stride,
    b_stride,
    inverse,
    bucket,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < n
    top_a = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    top_b = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    sum_a = tl.zeros((BLOCK_N,), dtype=tl.float32)
    sum_b = tl.zeros((BLOCK_N,), dtype=tl.float32)
    moment_a = tl.zeros((BLOCK_N,), dtype=tl.float32)
    moment_b = tl.zeros((BLOCK_N,), dtype=tl.float32)
    centre = tl.zeros((BLOCK_N,), dtype=tl.float32)
    first_u = _logits(a_ptr, rows, tl.zeros((1,), tl.int32), inside[:, None], a_stride, inverse)
    first_v = _logits(b_ptr, rows, tl.zeros((1,), tl.int32), inside[:, None], b_stride, inverse)
    for first in range(0, classes, BLOCK_K):
        cols = first + tl.arange(0, BLOCK_K)
        live = inside[:, None] & (cols < classes)[None, :]
        u = _logits(a_ptr, rows, cols, live, a_stride, inverse)
        v = _logits(b_ptr, rows, cols, live, b_stride, inverse)
        w = (u - first_u) - (v - first_v)
        masked = tl.where(live, u, float("-inf"))
        at = tl.argmax(masked, axis=1)
        largest = tl.max(masked, axis=1)
        new_a = tl.maximum(top_a, largest)
        new_b = tl.maximum(top_b, tl.max(tl.where(live, v, float("-inf")), axis=1))
        here = tl.sum(tl.where(tl.arange(0, BLOCK_K)[None, :] == at[:, None], w, 0.0), axis=1)
        new_centre = tl.where(largest > top_a, here, centre)
        by_a = tl.where(top_a == new_a, 1.0, tl.exp(top_a - new_a))
        by_b = tl.where(top_b == new_b, 1.0, tl.exp(top_b - new_b))
        p = tl.where(live, tl.exp(u - new_a[:, None]), 0.0)
        q = tl.where(live, tl.exp(v - new_b[:, None]), 0.0)
        rest = w - new_centre[:, None]
        moment_a = by_a * (moment_a + (centre - new_centre) * sum_a) + tl.sum(p * rest, axis=1)
        moment_b = by_b * (moment_b + (centre - new_centre) * sum_b) + tl.sum(q * rest, axis=1)
        sum_a = by_a * sum_a + tl.sum(p, axis=1)
        sum_b = by_b * sum_b + tl.sum(q, axis=1)
        top_a, top_b, centre = new_a, new_b, new_centre
    log_a, log_b = tl.log(sum_a), tl.log(sum_b)
    mean_a, mean_b = moment_a / sum_a, moment_b / sum_b
    first = (tl.sum(first_u, axis=1) - top_a) - (tl.sum(first_v, axis=1) - top_b)
    offset = (centre + first) - (log_a - log_b)  # d = w − centre + offset
    tl.store(rows_ptr + rows, 0.5 * (mean_a - mean_b), mask=inside)
    out = stats_ptr + rows.to(tl.int64) * 6
    tl.store(out, top_a, mask=inside)
    tl.store(out + 1, log_a, mask=inside)
    tl.store(out + 2, top_b, mask=inside)
    tl.store(out + 3, log_b, mask=inside)
    tl.store(out + 4, mean_a + offset, mask=inside)
    tl.store(out + 5, -(mean_b + offset), mask=inside)


@triton.jit(do_not_specialize=["bucket"])
def symmetric_kl_bwd_kernel(
    a_ptr,  # [N, K]
    b_ptr,  # [N, K]
    grad_ptr,  # [N] float32
    stats_ptr,  # [N, 6] float32
    grad_a_ptr,  # [N, K]
    grad_b_ptr,  # [N, K]
    n,
    classes,
    a_stride,
    b_stride,
    inverse,
    bucket,
    NEED_A: tl.constexpr,
    NEED_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = rows < n
    live = inside[:, None] & (cols < classes)[None, :]
    of_row = stats_ptr + rows.to(tl.int64) * 6
    u = _logits(a_ptr, rows, cols, live, a_stride, inverse)
    v = _logits(b_ptr, rows, cols, live, b_stride, inverse)
    top_a = tl.load(of_row, mask=inside, other=0.0)[:, None]
    log_a = tl.load(of_row + 1, mask=inside, other=0.0)[:, None]
    top_b = tl.load(of_row + 2, mask=inside, other=0.0)[:, None]
    log_b = tl.load(of_row + 3, mask=inside, other=0.0)[:, None]
    forward = tl.load(of_row + 4, mask=inside, other=0.0)[:, None]
    backward = tl.load(of_row + 5, mask=inside, other=0.0)[:, None]
    x, y = (u - top_a) - log_a, (v - top_b) - log_b
    p, q, d = tl.exp(x), tl.exp(y), x - y
    factor = (0.5 * inverse * tl.load(grad_ptr + rows, mask=inside, other=0.0))[:, None]
    at = rows.to(tl.int64)[:, None] * classes + cols[None, :]
    if NEED_A:
        grad_a = factor * (p * (d - forward) + (p - q))
        tl.store(grad_a_ptr + at, grad_a.to(grad_a_ptr.dtype.element_ty), mask=live)
    if NEED_B:
        grad_b = factor * (q * (-d - backward) + (q - p))
        tl.store(grad_b_ptr + at, grad_b.to(grad_b_ptr.dtype.element_ty), mask=live)


CONFIGS = [
    config(4, 2, BLOCK_N=1, BLOCK_K=1024),
    config(4, 2, BLOCK_N=4, BLOCK_K=256),
    config(8, 2, BLOCK_N=1, BLOCK_K=1024),
]


def _fits(c: triton.Config, a: Arguments) -> bool:
    """Rows shorter than a tile would leave threads idle."""
    return c.kwargs["BLOCK_N"] > 1 or a["classes"] > 256


def _fixed(a: Arguments) -> triton.Config:
    return CONFIGS[0] if a["classes"] > 256 else CONFIGS[1]


FORWARD = Kernel(symmetric_kl_fwd_kernel, CONFIGS, _fixed, _fits)
BACKWARD = Kernel(symmetric_kl_bwd_kernel, CONFIGS, _fixed, _fits)


@triton_op("semobridge::symmetric_kl_triton", mutates_args=())
def symmetric_kl_fwd(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Rows [N] and stats [N, 6] of logits [N, K], float32; the caller has checked them."""
    a = a if a.stride(1) == 1 else a.contiguous()
    b = b if b.stride(1) == 1 else b.contiguous()
    n, classes = a.shape
    rows = torch.empty(n, dtype=torch.float32, device=a.device)
    stats = torch.empty(n, 6, dtype=torch.float32, device=a.device)
    if n:
        FORWARD.launch(
            a, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),),
            a, b, rows, stats, n, classes, a.stride(0), b.stride(0), 1 / temperature, bucket(a, n, classes),
        )  # fmt: skip
    return rows, stats


@triton_op("semobridge::symmetric_kl_bwd_triton", mutates_args=())
def symmetric_kl_bwd(
    grad: Tensor,  # [N] float32
    a: Tensor,  # [N, K]
    b: Tensor,  # [N, K]
    stats: Tensor,  # [N, 6] float32
    temperature: float,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:  # [N, K] each; empty where not needed
    a = a if a.stride(1) == 1 else a.contiguous()
    b = b if b.stride(1) == 1 else b.contiguous()
    n, classes = a.shape
    dtype = torch.float32 if interpreted(a) else a.dtype  # the interpreter cuts bfloat16 off
    grad_a, grad_b = (a.new_empty(a.shape if need else (0, 0), dtype=dtype) for need in (need_a, need_b))
    if n and (need_a or need_b):
        BACKWARD.launch(
            a, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), triton.cdiv(classes, meta["BLOCK_K"])),
            a, b, grad.contiguous(), stats, grad_a if need_a else a, grad_b if need_b else a, n, classes,
            a.stride(0), b.stride(0), 1 / temperature, bucket(a, n, classes), NEED_A=need_a, NEED_B=need_b,
        )  # fmt: skip
    return grad_a.to(a.dtype), grad_b.to(a.dtype)
