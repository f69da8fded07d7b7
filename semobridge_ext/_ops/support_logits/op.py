"""support_logits: the cache classifiers' class sums, streamed over the support set.

    out[n, c] = Σ_{s: y_s = c} w_s·e_ns          e_ns = exp(β(⟨q_n, k_s⟩ − 1))

and, with g the gradient of out and P_ns = g[n, y_s]·e_ns,

    grad_q = β·(P∘w)·K       grad_k = β·(P∘w)ᵀ·Q       grad_w[s] = Σ_n P_ns

Tip-Adapter (arXiv 2111.03930, eq. 3-5); with it Tip-Adapter-F, APE and SeMoBridge's caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.support_logits import cpu, eager, takes
from semobridge_ext._ops.support_logits.backward import support_logits_bwd
from semobridge_ext._ops.support_logits.checks import (
    check_beta,
    check_queries,
    check_support,
    support_tensors,
)
from semobridge_ext._ops.support_logits.class_order import ClassOrder, refuse_label, sort_by_class
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.backend import requested
from semobridge_ext.runtime.choice import choose, direct, in_transform, plain, see_through
from semobridge_ext.runtime.rows import compute_dtype

_NAME = "support_logits"


def _refuse_overflow(out: Tensor, queries: Tensor, keys: Tensor, weights: Tensor | None, beta: float) -> None:
    """Raises where a sum overflowed: it is infinite although every input is finite."""
    if out.numel() == 0 or out.device.type != "cpu" or bool(torch.isfinite(out.sum())):
        return
    finite = torch.isfinite(out)
    if bool(finite.all()) or not bool(torch.isfinite(keys).all()):
        return
    if weights is not None and not bool(torch.isfinite(weights).all()):
        return
    rows = torch.isfinite(queries).all(1) & ~finite.all(1)
    if not bool(rows.any()):
        return
    row = int(rows.nonzero()[0])
    got = f"an infinite sum for query {row}, class {int((~finite[row]).nonzero()[0])}"
    limit = 709.4 if compute_dtype(queries.dtype, keys.dtype) is torch.float64 else 88.3
    contract = f"keep beta·(⟨q, k⟩ − 1) below {limit} and the sums inside {out.dtype}"
    remedy = f"normalise queries and keys to unit rows, or lower beta={beta}"
    raise ValueError(_errors.message(_NAME, "queries and keys", contract, got, remedy))


def _triton(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    num_classes: int,
    beta: float,
) -> Tensor:
    from semobridge_ext._ops.support_logits import triton

    return triton.support_logits(queries, keys, labels, weights, order, offsets, num_classes, beta)


@torch.library.custom_op("semobridge::support_logits", mutates_args=())
def _support_logits(
    queries: Tensor,  # [N, D]
    keys: Tensor,  # [S, D]
    labels: Tensor,  # [S]
    weights: Tensor | None,  # [S]
    order: Tensor | None,  # [S]
    offsets: Tensor | None,  # [C + 1]; None: sort here
    num_classes: int,
    beta: float,
) -> Tensor:  # [N, C]
    name = choose(takes.KERNELS, queries, keys)
    if name == "eager":
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            bad = (labels < 0) | (labels >= num_classes)
            refuse_label(_NAME, labels, int(bad.nonzero()[0]), num_classes)
        out = eager.support_logits(queries, keys, labels, num_classes, beta, weights)
    else:
        if offsets is None:
            order, offsets = sort_by_class(labels, num_classes, _NAME)
        if name == "triton":
            out = _triton(queries, keys, labels, weights, order, offsets, num_classes, beta)
        else:
            out = cpu.support_logits(queries, keys, order, offsets, beta, weights)
    out = out.to(queries.dtype)
    _refuse_overflow(out, queries, keys, weights, beta)
    return out


@_support_logits.register_fake
def _(queries, keys, labels, weights, order, offsets, num_classes, beta):
    return queries.new_empty(queries.shape[0], num_classes)


def _setup_context(ctx, inputs, output) -> None:
    queries, keys, labels, weights, _, _, _, beta = inputs
    ctx.save_for_backward(queries, keys, labels, weights)
    ctx.beta = beta
    ctx.triton = requested() == "triton"  # the backward pass runs after the `with` block has ended


def _backward(ctx, grad: Tensor):
    queries, keys, labels, weights = ctx.saved_tensors
    need_q, need_k, _, need_w = ctx.needs_input_grad[:4]
    needs = need_q, need_k, need_w
    grads = support_logits_bwd(grad, queries, keys, labels, weights, ctx.beta, *needs, ctx.triton)
    picked = [g if need else None for g, need in zip(grads, needs, strict=True)]
    return picked[0], picked[1], None, picked[2], None, None, None, None


_support_logits.register_autograd(_backward, setup_context=_setup_context)
see_through(_support_logits, takes.triton, _triton)


def run(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    num_classes: int,
    beta: float,
    weights: Tensor | None,
    classes: ClassOrder | None,
) -> Tensor:
    """The call after its checks: straight to the kernel where no operator has to see it."""
    if in_transform():
        compute = compute_dtype(queries.dtype, keys.dtype)
        q, k = queries.to(compute), keys.to(compute)
        return eager.class_sums(q, k, labels, num_classes, beta, weights).to(queries.dtype)
    frozen = weights is None or not (weights.requires_grad and torch.is_grad_enabled())
    if torch.compiler.is_compiling() or not (
        frozen and direct(queries, keys) == "cpu" and plain(keys, labels, weights)
    ):
        order, offsets = classes if classes is not None else (None, None)
        return _support_logits(queries, keys, labels, weights, order, offsets, num_classes, beta)
    if classes is None:
        classes = sort_by_class(labels, num_classes, _NAME)
    out = cpu.support_logits(queries, keys, *classes, beta, weights).to(queries.dtype)
    _refuse_overflow(out, queries, keys, weights, beta)
    return out


def support_logits(
    queries: _arrays.Rows,  # [N, D]
    keys: Any,  # [S, D]
    labels: Any,  # [S] whole numbers
    num_classes: int,
    *,
    beta: float = 1.0,
    weights: Any = None,  # [S]
) -> _arrays.Rows:  # [N, C]
    """Sums ``w·exp(−β(1 − ⟨q, k⟩))`` over the keys of each class; no [N, S] array is made.

    Args:
        queries: [N, D] float32, float64, bfloat16 or float16, unit rows (not checked); a tensor or a NumPy
            array, like keys and weights.
        keys: [S, D], any of these dtypes, unit rows (not checked); read tile by tile, so float16
            keys are never copied to float32. May be memory-mapped.
        labels: [S] whole numbers in 0..C-1 as tensor, array or list, any order. Classes without keys get 0.
        num_classes: C, below 2³¹.
        beta: sharpness β ≥ 0.
        weights: [S] factor per key; 1 where absent.

    Returns:
        [N, C] in the dtype of ``queries``, an array where they are one.

    Raises:
        TypeError: not a tensor, or not the dtype named above.
        ValueError: shapes or devices that do not fit; a label out of range (the first is named with
            its position); a sum that overflows although every input is finite.

    Numerics: float32 (float64 if queries or keys are); a class's sum depends neither on the threads
        nor on the other queries; on a GPU equal calls give equal bits. In float32 a term is 0 where
        β(⟨q,k⟩ − 1) < −87.68 and overflows from 88.37 on, which unit rows never reach. The relative
        error of a term is about β·2⁻²⁴·√D. NaN or infinity in a query stays in its row, in a key in its
        class. Differentiable in queries, keys and weights; the gradient's products are torch.mm's, with
        ``backend("triton")`` the kernel's own (for half rows 2⁻¹¹ of a term).

    Synchronisation: on a GPU the check of the labels waits for the device at every call; a SupportSet
        checks once, when it is made. Code compiled with ``backend("triton")`` checks nothing: rows with
        labels out of range belong to no class.

    Memory: the output, 8 bytes per label, and a few MiB; backward the gradients and a few MiB. Without a
        kernel two or three blocks of 4 MiB (on a GPU 32 MiB), or of 256 keys by all queries or classes
        where those are more; inside torch.func [S, C] and [N, S].

    Example:
        >>> import torch
        >>> from semobridge_ext.ops import support_logits
        >>> support_logits(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 3, beta=1.0)
        tensor([[1.0000, 0.3679, 0.0000],
                [0.3679, 1.0000, 0.0000]])
    """
    if _arrays.is_array(queries):
        keys = _arrays.tensor(_NAME, "keys", keys)
        given: Any = _arrays.tensor(_NAME, "queries", queries, getattr(keys, "device", None))
        return _arrays.array(support_logits(given, keys, labels, num_classes, beta=beta, weights=weights))
    rows: Any = queries
    keys, labels, weights = support_tensors(_NAME, keys, labels, weights, getattr(queries, "device", None))
    check_support(_NAME, keys, labels, num_classes, weights)
    num_classes = int(num_classes)
    check_queries(_NAME, rows, keys.shape[1], keys.device)
    beta = check_beta(_NAME, beta)
    found: Any = run(rows, keys, labels, num_classes, beta, weights, None)
    return found


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel: ragged classes, one of them empty."""
    queries, keys = (self_check.fixed(n, 48, device=device, dtype=dtype, seed=n) / 8 for n in (5, 70))
    labels = torch.arange(70, device=device) % 6
    weights = self_check.fixed(70, device=device).abs()
    return [_support_logits(queries, keys, labels, weights, None, None, 7, 2.0)]


self_check.register(_NAME, _check_kernel)
