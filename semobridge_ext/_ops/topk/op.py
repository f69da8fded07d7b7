"""topk: exact inner-product search, streamed.

What ``torch.topk(queries @ gallery.T, k)`` returns, with a rule for ties and without the [N, G] array:

    scores[n], indices[n] = the k largest ⟨q_n, g_i⟩ over the gallery rows i ≠ exclude[n]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _arrays
from semobridge_ext._ops.topk import cpu, cuda, eager, takes
from semobridge_ext._ops.topk.checks import SearchableGallery, check, excluded
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.choice import choose, direct, in_transform, plain, see_through
from semobridge_ext.runtime.rows import compute_dtype

_NAME = "topk"


class TopK(NamedTuple):
    """Result of `topk`, best first.

    Args:
        scores: [N, k] inner products, descending.
        indices: [N, k] int64 gallery rows; equal scores stand in order of index.

    Returns:
        A named tuple ``(scores, indices)``.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.topk(torch.eye(2), torch.eye(2), 1).indices.tolist()
        [[0], [1]]
    """

    scores: Tensor  # [N, k]
    indices: Tensor  # [N, k] int64


def _triton(queries: Tensor, gallery: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    from semobridge_ext._ops.topk import triton

    return triton.topk(queries, gallery, k, exclude)


@torch.library.custom_op("semobridge::topk", mutates_args=())
def _topk(
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N]
) -> tuple[Tensor, Tensor]:  # [N, k], [N, k]
    name = choose(takes.KERNELS, queries, gallery, k)
    native = cuda.topk if queries.is_cuda else cpu.topk
    run = {"eager": eager.topk, "triton": _triton, "native": native}[name]
    exclude = excluded(_NAME, exclude, gallery.shape[0]) if k else None
    with torch.autocast(queries.device.type, enabled=False):
        return run(queries, gallery, k, exclude)


@_topk.register_fake
def _(queries, gallery, k, exclude):
    shape = queries.shape[0], k
    scores = queries.new_empty(shape, dtype=compute_dtype(queries.dtype, gallery.dtype))
    return scores, queries.new_empty(shape, dtype=torch.int64)


def _setup_context(ctx, inputs, output) -> None:
    queries, gallery, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(queries, gallery, output[1])


def _backward(ctx, grad: Tensor, _grad_indices: Tensor | None):
    queries, gallery, indices = ctx.saved_tensors
    grad_queries = grad_gallery = None
    if ctx.needs_input_grad[0]:
        picked = gallery[indices].to(grad.dtype)  # [N, k, D]
        grad_queries = torch.einsum("nk,nkd->nd", grad, picked).to(queries.dtype)
    if ctx.needs_input_grad[1]:
        rows = torch.einsum("nk,nd->nkd", grad, queries.to(grad.dtype)).flatten(0, 1)
        total = torch.zeros(gallery.shape, dtype=grad.dtype, device=grad.device)
        grad_gallery = total.index_add_(0, indices.flatten(), rows).to(gallery.dtype)
    return grad_queries, grad_gallery, None, None


_topk.register_autograd(_backward, setup_context=_setup_context)
see_through(_topk, takes.triton, _triton)


def topk(
    queries: Any,  # [N, D]
    gallery: Any,  # [G, D], or a SearchableGallery
    k: int,
    *,
    exclude: Any = None,  # [N] whole numbers
) -> TopK:
    """The k gallery rows of largest inner product for every query, exactly.

    Args:
        queries: [N, D] float32, float64, bfloat16 or float16; a tensor or a NumPy array, like all below.
        gallery: [G, D], any of these dtypes, G < 2³²; read tile by tile and never copied. May be
            memory-mapped. Normalise both for cosine search. Or a `Gallery`, whose own search answers.
        k: 0..G (G − 1 with ``exclude``).
        exclude: [N] whole numbers, a gallery row that the query must not return (itself, where the queries
            come from the gallery); -1 excludes none.

    Returns:
        ``TopK(scores [N, k], indices [N, k] int64)``, arrays where the queries are, scores descending,
            equal scores by lower index; scores in float32 (float64 if an input is), since half precision
            would invent ties.

    Raises:
        TypeError: not a tensor, or not the dtype named above. ValueError: shapes, devices or k that
            do not fit; an excluded row outside -1..G-1 (the first is named with its position).

    Numerics: exact for the scores as float32 (float64) computes them, each in one fixed order of
        summation; equal rows give equal scores. Deterministic, whatever the number of threads. A NaN
        score ranks with −inf. Differentiable in queries and gallery through ``scores``.

    Synchronisation: on a GPU the check of ``exclude`` waits for the device at every call. Code compiled
        with ``backend("triton")`` checks nothing: a row outside the gallery excludes none.

    Memory: the output, and 64 MiB at most for candidates while k < 260 000.

    Example:
        >>> import torch
        >>> from semobridge_ext.ops import topk
        >>> topk(torch.eye(2), torch.eye(2), 1).indices.tolist()
        [[0], [1]]
        >>> topk(torch.eye(2), torch.eye(2), 1, exclude=torch.tensor([0, 1])).indices.tolist()
        [[1], [0]]
    """
    if isinstance(gallery, SearchableGallery):
        return gallery.topk(queries, k, exclude=exclude)
    if not isinstance(queries, Tensor) or not isinstance(gallery, Tensor) or exclude is not None:
        gallery = _arrays.tensor(_NAME, "gallery", gallery, getattr(queries, "device", None))
        device = getattr(gallery, "device", None)
        exclude = _arrays.whole(exclude, device)
        if _arrays.is_array(queries):
            rows = _arrays.tensor(_NAME, "queries", queries, device)
            return TopK(*map(_arrays.array, topk(rows, gallery, k, exclude=exclude)))
    check(_NAME, queries, gallery, k, exclude)
    if in_transform():
        return TopK(*eager.ranked(queries, gallery, k, exclude))
    if not torch.compiler.is_compiling() and direct(queries, gallery) == "cpu" and plain(gallery, exclude):
        return TopK(*cpu.topk(queries, gallery, k, excluded(_NAME, exclude, gallery.shape[0])))
    return TopK(*_topk(queries, gallery, k, exclude))


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel: the scores, and those of the rows that it names."""
    queries, gallery = (self_check.fixed(n, 48, device=device, dtype=dtype, seed=n) for n in (4, 300))
    scores, indices = _topk(queries, gallery, 10, torch.arange(4, device=device))
    return [scores, (queries.float() @ gallery.float().T).gather(1, indices.clamp(0, 299))]


self_check.register(_NAME, _check_kernel)
