"""Logits and their cross-entropy for SeMoBridge-T: the [N, C] array of logits never exists.

    l_nc = (⟨f_n, R_c⟩ + a[y_n, c])·s_n      p = softmax(l)      G_nc = κ·(p_nc − [c = y_n])
    loss_n = κ·(lse_n − l_n[y_n])            dot_n = Σ_c G_nc·l_nc
    Z = fᵀ(s∘G)  [D, C]                      Y_yc = Σ over the rows of class y of s_n·G_nc  [C, C]

as `row_loss` of csrc/bridge_training/bridge_training.h and the products around it compute them. The forward
kernel owns rows and streams classes (running maximum, Σ exp, Σ exp·l). The backward kernel owns a tile of
classes and a slice of D, streams rows in class order, recomputes each tile of logits and adds its product
with f to Z; it stores a class's row of Y once, after the last row of the class. No atomics: the rows are
split between classes, and the sums of the splits are added in order.

Products are float32, as SeMoBridge-T trains. Labels must be sorted. This saves memory, not time: cuBLAS's
products with the native loss between them are several times as fast, so only a request chooses these kernels.
"""

from __future__ import annotations

import bisect

import torch
import triton
import triton.language as tl
from torch import Tensor

from semobridge_ext.runtime.triton_tuning import Arguments, Kernel, bucket, config

_PROGRAMS = 256  # that fill a large GPU


@triton.jit
def _logits(
    f_ptr,
    r_ptr,
    add_ptr,
    rows,
    live,
    labels,
    scale,
    cols,
    d,
    classes,
    f_stride,
    r_stride,
    r_column,
    add_stride,
    HAS_ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    acc = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    f_at = f_ptr + rows.to(tl.int64)[:, None] * f_stride
    for start in range(0, d, BLOCK_D):
        inner = start + tl.arange(0, BLOCK_D)
        f = tl.load(f_at + inner[None, :], mask=live[:, None] & (inner < d)[None, :], other=0.0)
        r = tl.load(
            r_ptr + inner.to(tl.int64)[:, None] * r_stride + cols.to(tl.int64)[None, :] * r_column,
            mask=(inner < d)[:, None] & (cols < classes)[None, :],
            other=0.0,
        )
        acc = tl.dot(f, r, acc, input_precision="ieee")
    if HAS_ADD:
        at = add_ptr + labels[:, None] * add_stride + cols[None, :]
        acc += tl.load(at, mask=live[:, None] & (cols < classes)[None, :], other=0.0)
    return acc * scale[:, None]


@triton.jit(do_not_specialize=["bucket"])
def logits_cross_entropy_fwd_kernel(
    f_ptr,  # [N, D]
    r_ptr,  # [D, C], any strides
    labels_ptr,  # [N] int64
    scale_ptr,  # [N]
    add_ptr,  # [C, C]
    loss_ptr,  # [N]
    dot_ptr,  # [N]
    lse_ptr,  # [N]
    n,
    d,
    classes,
    f_stride,
    r_stride,
    r_column,
    add_stride,
    coefficient,
    bucket,
    HAS_ADD: tl.constexpr,
    HAS_DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = rows < n
    labels = tl.load(labels_ptr + rows, mask=live, other=0)
    scale = tl.load(scale_ptr + rows, mask=live, other=0.0)
    largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)  # Σ exp(l − largest)
    first_moment = tl.zeros((BLOCK_N,), dtype=tl.float32)  # Σ exp(l − largest)·l
    target = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(0, classes, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)
        logits = _logits(
            f_ptr, r_ptr, add_ptr, rows, live, labels, scale, cols, d, classes, f_stride, r_stride, r_column,
            add_stride, HAS_ADD, BLOCK_N, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        inside = (cols < classes)[None, :]
        target += tl.sum(tl.where(cols[None, :] == labels[:, None], logits, 0.0), axis=1)
        higher = tl.maximum(largest, tl.max(tl.where(inside, logits, float("-inf")), axis=1))
        factor = tl.exp(largest - higher)
        terms = tl.where(inside, tl.exp(logits - higher[:, None]), 0.0)
        total = total * factor + tl.sum(terms, axis=1)
        if HAS_DOT:
            # A term that vanished has no logit to weigh; 0·∞ would be NaN.
            moments = tl.where(terms == 0.0, 0.0, terms * logits)
            first_moment = first_moment * factor + tl.sum(moments, axis=1)
        largest = higher
    lse = largest + tl.log(total)
    tl.store(lse_ptr + rows, lse, mask=live)
    tl.store(loss_ptr + rows, coefficient * (lse - target), mask=live)
    if HAS_DOT:
        tl.store(dot_ptr + rows, coefficient * (first_moment / total - target), mask=live)


@triton.jit(do_not_specialize=["bucket"])
def logits_cross_entropy_bwd_kernel(
    f_ptr,  # [N, D]
    r_ptr,  # [D, C], any strides
    labels_ptr,  # [N] int64, sorted
    scale_ptr,  # [N]
    add_ptr,  # [C, C]
    lse_ptr,  # [N]
    bounds_ptr,  # [SPLITS + 1] int64, rows between classes
    z_ptr,  # [SPLITS, D, C]
    sums_ptr,  # [C, C], zero
    d,
    classes,
    f_stride,
    r_stride,
    r_column,
    add_stride,
    z_split,
    z_stride,
    sums_stride,
    coefficient,
    bucket,
    HAS_ADD: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    out_rows = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    begin, end = tl.load(bounds_ptr + split), tl.load(bounds_ptr + split + 1)
    z = tl.zeros((BLOCK_O, BLOCK_C), dtype=tl.float32)
    carry = tl.zeros((BLOCK_C,), dtype=tl.float32)  # of a class whose rows go on in the next tile
    places = tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        rows = first + places
        live = rows < end
        labels = tl.load(labels_ptr + rows, mask=live, other=-1)
        scale = tl.load(scale_ptr + rows, mask=live, other=0.0)
        lse = tl.load(lse_ptr + rows, mask=live, other=0.0)
        logits = _logits(
            f_ptr, r_ptr, add_ptr, rows, live, labels, scale, cols, d, classes, f_stride, r_stride, r_column,
            add_stride, HAS_ADD, BLOCK_N, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        p = tl.exp(logits - lse[:, None]) - tl.where(cols[None, :] == labels[:, None], 1.0, 0.0)
        g = tl.where(live[:, None] & (cols < classes)[None, :], coefficient * p * scale[:, None], 0.0)
        f = tl.load(
            f_ptr + rows.to(tl.int64)[None, :] * f_stride + out_rows[:, None],
            mask=live[None, :] & (out_rows < d)[:, None],
            other=0.0,
        )
        z = tl.dot(f, g, z, input_precision="ieee")
        if HAS_SUMS:
            before = tl.load(labels_ptr + rows - 1, mask=live & (places > 0), other=-1)
            after = tl.load(labels_ptr + rows + 1, mask=rows + 1 < end, other=-1)
            # The tile's classes, numbered from 0 in order; padding rows keep the last one's number.
            number = tl.cumsum((live & (places > 0) & (labels != before)).to(tl.int32), axis=0)
            mine = (number[None, :] == places[:, None]) & live[None, :]  # [class of the tile, row]
            per_class = tl.dot(mine.to(tl.float32), g, input_precision="ieee")
            per_class += tl.where((places == 0)[:, None], carry[None, :], 0.0)
            label = tl.max(tl.where(mine, labels[None, :], -1), axis=1)
            done = tl.max((mine & (after != labels)[None, :]).to(tl.int32), axis=1) > 0
            at = sums_ptr + label[:, None] * sums_stride + cols[None, :]
            stored = (done & (label >= 0))[:, None] & (cols < classes)[None, :] & (tl.program_id(1) == 0)
            tl.store(at, per_class, mask=stored)
            carry = tl.sum(tl.where(((label >= 0) & (done == 0))[:, None], per_class, 0.0), axis=0)
    at = z_ptr + split.to(tl.int64) * z_split + out_rows.to(tl.int64)[:, None] * z_stride + cols[None, :]
    tl.store(at, z, mask=(out_rows < d)[:, None] & (cols < classes)[None, :])


FWD_CONFIGS = [
    config(4, 2, BLOCK_N=32, BLOCK_C=64, BLOCK_D=16),
    config(8, 2, BLOCK_N=64, BLOCK_C=64, BLOCK_D=16),
    config(4, 2, BLOCK_N=16, BLOCK_C=64, BLOCK_D=32),
]
# Every slice of D makes the logits again: wide slices first.
BWD_CONFIGS = [
    config(8, 1, BLOCK_N=16, BLOCK_C=32, BLOCK_D=16, BLOCK_O=512),
    config(8, 1, BLOCK_N=16, BLOCK_C=64, BLOCK_D=16, BLOCK_O=256),
    config(8, 2, BLOCK_N=16, BLOCK_C=32, BLOCK_D=16, BLOCK_O=128),
    config(8, 1, BLOCK_N=32, BLOCK_C=32, BLOCK_D=32, BLOCK_O=128),
    config(4, 2, BLOCK_N=16, BLOCK_C=64, BLOCK_D=16, BLOCK_O=64),
]


def _fits_bwd(c: triton.Config, a: Arguments) -> bool:
    return c.kwargs["BLOCK_O"] <= max(64, triton.next_power_of_2(a["d"]))


def _fixed_bwd(a: Arguments) -> triton.Config:
    return next(c for c in BWD_CONFIGS if _fits_bwd(c, a))


FORWARD = Kernel(logits_cross_entropy_fwd_kernel, FWD_CONFIGS, lambda _: FWD_CONFIGS[0])
BACKWARD = Kernel(logits_cross_entropy_bwd_kernel, BWD_CONFIGS, _fixed_bwd, _fits_bwd)


def takes(features: Tensor) -> bool:
    """Whether the kernels take these rows: float32 alone."""
    return features.dtype is torch.float32


def row_bounds(offsets: Tensor, width: int) -> Tensor:  # [C + 1] int64 -> [SPLITS + 1] int64
    """Rows between which the backward kernel splits them, each at the beginning of a class.

    Computed once per batch, on the host, for the offsets' device: ``offsets`` are the classes' first rows,
    ``width`` is D.
    """
    at, classes = offsets.tolist(), offsets.numel() - 1
    programs = triton.cdiv(classes, 32) * triton.cdiv(width, 512)
    splits = max(1, min(_PROGRAMS // programs, at[-1] // 128, 16))
    wanted = [at[-1] * part // splits for part in range(1, splits)]
    inside = [at[bisect.bisect_left(at, row)] for row in wanted]
    return torch.tensor(sorted({0, *inside, at[-1]}), dtype=torch.int64, device=offsets.device)


def launch_logits_cross_entropy_fwd(
    features: Tensor,  # [N, D] float32
    right: Tensor,  # [D, C] float32, any strides
    labels: Tensor,  # [N] int64
    scale: Tensor,  # [N] float32
    coefficient: float,
    loss: Tensor,  # [N] written
    lse: Tensor,  # [N] written: what the backward launch needs
    add: Tensor | None = None,  # [C, C]
    dot: Tensor | None = None,  # [N] written
) -> None:
    """Runs on the current stream and allocates nothing; the caller has checked kinds, dtypes and shapes."""
    (n, d), classes = features.shape, right.shape[1]
    if n == 0:
        return
    FORWARD.launch(
        features, lambda meta: (triton.cdiv(n, meta["BLOCK_N"]),),
        features, right, labels, scale, loss if add is None else add, loss, loss if dot is None else dot, lse,
        n, d, classes, features.stride(0), right.stride(0), right.stride(1),
        0 if add is None else add.stride(0), coefficient, bucket(features, n, d, classes),
        HAS_ADD=add is not None, HAS_DOT=dot is not None,
    )  # fmt: skip


def launch_logits_cross_entropy_bwd(
    features: Tensor,  # [N, D] float32
    right: Tensor,  # [D, C] float32, any strides
    labels: Tensor,  # [N] int64, sorted
    scale: Tensor,  # [N] float32
    coefficient: float,
    lse: Tensor,  # [N] of the forward launch
    bounds: Tensor,  # [SPLITS + 1] int64, of `row_bounds`, on the device
    z: Tensor,  # [D, C] written, unit column stride
    partial: Tensor,  # [SPLITS, D, C] workspace; not used where SPLITS = 1
    add: Tensor | None = None,  # [C, C]
    sums: Tensor | None = None,  # [C, C] zero, written where a class has rows
) -> None:
    """Runs on the current stream and allocates nothing; the caller has checked kinds, dtypes and shapes."""
    (n, d), classes, splits = features.shape, right.shape[1], bounds.shape[0] - 1
    if n == 0:
        z.zero_()
        return
    target = partial if splits > 1 else z.unsqueeze(0)
    BACKWARD.launch(
        features,
        lambda meta: (triton.cdiv(classes, meta["BLOCK_C"]), triton.cdiv(d, meta["BLOCK_O"]), splits),
        features, right, labels, scale, lse if add is None else add, lse, bounds, target,
        lse if sums is None else sums, d, classes, features.stride(0), right.stride(0), right.stride(1),
        0 if add is None else add.stride(0), target.stride(0), target.stride(1),
        0 if sums is None else sums.stride(0), coefficient, bucket(features, n, d, classes),
        HAS_ADD=add is not None, HAS_SUMS=sums is not None,
    )  # fmt: skip
    if splits > 1:
        torch.sum(partial, dim=0, out=z)


class StreamedLoss:
    """Both launches for one batch, with what they need besides: made once, called at every step.

    Args:
        features: [N, D] float32, rows in class order. labels: [N] int64. offsets: [C + 1] int64.

    A call does what ``mm``, ``row_loss`` and ``z.addmm_(f.T, logits)`` do over all chunks of rows, and
    allocates nothing: a CUDA graph can capture it once its tiles are chosen.

    Numerics: float32 products and sums in one fixed order. A NaN row spoils Z, and Y for the classes of its
    tile.

    Memory: N + SPLITS·D·C values.
    """

    def __init__(self, features: Tensor, labels: Tensor, offsets: Tensor) -> None:
        self.features, self.labels = features, labels
        classes, width = offsets.numel() - 1, features.shape[1]
        self.bounds = row_bounds(offsets, width).to(features.device)
        self.lse = features.new_empty(len(features))
        self.partial = features.new_empty(max(0, len(self.bounds) - 1), width, classes)

    def __call__(
        self,
        right: Tensor,  # [D, C]
        scale: Tensor,  # [N]
        coefficient: float,
        loss: Tensor,  # [N] written
        z: Tensor,  # [D, C] written, unit column stride
        add: Tensor | None = None,  # [C, C]
        dot: Tensor | None = None,  # [N] written
        sums: Tensor | None = None,  # [C, C] zero, written where a class has rows
    ) -> None:
        head = (self.features, right, self.labels, scale, coefficient)
        launch_logits_cross_entropy_fwd(*head, loss, self.lse, add, dot)
        launch_logits_cross_entropy_bwd(*head, self.lse, self.bounds, z, self.partial, add, sums)
