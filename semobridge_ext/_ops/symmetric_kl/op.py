"""symmetric_kl: half the Kullback-Leibler divergence of two rows of logits, both ways, from one pass.

    p = softmax(a/t)     q = softmax(b/t)     d = log p − log q
    row = ½·KL(p‖q) + ½·KL(q‖p) = ½·Σ_k (p_k − q_k)·d_k

and, with g the gradient of a row,

    grad_a = g/(2t)·(p·(d − KL(p‖q)) + p − q)     grad_b = g/(2t)·(q·(−d − KL(q‖p)) + q − p)

The forward pass keeps six numbers a row, from which the backward pass makes p and q again; no softmax is
written by the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.backend import _C, requested
from semobridge_ext.runtime.choice import Answer, Kernels, choose, direct, in_transform, plain, see_through
from semobridge_ext.runtime.rows import compute_dtype, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, place, row_view, view

_NAME = "symmetric_kl"
STATS = (
    6  # largest a/t, log Σ exp of the rest; the same of b; KL(p‖q), KL(q‖p): csrc/symmetric_kl/symmetric_kl.h
)


def takes_triton(logits_a: Tensor, *_: object) -> Answer:
    return "float64" if logits_a.dtype is torch.float64 else True


KERNELS = Kernels(
    _NAME, lambda a, *_: a.dtype is not torch.float64, takes_triton, lambda a, *_: a.numel()
)  # by all logits: the kernels stream them

# -- programs: each returns rows [N] and stats [N, 6], or the two gradients -------------------------------


def _native(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    a, b = unit_columns(a), unit_columns(b)
    compute = compute_dtype(a.dtype)
    rows = a.new_empty(a.shape[0], dtype=compute)
    stats = a.new_empty(a.shape[0], STATS, dtype=compute)
    args = view(a), view(b), temperature, address(rows), address(stats)
    if a.is_cuda:
        _C.symmetric_kl_cuda(*args, *place(a))
    else:
        _C.symmetric_kl(*args, thread_count())
    return rows, stats


def _native_bwd(
    grad: Tensor, a: Tensor, b: Tensor, stats: Tensor, temperature: float, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor]:
    a, b, grad = unit_columns(a), unit_columns(b), grad.contiguous()
    grad_a, grad_b = (a.new_empty(a.shape if need else (0, 0)) for need in (need_a, need_b))
    views = [row_view(g if need else None) for g, need in ((grad_a, need_a), (grad_b, need_b))]
    args = view(a), view(b), temperature, address(grad), address(stats), *views
    if a.is_cuda:
        _C.symmetric_kl_bwd_cuda(*args, *place(a))
    else:
        _C.symmetric_kl_bwd(*args, thread_count())
    return grad_a, grad_b


def _eager_rows(a: Tensor, b: Tensor, temperature: float) -> Tensor:  # [N]
    """Open to autograd and function transforms."""
    compute = compute_dtype(a.dtype)
    log_p = torch.log_softmax(a.to(compute) / temperature, dim=1)
    log_q = torch.log_softmax(b.to(compute) / temperature, dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1) / 2


def _eager(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    compute = compute_dtype(a.dtype)
    u, v = a.to(compute) / temperature, b.to(compute) / temperature
    tops = u.amax(1, keepdim=True), v.amax(1, keepdim=True)
    logs = [torch.logsumexp(x - top, 1, keepdim=True) for x, top in zip((u, v), tops, strict=True)]
    log_p, log_q = u - tops[0] - logs[0], v - tops[1] - logs[1]
    p, q, d = log_p.exp(), log_q.exp(), log_p - log_q
    forward, backward = (p * d).sum(1, keepdim=True), -(q * d).sum(1, keepdim=True)
    stats = torch.cat([tops[0], logs[0], tops[1], logs[1], forward, backward], dim=1)
    return ((p - q) * d).sum(1) / 2, stats


def _eager_bwd(
    grad: Tensor, a: Tensor, b: Tensor, stats: Tensor, temperature: float, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor]:
    top_a, log_a, top_b, log_b, forward, backward = stats.unsqueeze(2).unbind(1)
    log_p = a.to(stats.dtype) / temperature - top_a - log_a
    log_q = b.to(stats.dtype) / temperature - top_b - log_b
    p, q, d = log_p.exp(), log_q.exp(), log_p - log_q
    share = grad.unsqueeze(1) / (2 * temperature)
    # Rows lie one after another, as the operator says, whatever the strides of a and b.
    empty = a.new_empty(0, 0)
    grad_a = (share * (p * (d - forward) + p - q)).to(a.dtype).contiguous() if need_a else empty
    grad_b = (share * (q * (-d - backward) + q - p)).to(b.dtype).contiguous() if need_b else empty.clone()
    return grad_a, grad_b


def _triton(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    from semobridge_ext._ops.symmetric_kl import triton

    return triton.symmetric_kl_fwd(a, b, temperature)


def _triton_bwd(
    grad: Tensor, a: Tensor, b: Tensor, stats: Tensor, temperature: float, need_a: bool, need_b: bool,
    triton: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from semobridge_ext._ops.symmetric_kl import triton as kernels

    return kernels.symmetric_kl_bwd(grad, a, b, stats, temperature, need_a, need_b)


# -- registered operators ----------------------------------------------------------------------------


@torch.library.custom_op("semobridge::symmetric_kl", mutates_args=())
def _symmetric_kl(
    a: Tensor,  # [N, K]
    b: Tensor,  # [N, K]
    temperature: float,
) -> tuple[Tensor, Tensor]:  # [N], [N, 6] float32, float64 for float64 logits
    run = {"eager": _eager, "triton": _triton, "native": _native}[choose(KERNELS, a, b)]
    with torch.autocast(a.device.type, enabled=False):
        return run(a, b, temperature)


@_symmetric_kl.register_fake
def _(a, b, temperature):
    compute = compute_dtype(a.dtype)
    return a.new_empty(a.shape[0], dtype=compute), a.new_empty(a.shape[0], STATS, dtype=compute)


@torch.library.custom_op("semobridge::symmetric_kl_bwd", mutates_args=())
def _symmetric_kl_bwd(
    grad: Tensor,  # [N]
    a: Tensor,  # [N, K]
    b: Tensor,  # [N, K]
    stats: Tensor,  # [N, 6]
    temperature: float,
    need_a: bool,
    need_b: bool,
    triton: bool,  # asked for in the forward pass; its `with` block has ended by now
) -> tuple[Tensor, Tensor]:  # [N, K] each; empty where not needed
    name = "triton" if triton else choose(KERNELS, a, b)
    run = {"eager": _eager_bwd, "triton": _triton_bwd, "native": _native_bwd}[name]
    with torch.autocast(a.device.type, enabled=False):
        return run(grad, a, b, stats, temperature, need_a, need_b)


@_symmetric_kl_bwd.register_fake
def _(grad, a, b, stats, temperature, need_a, need_b, triton):
    return a.new_empty(a.shape if need_a else (0, 0)), b.new_empty(b.shape if need_b else (0, 0))


def _setup_context(ctx, inputs, output) -> None:
    a, b, ctx.temperature = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(a, b, stats)
    ctx.triton = choose(KERNELS, a, b) == "triton"


def _backward(ctx, grad: Tensor, _grad_stats: Tensor | None):
    a, b, stats = ctx.saved_tensors
    need = ctx.needs_input_grad[:2]
    grads = torch.ops.semobridge.symmetric_kl_bwd(grad, a, b, stats, ctx.temperature, *need, ctx.triton)
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None


_symmetric_kl.register_autograd(_backward, setup_context=_setup_context)
see_through(_symmetric_kl, takes_triton, _triton)
see_through(_symmetric_kl_bwd, lambda grad, a, *_: takes_triton(a), _triton_bwd)


# -- the public function -----------------------------------------------------------------------------


def _check(a: Tensor, b: Tensor, temperature: float) -> float:
    for name, value in (("logits_a", a), ("logits_b", b)):
        _errors.check_float_tensor(_NAME, name, value)
        if value.dim() != 2 or value.shape[1] == 0:
            remedy = "pass one row of logits per item, flattened to two axes"
            raise ValueError(_errors.message(_NAME, name, "be [N, K] with K > 0", value, remedy))
    if b.shape != a.shape:
        remedy = "both sides score the same items and classes"
        raise ValueError(_errors.message(_NAME, "logits_b", f"be {list(a.shape)}", b, remedy))
    if b.dtype is not a.dtype:
        remedy = f"convert it with .to({a.dtype})"
        raise TypeError(_errors.message(_NAME, "logits_b", f"be {a.dtype}", b, remedy))
    _errors.check_same_device(_NAME, "logits_b", b, a.device)
    if not _numbers.is_real(temperature):
        raise TypeError(_errors.message(_NAME, "temperature", "be a number", temperature, "pass a float"))
    if not 0 < temperature < math.inf:
        remedy = "1.0 leaves the logits as they are"
        raise ValueError(_errors.message(_NAME, "temperature", "be positive and finite", temperature, remedy))
    return float(temperature)


def symmetric_kl(
    logits_a: Tensor,  # [N, K]
    logits_b: Tensor,  # [N, K]
    *,
    temperature: float = 1.0,
) -> Tensor:  # scalar
    """The mean over rows of ½·KL(p‖q) + ½·KL(q‖p), with ``p = softmax(a/t)`` and ``q = softmax(b/t)``.

    Half of Jeffreys' divergence: a loss that pulls two classifiers together, student and teacher alike.

    Args:
        logits_a: [N, K] float32, float64, bfloat16 or float16; any scale, no softmax applied.
        logits_b: [N, K] in the same dtype, on the same device.
        temperature: t > 0. Nothing is multiplied by t².

    Returns:
        A scalar, float32 (float64 for float64 logits); 0 for an empty batch.

    Raises:
        TypeError: not a tensor, not the dtype named above, or a temperature that is no number.
        ValueError: shapes or devices that do not fit, or a temperature that is not positive.

    Numerics: float32 sums (float64 for float64), in one fixed order per row, whatever the batch and the
        threads; the error is a few ulp of the rows' spread of log p − log q. NaN and infinite logits make
        their own row, and so the mean, NaN or infinite; gradients of other rows do not feel it.
        Differentiable once in both sides.

    Memory: 7 numbers a row; no softmax array (plain PyTorch: several).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.ops.symmetric_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(0.3808)
    """
    temperature = _check(logits_a, logits_b, temperature)
    if in_transform():
        rows = _eager_rows(logits_a, logits_b, temperature)
    elif direct(logits_a, logits_b) == "cpu" and plain(logits_b):
        rows, _ = _native(logits_a, logits_b, temperature)
    else:
        rows, _ = _symmetric_kl(logits_a, logits_b, temperature)
    return rows.mean() if rows.shape[0] else rows.sum()


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel, both passes."""
    a, b = (self_check.fixed(5, 41, device=device, dtype=dtype, seed=i) for i in range(2))
    rows, stats = _symmetric_kl(a, b, 0.5)
    grad = torch.ones_like(rows)
    return [rows, *_symmetric_kl_bwd(grad, a, b, stats, 0.5, True, True, requested() == "triton")]


self_check.register(_NAME, _check_kernel)
