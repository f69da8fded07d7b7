"""What a step of BridgeTrainer launches with the CUDA kernels: for models on paper, and for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from semobridge_ext._engines.bridge_training.spec import Chunk
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext.runtime.launches import Note, bytes_of


class _NotedPieces(CudaTrainingPieces):
    """A note in place of each launch, once the workspaces are made; what is read and written counts twice."""

    note: Note | None = None

    def _note(self, kernel: str, moved: int) -> None:
        if self.note is not None:
            self.note(kernel, moved, 0)

    def _shot_norms(self, e: Tensor, tau: Tensor | None, r: Tensor) -> None:
        written = bytes_of(r) if tau is None else bytes_of(e, r)
        self._note("shot_norms", bytes_of(e, tau, self.batch.labels) + written)

    def _class_sums(
        self, x: Tensor, chunk: Chunk, out: Tensor, norms: Tensor | None = None, extra: Tensor | None = None
    ) -> None:
        self._note("class_sums", bytes_of(x, norms, extra, out))

    def row_lengths(self, a: Tensor, b: Tensor, q: Tensor, inverse: Tensor) -> None:
        self._note("row_dots", bytes_of(a, None if b is a else b, q, inverse))

    def _cross_entropy(
        self, x: Tensor, labels: Tensor, factor: float, loss: Tensor, scale: Tensor | None = None,
        add: Tensor | None = None, dot: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._note("row_loss", bytes_of(x, labels, scale, add, x, loss, dot))

    def _multiplies_halves(self, shots: Tensor) -> bool:
        return True  # as the devices of the model do

    def half_product(self, x: Tensor, matrix: Tensor, out: Tensor) -> None:
        if self.note is not None:
            shape = (*x.shape, matrix.shape[1])
            self.note("mm", bytes_of(x, matrix, out), 2 * x.numel() * matrix.shape[1], product=shape)

    def cut_rows(self, x: Tensor, copies: int, out: Tensor, scale: Tensor) -> None:
        self._note("cut_rows", bytes_of(x, out, scale))

    def add_halves(
        self, raw: Tensor, parts: int, bounds: Tensor, split: int, out: Tensor, accumulate: bool
    ) -> None:
        self._note("add_halves", bytes_of(raw, out, out if accumulate else None))

    def _cross_entropy_halves(
        self, x: Tensor, labels: Tensor, factor: float, scale: Tensor, add: Tensor | None, loss: Tensor,
        dot: Tensor | None, left: Tensor, right: Tensor, bound: Tensor,
    ) -> None:  # fmt: skip
        self._note("row_loss_halves", bytes_of(x, labels, scale, add, x, loss, dot, left, right))

    def _class_sums_halves(self, x: Tensor, chunk: Chunk, left: Tensor, bound: Tensor, out: Tensor) -> None:
        self._note("class_sums_halves", bytes_of(x, left, out))

    def _shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, inverse_q: Tensor, dot: Tensor | None, grad_mean: Tensor
    ) -> None:
        read = bytes_of(e, None if dot is None else h, r, dot, grad_mean, self.batch.labels)
        self._note("shot_grads", read + bytes_of(h))

    def unit_rows(self, x: Tensor, unit: Tensor, norms: Tensor) -> None:
        self._note("normalize_rows", bytes_of(x, unit, norms))

    def unit_grad(self, grad: Tensor, unit: Tensor, norms: Tensor, into: Tensor | None = None) -> None:
        self._note("unit_grad", bytes_of(grad, unit, norms, into, grad if into is None else into))

    def _bias_loss(
        self, tau: Tensor, norms: Tensor, inverse: Tensor, weight: float, grad_tau: Tensor, loss: Tensor
    ) -> None:
        self._note("bias_loss", bytes_of(tau, norms, inverse, grad_tau, grad_tau, loss))

    def total_loss(
        self, parts: dict[str, Tensor], flat: Tensor, count: Tensor, now: Tensor, loss: Tensor, losses: Tensor
    ) -> None:
        self._note("total_loss", bytes_of(flat))

    def adamw(
        self, parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, now: Tensor, count: Tensor
    ) -> None:
        moved = bytes_of(parameter, gradient, first, second) + bytes_of(parameter, first, second)
        self._note("adamw_flat", moved)


def counted_step(*arguments: Any, note: Note, **options: Any) -> Callable[[], None]:
    """One step with the CUDA kernels, to be called under a ``TorchDispatchMode``.

    Args:
        arguments, options: BridgeTrainer's, with CPU tensors.
        note: is called in place of each kernel of csrc/bridge_training. What PyTorch launches (products,
            copies) really runs, and is left to the caller's dispatch mode.
    """
    trainer = BridgeTrainer(*arguments, pieces=_NotedPieces, **options)
    trainer.launch()
    assert isinstance(trainer.pieces, _NotedPieces)
    trainer.pieces.note = note
    return trainer.launch
