"""Every call between which `auto` chooses: its kernel's launches, and those of `backend("eager")`.

Eager is the program of this package that runs without the kernel, with the same rounding, and not what a
user would write: that is the model's table. Both sides are counted for one machine
(`machine.counting_for`). The prepared form of what a call meets is made before, as in a loop of calls.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from on_paper import ops
from on_paper.counting import Count, counted
from on_paper.loops import RESIDENT_STEP, noted
from on_paper.machine import Launch, at_once, resident, streamed
from semobridge_ext._engines.bridge_training import cost as training
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext._engines.tower_descent.cost import counted_step, tower_of_shape
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._ops.blend_logits import eager as blend_eager
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.project_normalize import eager as projection_eager
from semobridge_ext._ops.support_logits import class_order
from semobridge_ext._ops.support_logits import eager as support_eager
from semobridge_ext._ops.symmetric_kl import op as symmetric_kl
from semobridge_ext._ops.topk import eager as topk_eager
from semobridge_ext.runtime import half_products

ROWS = (1, 16, 64, 512, 4096, 65536)
PAIRS = (1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24)  # queries times rows, or all logits
WIDTH, RANK, NEIGHBOURS, SHOTS = 512, 384, 10, 16
WIDER = 2048  # columns of a matrix that is wider than what sizes are counted by
LAYERS = 2  # of a tower, which repeats them
SINGLE, HALVES = torch.float32, (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    op: str
    size: int  # by which `auto` chooses
    shape: str
    kernel: str  # the backend whose launches they are
    ours: list[Launch]
    eager: list[Launch]


_counted: dict[tuple[object, ...], list[Launch]] = {}  # by what is counted and the L2 that it finds


def _eager(what: object, function: Callable[..., object], *args: object) -> list[Launch]:
    """As on a device that multiplies half types, whose rows meta tensors would widen.

    PyTorch's launches are the same on all machines with the same L2.
    """
    key = what, resident()
    if key not in _counted:
        _counted[key] = _plain(lambda: function(*args))
    return _counted[key]


def _plain(step: Callable[[], object]) -> list[Launch]:
    with (
        patch.object(half_products, "served", lambda x: x.dtype in half_products.HALVES),
        patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        return counted(step)


def _prepared(dtype: torch.dtype) -> Iterator[Call]:
    for width, sizes in ((WIDTH, ROWS), (2 * WIDTH, ROWS), (WIDER, (1, 512, 65536))):
        matrix = ops.made(width, width, dtype=torch.float64)
        plan = projection_eager.Projection(matrix, None, torch.device("meta"))
        _plain(partial(plan, ops.made(1, width, dtype=dtype)))  # what a loop of calls has ready
        for n in sizes:
            x = ops.made(n, width, dtype=dtype)
            size = n if width < WIDER else 0
            plain = _eager(("prepared", dtype, n, width), plan, x)
            yield Call("prepared_projection", size, f"{n} × {width}", "native",
                       ops.projected(n, width, dtype), plain)  # fmt: skip


def _projection(dtype: torch.dtype) -> Iterator[Call]:
    for width in (WIDTH, 2 * WIDTH):
        matrix = ops.made(width, width, dtype=SINGLE)
        for n in ROWS:
            x = ops.made(n, width, dtype=dtype)
            written, sums = float(n * width * dtype.itemsize), 4.0 * n * width
            epilogue = Launch("normalize_rows_fwd_kernel", ops.kept(sums) + written, sums + written,
                              blocks=math.ceil(n / 8), resident=4, trips=6)  # fmt: skip
            shape = dtype, n, width
            product = _eager(("product", *shape), half_products.product, x, matrix)
            plain = _eager(("whole", *shape), projection_eager.project_normalize, x, matrix, None, 1.0, True)
            yield Call("project_normalize", n, f"{n} × {width}", "native", [*product, epilogue], plain)


def _labels(operand: BlendOperand, x: Tensor) -> None:
    blend_eager.blend_logits(operand._eager(x), BlendParams(), None).argmax(1)


def _blend(dtype: torch.dtype) -> Iterator[Call]:
    for classes in (100, 1000):
        rows, factor = (ops.made(n, WIDTH, dtype=torch.float64) for n in (classes, WIDTH))
        exponents = ops.made(classes, dtype=torch.float64)
        operand = BlendOperand(rows, rows, rows, exponents, factor, factor[:, :RANK])
        _plain(partial(_labels, operand, ops.made(1, WIDTH, dtype=dtype)))
        for n in ROWS:
            x = ops.made(n, WIDTH, dtype=dtype)
            ours = ops.blended(n, classes, WIDTH, RANK, dtype)
            plain = _eager(("blend", dtype, n, classes), _labels, operand, x)
            yield Call("blend_logits", n, f"{n} × {classes} classes", "native", ours, plain)


def _both_ways(a: Tensor, b: Tensor, grad: Tensor, stats: Tensor) -> None:
    symmetric_kl._eager(a, b, 1.0)
    symmetric_kl._eager_bwd(grad, a, b, stats, 1.0, True, True)


def _divergence(dtype: torch.dtype) -> Iterator[Call]:
    """Both ways; a row belongs to a warp, a long one to a block."""
    for classes in (64, 1024):
        for size in (s for s in PAIRS if s >= classes):
            n, moved = size // classes, float(size * dtype.itemsize)
            a, b = (ops.made(n, classes, dtype=dtype) for _ in range(2))
            grad, stats = ops.made(n, dtype=SINGLE), ops.made(n, symmetric_kl.STATS, dtype=SINGLE)
            blocks = n if classes >= 1024 else math.ceil(n / 8)
            lanes = (256 if classes >= 1024 else 32) * 16 // dtype.itemsize
            trips = math.ceil(classes / lanes) + 3
            ours = [
                Launch(name, ops.kept(factor * moved), factor * moved, blocks=blocks, resident=4, trips=trips)
                for name, factor in (("symmetric_kl_fwd_kernel", 2), ("symmetric_kl_bwd_kernel", 4))
            ]
            plain = _eager(("divergence", dtype, n, classes), _both_ways, a, b, grad, stats)
            yield Call("symmetric_kl", size, f"{n} × {classes}", "native", ours, plain)


def _pairs(most: int) -> Iterator[tuple[int, int, int]]:
    for size in (s for s in PAIRS if s <= most):
        for n in (1, 64, 1024):
            if size // n >= 4 * n or (n == 1 and size >= 64):
                yield size, n, size // n


def _search(dtype: torch.dtype) -> Iterator[Call]:
    for size, n, rows in _pairs(1 << 26):
        q, gallery = ops.made(n, WIDTH, dtype=dtype), ops.made(rows, WIDTH, dtype=dtype)
        ours = ops.searched(n, rows, WIDTH, NEIGHBOURS, dtype)
        plain = _eager(("topk", dtype, n, rows), topk_eager.topk, q, gallery, NEIGHBOURS, None)
        yield Call("topk", size, f"{n} × {rows}", "native", ours, plain)


def _looked_at(q: Tensor, keys: Tensor, labels: Tensor, classes: int) -> None:
    """As the operator does: it looks at the labels and the sums; the result has the dtype of the queries."""
    _ = labels.min(), labels.max()
    sums = support_eager.chunked_sums(q, keys, labels, classes, 5.5, None)
    _ = torch.isfinite(sums).all(1).logical_not_().any()
    sums.to(q.dtype)


def _support(dtype: torch.dtype) -> Iterator[Call]:
    """The order of classes is made in the call, as for a user's labels that it has not seen."""
    for size, n, rows in _pairs(1 << 24):
        classes = min(rows, 1000)
        q, keys = ops.made(n, WIDTH, dtype=dtype), ops.made(rows, WIDTH, dtype=dtype)
        labels = ops.made(rows, dtype=torch.int64)
        order = _eager(("order", rows), class_order.class_order, labels, classes)
        ours = order + ops.streamed_classes(n, rows, classes, WIDTH, dtype)
        ours.append(streamed("to", float(n * classes * (4 + dtype.itemsize))))
        plain = _eager(("support_logits", dtype, n, rows), _looked_at, q, keys, labels, classes)
        yield Call("support_logits", size, f"{n} × {rows}", "triton", ours, plain)


def _step(tower: Tower, rows: LearnedRows, batch: int, dtype: torch.dtype, kernels: bool) -> list[Launch]:
    key = ("tower_descent", dtype, batch, kernels), resident()
    if key not in _counted:
        count = Count()
        note = noted(count.launches, half=dtype is not SINGLE)
        step = counted_step(tower, rows, batch, note, weights=dtype, kernels=kernels)
        with count:
            step()
        _counted[key] = count.launches
    return _counted[key]


def _inversion(dtype: torch.dtype) -> Iterator[Call]:
    base = torch.empty(77, WIDTH, device="meta")
    rows = LearnedRows(base, tuple(0 if i == 4 else -1 for i in range(77)), pool=5)
    tower = tower_of_shape(WIDTH, 8, LAYERS, WIDTH)
    for batch in (1, 64, 1024):
        ours, plain = (_step(tower, rows, batch, dtype, kernels) for kernels in (True, False))
        if dtype is not SINGLE and any(x.name == "few_rows" for x in ours):
            ours = [at_once("tower_step", ours, RESIDENT_STEP)]
        yield Call("tower_descent", 1, f"{batch} images", "native", ours, plain)


def _training(dtype: torch.dtype) -> Iterator[Call]:
    if dtype is not SINGLE:
        return  # there is no kernel
    for classes in (10, 100):
        generator = torch.Generator().manual_seed(0)
        x, t, s = (
            nn.functional.normalize(torch.randn(n, WIDTH // 2, generator=generator), dim=1)
            for n in (SHOTS * classes, classes, classes)
        )
        w, labels = torch.eye(WIDTH // 2), torch.arange(classes).repeat_interleave(SHOTS)
        key = "bridge_training", classes, resident()
        if key not in _counted:
            count = Count()
            step = training.counted_step(w.clone(), w, x, labels, t, s, note=noted(count.launches))
            with count:
                step()
            _counted[key] = count.launches
        trainer = BridgeTrainer(w.clone(), w, x, labels, t, s, pieces=TorchTrainingPieces)
        trainer.launch()
        plain = _eager(("trainer", classes), trainer.launch)
        yield Call("bridge_training", 1, f"{classes} classes", "native", _counted[key], plain)


OPS: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    "prepared_projection": _prepared,
    "project_normalize": _projection,
    "blend_logits": _blend,
    "symmetric_kl": _divergence,
    "topk": _search,
    "support_logits": _support,
    "tower_descent": _inversion,
    "bridge_training": _training,
}
