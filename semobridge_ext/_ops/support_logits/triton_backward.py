"""The gradients of the class sums, streamed: no [N, S] array, no atomics, one fixed order.

    e_ns = exp(β(⟨q_n, k_s⟩ − 1))        P_ns = g[n, y_s]·e_ns
    grad_q[n] = β Σ_s w_s·P_ns·k_s       grad_k[s] = β·w_s Σ_n P_ns·q_n       grad_w[s] = Σ_n P_ns

All three have one shape: rows are owned, other rows stream past, the tile P of the two is made again from
their products, and it weights the sum of the streaming rows (or is summed itself). A program owns BLOCK_A
rows and BLOCK_O columns of the gradient, and the streaming rows of one split; the splits' sums are added
in order afterwards. Owned rows of a half type stay on the chip, where D allows it. Labels say which gradient
a pair has, so that the keys may lie in any order; a label out of range has none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from semobridge_ext._ops.support_logits.triton import _columns, row_parts
from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config, product_of

_PROGRAMS = 256  # that fill a large GPU
_PARTIAL_BYTES = 64 << 20  # of all splits' sums


@triton.jit
def _to_tf32(x):
    """Rounded to the 10 bits of fraction that TF32 keeps, so that tensor cores drop none.

    NaN is left alone: the largest of its patterns would be carried into a number.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit(do_not_specialize=["bucket"])
def support_logits_bwd_kernel(
    a_ptr,  # [A, D] owned rows: queries, or keys with OWN_KEYS
    b_ptr,  # [B, D] streaming rows: the others
    labels_ptr,  # [S] int64
    weights_ptr,  # [S] float32
    grad_ptr,  # [C, N] float32, the gradient of the sums, transposed
    out_ptr,  # [SPLITS, A, D] float32
    sums_ptr,  # [SPLITS, A] float32
    a_rows,
    b_rows,
    d,
    classes,
    a_stride,
    b_stride,
    grad_stride,
    split_rows,
    beta,
    bucket,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SUMS: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    cols = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    a_at = a_ptr + rows.to(tl.int64) * a_stride
    owned = rows < a_rows
    total = tl.zeros((BLOCK_A, BLOCK_O), dtype=tl.float32)
    sums = tl.zeros((BLOCK_A,), dtype=tl.float32)
    if OWN_KEYS:
        own_labels = tl.load(labels_ptr + rows, mask=owned, other=-1)
        owned = owned & (own_labels >= 0) & (own_labels < classes)
    if BLOCK_D == 0:
        a0 = _columns(a_at, owned, d, 0, D0, EVEN)
        if WIDEN:
            a0 = a0.to(tl.float32)
        if D1 > 0:
            a1 = _columns(a_at, owned, d, D0, D1, EVEN)
            if WIDEN:
                a1 = a1.to(tl.float32)
    for first in range(split * split_rows, tl.minimum((split + 1) * split_rows, b_rows), BLOCK_B):
        other = first + tl.arange(0, BLOCK_B)
        valid = other < b_rows
        b_at = b_ptr + other.to(tl.int64) * b_stride
        acc = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.float32)
        if BLOCK_D == 0:
            b0 = _columns(b_at, valid, d, 0, D0, EVEN)
            if WIDEN:
                b0 = b0.to(tl.float32)
            acc = tl.dot(a0, tl.trans(b0), acc, input_precision=PRECISION)
            if D1 > 0:
                b1 = _columns(b_at, valid, d, D0, D1, EVEN)
                if WIDEN:
                    b1 = b1.to(tl.float32)
                acc = tl.dot(a1, tl.trans(b1), acc, input_precision=PRECISION)
        else:
            for start in range(0, d, BLOCK_D):
                inner = start + tl.arange(0, BLOCK_D)
                inside = (inner < d)[None, :]
                a = tl.load(a_at[:, None] + inner[None, :], mask=owned[:, None] & inside, other=0.0)
                b = tl.load(b_at[:, None] + inner[None, :], mask=valid[:, None] & inside, other=0.0)
                if WIDEN:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        if OWN_KEYS:
            pairs = own_labels[:, None] * grad_stride + other[None, :]
            live = owned[:, None] & valid[None, :]
        else:
            labels = tl.load(labels_ptr + other, mask=valid, other=-1)
            pairs = labels[None, :] * grad_stride + rows[:, None]
            live = owned[:, None] & (valid & (labels >= 0) & (labels < classes))[None, :]
        p = tl.load(grad_ptr + pairs, mask=live, other=0.0) * tl.exp(beta * (acc - 1.0))
        p = tl.where(live, p, 0.0)
        if SUMS:
            sums += tl.sum(p, axis=1)
        if GRADIENT:
            if HAS_WEIGHTS and not OWN_KEYS:
                p *= tl.load(weights_ptr + other, mask=valid, other=0.0)[None, :]
            if BLOCK_D == 0 and BLOCK_O == D0 and D1 == 0:
                b = b0.to(tl.float32)  # all of its columns, already here
            else:
                mask = valid[:, None] & (cols < d)[None, :]
                b = tl.load(b_at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            if EXACT:
                total = tl.dot(p, b, total, input_precision="ieee")
            else:
                total = tl.dot(_to_tf32(p), b, total, input_precision="tf32")
    place = (split * a_rows + rows).to(tl.int64)
    if GRADIENT:
        total *= beta
        if HAS_WEIGHTS and OWN_KEYS:
            total *= tl.load(weights_ptr + rows, mask=owned, other=0.0)[:, None]
        at = out_ptr + place[:, None] * d + cols[None, :]
        tl.store(at, total, mask=(rows < a_rows)[:, None] & (cols < d)[None, :])
    if SUMS:
        # Every slice of columns has the same sums: the first one stores them.
        tl.store(sums_ptr + place, sums, mask=(rows < a_rows) & (tl.program_id(1) == 0))


# Every slice of D makes the tile of P again: wide slices first.
# BLOCK_D = 0: the owned rows stay, and a streaming row is read once for both products.
RESIDENT = [config(8, 2, BLOCK_A=32, BLOCK_B=32, BLOCK_D=0, BLOCK_O=512)]
HALF = [
    config(8, 1, BLOCK_A=32, BLOCK_B=32, BLOCK_D=64, BLOCK_O=512),
    config(8, 1, BLOCK_A=32, BLOCK_B=32, BLOCK_D=64, BLOCK_O=256),
    config(8, 1, BLOCK_A=64, BLOCK_B=32, BLOCK_D=64, BLOCK_O=256),
    config(8, 1, BLOCK_A=64, BLOCK_B=64, BLOCK_D=64, BLOCK_O=128),
]
SINGLE = [
    config(8, 1, BLOCK_A=16, BLOCK_B=16, BLOCK_D=16, BLOCK_O=512),
    config(8, 1, BLOCK_A=32, BLOCK_B=16, BLOCK_D=16, BLOCK_O=256),
    config(4, 1, BLOCK_A=32, BLOCK_B=16, BLOCK_D=16, BLOCK_O=128),
]


def _list(a: Arguments) -> list[triton.Config]:
    if a["EXACT"]:
        return SINGLE
    width = a["D0"] + a["D1"]
    stays = a["a_ptr"].dtype is a["b_ptr"].dtype and a["EVEN"] and 256 < width <= 768
    return RESIDENT + HALF if stays else HALF


def _fits(c: triton.Config, a: Arguments) -> bool:
    # Columns past D would be made for nothing.
    most = max(128, triton.next_power_of_2(a["d"]))
    return c in _list(a) and c.kwargs["BLOCK_O"] <= most


def _fixed(a: Arguments) -> triton.Config:
    return next(c for c in _list(a) if _fits(c, a))


def _shared(c: triton.Config, a: Arguments) -> int:
    """The owned rows, and the blocks of streaming ones on their way."""
    if c.kwargs["BLOCK_D"] > 0:
        return 0
    rows = c.kwargs["BLOCK_A"] + c.num_stages * c.kwargs["BLOCK_B"]
    return 2 * (a["D0"] + a["D1"]) * rows + 1024


KERNEL = Kernel(support_logits_bwd_kernel, RESIDENT + HALF + SINGLE, _fixed, _fits, _shared)


def _splits(owned: int, streaming: int, width: int) -> int:
    """Parts of the streaming rows, so that few owned rows fill a GPU too; of shapes alone."""
    wanted = _PROGRAMS // max(1, triton.cdiv(owned, 32) * triton.cdiv(width, 256))
    most = _PARTIAL_BYTES // max(1, 4 * owned * width)
    return max(1, min(wanted, most, streaming // 256, 32))


def _launch(
    own: Tensor,  # [A, D]
    stream: Tensor,  # [B, D]
    labels: Tensor,
    weights: Tensor | None,
    grad: Tensor,  # [C, N]
    beta: float,
    own_keys: bool,
    gradient: bool,
    sums: bool,
) -> tuple[Tensor, Tensor]:  # [A, D], [A] float32; an unneeded one is empty
    (a, d), b, classes = own.shape, stream.shape[0], grad.shape[0]
    new = grad.new_zeros
    if a == 0 or b == 0:
        return new((a, d) if gradient else 0), new(a if sums else 0)
    splits = _splits(a, b, d)
    split_rows = triton.cdiv(triton.cdiv(b, splits), 64) * 64
    out = grad.new_empty((splits, a, d) if gradient else (1,))
    totals = grad.new_empty((splits, a) if sums else (1,))
    widen, precision = product_of(own, stream)
    first, second = row_parts(d)
    KERNEL.launch(
        own,
        lambda meta: (
            triton.cdiv(a, meta["BLOCK_A"]), triton.cdiv(d, meta["BLOCK_O"]) if gradient else 1, splits,
        ),
        own, stream, labels, grad if weights is None else weights, grad, out, totals,
        a, b, d, classes, own.stride(0), stream.stride(0), grad.stride(0), split_rows, beta,
        bucket(own, a, b, d),
        WIDEN=widen, PRECISION=precision, EXACT=torch.float32 in (own.dtype, stream.dtype),
        OWN_KEYS=own_keys, HAS_WEIGHTS=weights is not None, GRADIENT=gradient, SUMS=sums,
        D0=first, D1=second, EVEN=first + second == d,
    )  # fmt: skip
    return (
        (out.sum(0) if splits > 1 else out[0]) if gradient else new(0),
        (totals.sum(0) if splits > 1 else totals[0]) if sums else new(0),
    )


def launch_support_logits_bwd(
    grad: Tensor,  # [N, C] float32
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S] float32; an unneeded one is empty
    """Runs on the current stream; the caller has checked kinds, dtypes and shapes.

    Numerics: the products of P with half rows take P in TF32, rounded to nearest: 2^-11 of each term.
    """
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    keys = keys if keys.stride(1) == 1 else keys.contiguous()
    labels = labels.contiguous()
    g = grad.T.contiguous()  # neighbouring queries of one class lie side by side
    none = grad.new_empty(0)
    grad_q = grad_k = grad_w = none
    if need_queries:
        grad_q, _ = _launch(queries, keys, labels, weights, g, beta, False, True, False)
    if need_keys or need_weights:
        grad_k, grad_w = _launch(keys, queries, labels, weights, g, beta, True, need_keys, need_weights)
    return grad_q, grad_k, grad_w


@triton_op("semobridge::support_logits_bwd_triton", mutates_args=())
def support_logits_bwd_launch(
    grad: Tensor,  # [N, C] float32
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    beta: float,
    weights: Tensor | None,  # [S] float32
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S] float32; an unneeded one is empty
    """The launches as an operator: a call runs the kernels, torch.compile records them."""
    return launch_support_logits_bwd(
        grad, queries, keys, labels, beta, weights, need_queries, need_keys, need_weights
    )


def support_logits_bwd(
    grad: Tensor,  # [N, C]
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S] int64
    weights: Tensor | None,  # [S]
    beta: float,
    need_queries: bool,
    need_keys: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [S, D], [S]; an unneeded one is empty
    """The gradients' operator by these kernels."""
    wide = None if weights is None else weights.to(torch.float32).contiguous()
    grad_q, grad_k, grad_w = support_logits_bwd_launch(
        grad.to(torch.float32), queries, keys, labels, beta, wide, need_queries, need_keys, need_weights
    )
    dtype = torch.float32 if weights is None else weights.dtype
    return grad_q.to(queries.dtype), grad_k.to(keys.dtype), grad_w.to(dtype)
