"""The pieces of a SeMoBridge-T step as CUDA kernels (csrc/bridge_training/cuda.h), float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training.torch import BETAS, EPS, Batch, Chunk, TorchPieces, address
from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.views import place, row_view, view

Note = Callable[[str, int], None]  # kernel, bytes read and written


class CudaPieces(TorchPieces):
    """One launch per call of the native module.

    Args:
        note: told every kernel's name and the bytes that it moves, in place of the launch
            (`count_step` counts so where there is no GPU).
    """

    loss_per_row = True

    def __init__(self, batch: Batch, note: Note | None = None) -> None:
        super().__init__(batch)
        self._note = note

    def _launch(self, name: str, reads: tuple[Tensor | None, ...], writes: tuple[Tensor | None, ...],
                *arguments: Any) -> None:  # fmt: skip
        if self._note is not None:
            touched = [t for t in (*reads, *writes) if t is not None]
            self._note(name, sum(t.numel() * t.element_size() for t in touched))
            return
        getattr(_C, name)(*arguments, *place(self.batch.labels))

    def _sum_classes(
        self, x: Tensor, chunk: Chunk, out: Tensor, norms: Tensor | None = None, extra: Tensor | None = None
    ) -> None:
        first, last = chunk
        offsets = self.batch.offsets[first:]
        self._launch(
            "class_sums_cuda", (x, norms, extra), (out,), last - first, offsets.data_ptr(),
            self.batch.bounds[first], x.data_ptr(), x.shape[1], x.stride(0), address(norms), address(extra),
            out.data_ptr(),
        )  # fmt: skip

    def class_means(self, e: Tensor, tau: Tensor | None, r: Tensor, mean: Tensor) -> None:
        labels = self.batch.labels
        self._launch(
            "shot_norms_cuda", (e, tau, labels), (None if tau is None else e, r), *e.shape,
            labels.data_ptr(), e.data_ptr(), address(tau), r.data_ptr(),
        )  # fmt: skip
        self._sum_classes(e, self._all(), mean, norms=r)

    def row_lengths(self, a: Tensor, b: Tensor, q: Tensor, inverse: Tensor) -> None:
        self._launch(
            "row_dots_cuda", (a, None if b is a else b), (q, inverse), *a.shape, a.data_ptr(), b.data_ptr(),
            q.data_ptr(), inverse.data_ptr(),
        )  # fmt: skip

    def _cross_entropy(
        self, x: Tensor, labels: Tensor, factor: float, loss: Tensor, scale: Tensor | None = None,
        add: Tensor | None = None, dot: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._launch(
            "row_loss_cuda", (x, labels, scale, add), (x, loss, dot), *x.shape, x.data_ptr(), x.stride(0),
            labels.data_ptr(), factor, address(scale), address(add), loss.data_ptr(), address(dot),
        )  # fmt: skip

    def row_loss(
        self, chunk: Chunk, x: Tensor, factor: float, scale: Tensor, loss: Tensor,
        add: Tensor | None = None, dot: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        rows = slice(self.batch.bounds[chunk[0]], self.batch.bounds[chunk[1]])
        part = None if dot is None else dot[rows]
        self._cross_entropy(x, self.batch.labels[rows], factor, loss[rows], scale[rows], add, part)
        if sums is not None:
            self._sum_classes(x, chunk, sums[chunk[0] : chunk[1]])

    def shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, q: Tensor, inverse_q: Tensor, dot: Tensor | None,
        grad_mean: Tensor, grad_tau: Tensor | None, extra: Tensor | None,
    ) -> None:  # fmt: skip
        labels, offsets = self.batch.labels, self.batch.offsets
        self._launch(
            "shot_grads_cuda", (e, None if dot is None else h, r, dot, grad_mean, labels), (h,), *e.shape,
            labels.data_ptr(), offsets.data_ptr(), e.data_ptr(), h.data_ptr(), r.data_ptr(),
            inverse_q.data_ptr(), address(dot), grad_mean.data_ptr(),
        )  # fmt: skip
        if grad_tau is not None:
            self._sum_classes(h, self._all(), grad_tau, extra=extra)

    def unit_rows(self, x: Tensor, unit: Tensor, norms: Tensor) -> None:
        self._launch(
            "normalize_rows_cuda", (x,), (unit, norms), view(x), row_view(None), True, 1.0, view(unit),
            norms.data_ptr(),
        )  # fmt: skip

    def unit_grad(self, grad: Tensor, unit: Tensor, norms: Tensor, into: Tensor | None = None) -> None:
        out = grad if into is None else into
        self._launch(
            "unit_grad_cuda", (grad, unit, norms, into), (out,), *grad.shape, grad.data_ptr(),
            unit.data_ptr(), norms.data_ptr(), into is not None, out.data_ptr(),
        )  # fmt: skip

    def diagonal_loss(self, logits: Tensor, factor: float, loss: Tensor) -> Tensor:
        if "classes" not in self._kept:
            self._kept["classes"] = torch.arange(len(logits), device=logits.device)
        self._cross_entropy(logits, self._kept["classes"], factor / len(logits), loss)
        return logits

    def bias_loss(self, tau: Tensor, weight: float, grad_tau: Tensor, loss: Tensor) -> None:
        norms, inverse = self._keep("tau norms", tau, len(tau)), self._keep("tau inverse", tau, len(tau))
        self.row_lengths(tau, tau, norms, inverse)
        self._launch(
            "bias_loss_cuda", (tau, norms, inverse, grad_tau), (grad_tau, loss), *tau.shape, weight,
            tau.data_ptr(), norms.data_ptr(), inverse.data_ptr(), grad_tau.data_ptr(), loss.data_ptr(),
        )  # fmt: skip

    def total_loss(
        self, parts: dict[str, Tensor], flat: Tensor, count: Tensor, now: Tensor, loss: Tensor, losses: Tensor
    ) -> None:
        self._launch(
            "total_loss_cuda", (flat,), (), flat.numel(), flat.data_ptr(), count.data_ptr(), now.data_ptr(),
            loss.data_ptr(), losses.data_ptr(),
        )  # fmt: skip

    def adamw(
        self, parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, now: Tensor, count: Tensor
    ) -> None:
        self._launch(
            "adamw_flat_cuda", (parameter, gradient, first, second), (parameter, first, second),
            parameter.numel(), parameter.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr(),
            self._table.data_ptr(), now.data_ptr(), count.data_ptr(), *BETAS, EPS,
        )  # fmt: skip


def dry_step(*arguments: Any, note: Note, **options: Any) -> Callable[[], None]:
    """A step of the CUDA path whose kernels are told to ``note`` in place of being launched.

    Takes CPU tensors and BridgeTrainer's arguments; PyTorch's own launches (products, copies) are really
    made, and can be counted by a dispatch mode around the call. The workspaces are there already.
    """
    from semobridge_ext._engines.bridge_training.step import BridgeTrainer

    trainer = BridgeTrainer(*arguments, pieces=lambda batch: CudaPieces(batch, note), **options)
    trainer._take()
    return trainer._take
