"""What a step of LaunchedTower launches, counted on meta tensors: for models on paper, and for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cuda import CudaAttention, CudaTowerPieces
from semobridge_ext._engines.tower_descent.plans import plan_of
from semobridge_ext._engines.tower_descent.products import Before, Behind, Rounds, tiles_of
from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Norm, Tower
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.tensors import Ends
from semobridge_ext._engines.tower_descent.torch import TorchAttention, TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime.launches import Note, bytes_of

ROWS = 16  # that a block of csrc/tower_descent/cuda_attention.cuh works on at once


def _attention_cost(state: CudaAttention) -> tuple[int, int]:
    """Bytes of queries, keys, values and the softmax's sums; operations of both products."""
    h = state.heads
    queries, size = len(h.visible) * h.samples, h.qkv.element_size()
    seen = h.prefix_rows * len(h.visible) + sum(map(len, h.visible))
    rows = (queries + 2 * h.slots * h.samples + 2 * h.prefix_rows) * h.model * size
    return rows + bytes_of(state.lse), 4 * seen * h.samples * h.model


def _rounds(state: CudaAttention, grad: bool) -> Rounds:
    """Its query, the prefix a tile at a time, its keys; for the gradient the queries of a key behind them."""
    h = state.heads
    together = max(1, ROWS // h.slots)  # samples of a block
    groups = -(-h.samples // together)
    trips = 1 + -(-h.prefix_rows // ROWS) + h.slots
    return Rounds(groups * h.heads, trips + grad * (1 + len(h.visible)), groups == 1)


def tower_of_shape(
    width: int, heads: int, layers: int, features: int, *, causal: bool = True, pre: bool = False
) -> Tower:
    """CLIP's tower of these sizes on ``meta``: text, or with ``causal=False, pre=True`` vision."""

    def linear(rows: int, cols: int) -> Linear:
        return Linear(torch.empty(rows, cols, device="meta"), torch.empty(cols, device="meta"))

    norm = Norm(torch.empty(width, device="meta"), torch.empty(width, device="meta"), 1e-5)
    block = Block(norm, linear(width, 3 * width), linear(width, width), norm, linear(width, 4 * width),
                  linear(4 * width, width))  # fmt: skip
    projection = Linear(torch.empty(width, features, device="meta"), None)
    kind = "quick_gelu"
    return Tower("shape", heads, kind, causal, (block,) * layers, norm if pre else None, norm, projection)


class _NotedPieces(CudaTowerPieces):
    """A note in place of each launch, once the workspaces are made."""

    note: Note | None = None

    @staticmethod
    def blocks_at_once(stored: torch.dtype, device: torch.device) -> int:
        return 0  # launch by launch, which a step of one launch has as its phases

    def _note(self, kernel: str, moved: int, operations: int = 0) -> None:
        if self.note is not None:
            self.note(kernel, moved, operations)

    def norm(
        self, x: Tensor, delta: Tensor | None, total: Tensor | None, norm: Norm, y: Tensor, state: Any
    ) -> None:
        self._note("layer_norm", bytes_of(x, delta, total, y, *state))

    def norm_grad(
        self, grad: Tensor, residual: Tensor | None, norm: Norm, state: Any, x: Tensor, out: Tensor
    ) -> None:
        self._note("layer_norm_grad", bytes_of(grad, residual, x, out, *state))

    def multiply(self, before: Before, weight: Tensor, bias: Tensor | None, behind: Behind) -> None:
        rows = before.x.shape[0]
        moved = bytes_of(before.x, before.normed, before.residual, before.grad, weight, bias)
        moved += bytes_of(behind.y, behind.other, behind.second)
        if self.note is not None:
            self.note("few_rows", moved, 2 * rows * weight.numel(), tiles_of(before, weight, behind))

    def activate(self, h: Tensor, y: Tensor) -> None:
        self._note("activate", bytes_of(h, y))

    def activate_grad(self, grad: Tensor, h: Tensor) -> None:
        self._note("activate_grad", bytes_of(grad, h, grad))

    def attention(self, state: Any, o: Tensor) -> None:
        if isinstance(state, TorchAttention):
            return super().attention(state, o)
        moved, work = _attention_cost(state)
        if self.note is not None:
            self.note("attention", moved + bytes_of(o), work, _rounds(state, grad=False))

    def attention_grad(self, state: Any, grad_o: Tensor, grad_qkv: Tensor) -> None:
        if isinstance(state, TorchAttention):
            return super().attention_grad(state, grad_o, grad_qkv)
        moved, work = _attention_cost(state)
        if self.note is not None:
            moved += bytes_of(grad_o, grad_qkv)
            self.note("attention_grad", moved, 4 * work, _rounds(state, grad=True))

    def cosine_loss(self, e: Ends) -> None:
        self._note("cosine_loss", bytes_of(e.features, e.targets, e.grad_features, e.unit, e.live))

    def adamw(self, e: Ends) -> None:
        moved = bytes_of(e.grad, e.inputs) + e.inputs.numel() * e.base.element_size()
        self._note("adamw", moved + 2 * bytes_of(e.tokens, e.exp_avg, e.exp_avg_sq))


def counted_step(
    tower: Tower,
    rows: LearnedRows,
    samples: int,
    note: Note,
    *,
    weights: torch.dtype | None = None,
    kernels: bool = True,
) -> Callable[[], None]:
    """One step as the engine takes it, to be called under a ``TorchDispatchMode``.

    Args:
        tower, rows: on any device; on ``meta`` nothing is computed.
        samples: S.
        note: is called in place of each kernel of csrc/tower_descent; a product of few rows also tells its
            tiles. What PyTorch launches (the products,
            and with ``kernels=False`` everything) is left to the caller's dispatch mode.
        weights: dtype of products and activations, as in ``oti``.
    """
    pieces = _NotedPieces if kernels else TorchTowerPieces
    engine = LaunchedTower(LaunchedWeights(tower, weights), rows, pieces=pieces, plans=plan_of)
    plan = engine.plan(samples)[0]

    def step() -> None:
        with torch.no_grad():
            plan.step()

    step()
    if isinstance(plan.pieces, _NotedPieces):
        plan.pieces.note = note
    return step
