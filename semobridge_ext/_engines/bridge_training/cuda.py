"""The pieces of a SeMoBridge-T step as CUDA kernels (csrc/bridge_training), float32, one launch a method."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training import halves
from semobridge_ext._engines.bridge_training.halves import WideHalves
from semobridge_ext._engines.bridge_training.spec import Batch, Chunk
from semobridge_ext._engines.bridge_training.torch import CHUNK_VALUES_CUDA, TorchTrainingPieces
from semobridge_ext.runtime import half_products
from semobridge_ext.runtime.adamw import BETAS, EPS
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.views import address, place, row_view, view


class CudaTrainingPieces(TorchTrainingPieces):
    """Every piece by the native module; cost.py counts the launches of the methods that make one."""

    loss_per_row = True
    least = halves.LEAST

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self._classes = torch.arange(len(batch.counts), device=batch.labels.device)

    @property
    def chunk_values(self) -> int:
        return CHUNK_VALUES_CUDA

    # -- wide products by halves -------------------------------------------------------------------

    def wide_halves(self, shots: Tensor, wide: int) -> WideHalves | None:
        if shots.numel() * wide < self.least or not self._multiplies_halves(shots):
            return None
        return WideHalves(shots, wide, self)

    def _multiplies_halves(self, shots: Tensor) -> bool:
        return half_products.served(shots.new_empty(0, dtype=torch.float16))

    def half_product(self, x: Tensor, matrix: Tensor, out: Tensor) -> None:
        half_products.product_into(out, x, matrix)

    def cut_rows(self, x: Tensor, copies: int, out: Tensor, scale: Tensor) -> None:
        _C.cut_rows_cuda(view(x), copies, out.data_ptr(), scale.data_ptr(), *place(x))

    def add_halves(
        self, raw: Tensor, parts: int, bounds: Tensor, split: int, out: Tensor, accumulate: bool
    ) -> None:
        _C.add_halves_cuda(view(raw), parts, bounds.data_ptr(), split, view(out), accumulate, *place(raw))

    def row_loss_halves(
        self, chunk: Chunk, x: Tensor, factor: float, scale: Tensor, loss: Tensor, add: Tensor | None,
        dot: Tensor | None, sums: Tensor | None, left: Tensor, right: Tensor, bound: Tensor,
    ) -> None:  # fmt: skip
        """``row_loss`` of a product by halves, whose gradient becomes halves in its place."""
        first, last = chunk
        rows = slice(self.batch.bounds[first], self.batch.bounds[last])
        part = None if dot is None else dot[rows]
        self._cross_entropy_halves(
            x, self.batch.labels[rows], factor, scale[rows], add, loss[rows], part, left[rows], right, bound
        )
        if sums is not None:
            self._class_sums_halves(x, chunk, left[rows], bound, sums[first:last])

    def _cross_entropy_halves(
        self, x: Tensor, labels: Tensor, factor: float, scale: Tensor, add: Tensor | None, loss: Tensor,
        dot: Tensor | None, left: Tensor, right: Tensor, bound: Tensor,
    ) -> None:  # fmt: skip
        _C.row_loss_halves_cuda(
            view(x), labels.data_ptr(), factor, scale.data_ptr(), address(add), loss.data_ptr(), address(dot),
            left.data_ptr(), right.data_ptr(), bound.data_ptr(), *place(x),
        )  # fmt: skip

    def _class_sums_halves(self, x: Tensor, chunk: Chunk, left: Tensor, bound: Tensor, out: Tensor) -> None:
        first, last = chunk
        _C.class_sums_halves_cuda(
            last - first, self.batch.offsets[first:].data_ptr(), self.batch.bounds[first], view(x),
            left.data_ptr(), bound.data_ptr(), out.data_ptr(), *place(x),
        )  # fmt: skip

    # -- shots ---------------------------------------------------------------------------------------

    def class_means(self, e: Tensor, tau: Tensor | None, r: Tensor, mean: Tensor) -> None:
        self._shot_norms(e, tau, r)
        self._class_sums(e, self._all(), mean, norms=r)

    def _shot_norms(self, e: Tensor, tau: Tensor | None, r: Tensor) -> None:
        _C.shot_norms_cuda(
            *e.shape, self.batch.labels.data_ptr(), e.data_ptr(), address(tau), r.data_ptr(), *place(e)
        )

    def _class_sums(
        self, x: Tensor, chunk: Chunk, out: Tensor, norms: Tensor | None = None, extra: Tensor | None = None
    ) -> None:
        """Σ over the rows of each class; with ``norms`` the mean of x/norm; plus ``extra``."""
        first, last = chunk
        _C.class_sums_cuda(
            last - first, self.batch.offsets[first:].data_ptr(), self.batch.bounds[first], view(x),
            address(norms), address(extra), out.data_ptr(), *place(x),
        )  # fmt: skip

    def row_lengths(self, a: Tensor, b: Tensor, q: Tensor, inverse: Tensor) -> None:
        _C.row_dots_cuda(*a.shape, a.data_ptr(), b.data_ptr(), q.data_ptr(), inverse.data_ptr(), *place(a))

    def row_loss(
        self, chunk: Chunk, x: Tensor, factor: float, scale: Tensor, loss: Tensor,
        add: Tensor | None = None, dot: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        rows = slice(self.batch.bounds[chunk[0]], self.batch.bounds[chunk[1]])
        part = None if dot is None else dot[rows]
        self._cross_entropy(x, self.batch.labels[rows], factor, loss[rows], scale[rows], add, part)
        if sums is not None:
            self._class_sums(x, chunk, sums[chunk[0] : chunk[1]])

    def _cross_entropy(
        self, x: Tensor, labels: Tensor, factor: float, loss: Tensor, scale: Tensor | None = None,
        add: Tensor | None = None, dot: Tensor | None = None,
    ) -> None:  # fmt: skip
        _C.row_loss_cuda(
            view(x), labels.data_ptr(), factor, address(scale), address(add), loss.data_ptr(), address(dot),
            *place(x),
        )  # fmt: skip

    def shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, q: Tensor, inverse_q: Tensor, dot: Tensor | None,
        grad_mean: Tensor, grad_tau: Tensor | None, extra: Tensor | None,
    ) -> None:  # fmt: skip
        self._shot_grads(e, h, r, inverse_q, dot, grad_mean)
        if grad_tau is not None:
            self._class_sums(h, self._all(), grad_tau, extra=extra)

    def _shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, inverse_q: Tensor, dot: Tensor | None, grad_mean: Tensor
    ) -> None:
        _C.shot_grads_cuda(
            *e.shape, self.batch.labels.data_ptr(), self.batch.offsets.data_ptr(), e.data_ptr(),
            h.data_ptr(), r.data_ptr(), inverse_q.data_ptr(), address(dot), grad_mean.data_ptr(), *place(e),
        )  # fmt: skip

    def unit_rows(self, x: Tensor, unit: Tensor, norms: Tensor) -> None:
        _C.normalize_rows_cuda(view(x), row_view(None), True, 1.0, view(unit), norms.data_ptr(), *place(x))

    def unit_grad(self, grad: Tensor, unit: Tensor, norms: Tensor, into: Tensor | None = None) -> None:
        out = grad if into is None else into
        _C.unit_grad_cuda(
            *grad.shape, grad.data_ptr(), unit.data_ptr(), norms.data_ptr(), into is not None,
            out.data_ptr(), *place(grad),
        )  # fmt: skip

    def diagonal_loss(self, logits: Tensor, factor: float, loss: Tensor) -> Tensor:
        self._cross_entropy(logits, self._classes, factor / len(logits), loss)
        return logits

    def bias_loss(self, tau: Tensor, weight: float, grad_tau: Tensor, loss: Tensor) -> None:
        norms, inverse = self._take("tau norms", len(tau)), self._take("tau inverse", len(tau))
        self.row_lengths(tau, tau, norms, inverse)
        self._bias_loss(tau, norms, inverse, weight, grad_tau, loss)

    def _bias_loss(
        self, tau: Tensor, norms: Tensor, inverse: Tensor, weight: float, grad_tau: Tensor, loss: Tensor
    ) -> None:
        _C.bias_loss_cuda(
            *tau.shape, weight, tau.data_ptr(), norms.data_ptr(), inverse.data_ptr(), grad_tau.data_ptr(),
            loss.data_ptr(), *place(tau),
        )  # fmt: skip

    def total_loss(
        self, parts: dict[str, Tensor], flat: Tensor, count: Tensor, now: Tensor, loss: Tensor, losses: Tensor
    ) -> None:
        _C.total_loss_cuda(
            flat.numel(), flat.data_ptr(), count.data_ptr(), now.data_ptr(), loss.data_ptr(),
            losses.data_ptr(), *place(flat),
        )  # fmt: skip

    def adamw(
        self, parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, now: Tensor, count: Tensor
    ) -> None:
        _C.adamw_flat_cuda(
            parameter.numel(), parameter.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr(),
            self._table.data_ptr(), now.data_ptr(), count.data_ptr(), *BETAS, EPS, *place(parameter),
        )  # fmt: skip


class HalvesOfAnySize(CudaTrainingPieces):
    """Small wide products too, which the self-check compares."""

    least = 0
