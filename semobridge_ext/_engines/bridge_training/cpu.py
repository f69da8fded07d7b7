"""The products and the wide pieces of a SeMoBridge-T step by the CPU core, in float32 or float64."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from semobridge_ext._engines.bridge_training.spec import Batch, Chunk
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext.runtime import products
from semobridge_ext.runtime.adamw import BETAS, EPS
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, view


class CpuTrainingPieces(TorchTrainingPieces):
    """The pieces over N rows, and AdamW, by the core; those over C rows stay with PyTorch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self._core = _C.ClassBatch(DTYPE_CODES[batch.counts.dtype], address(batch.offsets), batch.width)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        products.product(a, b, out)

    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        products.add_product(out, a, b)

    def class_means(self, e: Tensor, tau: Tensor | None, r: Tensor, mean: Tensor) -> None:
        self._core.shot_norms(
            *self._all(), address(e), address(tau), address(r), address(mean), thread_count()
        )

    def row_lengths(self, a: Tensor, b: Tensor, q: Tensor, inverse: Tensor) -> None:
        self._core.shot_dots(*self._all(), address(a), address(b), address(q), thread_count())
        inverse.copy_(self._reciprocal(q))

    def row_loss(
        self, chunk: Chunk, x: Tensor, factor: float, scale: Tensor, loss: Tensor,
        add: Tensor | None = None, dot: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        if sums is not None:
            sums[chunk[0] : chunk[1]].zero_()  # the core adds to them
        self._core.row_loss(
            *chunk, view(x), factor, address(scale), address(add), address(loss), address(dot),
            address(sums), thread_count(),
        )  # fmt: skip

    def shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, q: Tensor, inverse_q: Tensor, dot: Tensor | None,
        grad_mean: Tensor, grad_tau: Tensor | None, extra: Tensor | None,
    ) -> None:  # fmt: skip
        self._core.shot_grads(
            *self._all(), address(e), address(h), address(r), address(q), address(dot),
            address(grad_mean), address(grad_tau), thread_count(),
        )  # fmt: skip
        if grad_tau is not None and extra is not None:
            grad_tau.add_(extra)

    def plan(self, rates: Sequence[float], decay: float, like: Tensor) -> None:
        self._rates, self._decay = list(rates), decay

    def adamw(
        self, parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, now: Tensor, count: Tensor
    ) -> None:
        step = int(now)  # on the CPU nothing waits for it
        _C.adamw(
            DTYPE_CODES[parameter.dtype], parameter.numel(), address(parameter), address(gradient),
            address(first), address(second), self._rates[step], self._decay, *BETAS, EPS, step + 1,
            thread_count(),
        )  # fmt: skip
        count.fill_(step + 1)
