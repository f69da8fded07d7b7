"""Q with centred columns, the columns that carry the energy first, a block of concepts at a time.

A softmax at 0.01 gives most concepts next to nothing: of 22 131 a fifth holds all but 1e-4 of the energy, and
two fifths all but 1e-6. The others are light. Their share of a sum in float32 is off by 1e-6 of 1e-7 of the
trace, less than the eigenpairs' own residual, and takes half of the time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from semobridge_ext.runtime.products import product
from semobridge_ext.runtime.rows import unit_rows

ROWS = 128  # of a softmax at once: few enough that its passes meet the cache
GATHERED = 32  # of Q, on the way into the other order
BLOCK_BYTES = 256 << 20  # of [N, concepts] at once
KEPT_BYTES = 1 << 30  # Q as a whole, where it is no larger in float64; else its blocks are computed twice
LIGHT = 1e-6  # of the trace: what all light columns hold together
LIGHT_COLUMNS = 4096  # summed in float32, before the sums meet in float64


def unit(rows: Tensor) -> Tensor:  # [N, D] float64
    return unit_rows(rows.double())


def probabilities(
    rows: Tensor,  # [n, D] unit rows, float64
    concepts: Tensor,  # [K, D] unit rows, float64
    temperature: float,
    out: Tensor | None = None,  # [n, K]
) -> Tensor:  # [n, K]
    """Softmax over the concepts, in place of the one array of its size."""
    q = product(rows / temperature, concepts.T, out)
    q.sub_(q.amax(dim=1, keepdim=True)).exp_()
    return q.div_(q.sum(dim=1, keepdim=True))


class Centred:
    """The columns of Q less their means; kept as a whole, or computed anew at each pass.

    Args:
        rows: [N, D] of the images, any length.
        concepts: [K, D] unit rows, float64.
        temperature: of the softmax.

    Attributes:
        variances: [K] float64, in the order of the concepts.
    """

    def __init__(self, rows: Tensor, concepts: Tensor, temperature: float) -> None:
        self.rows, self.concepts, self.temperature = unit(rows), concepts, temperature
        n, k = len(rows), len(concepts)
        q = concepts.new_empty(n, k) if 8 * n * k <= KEPT_BYTES else None
        self._pass(q)
        self.order = torch.argsort(self.variances, descending=True, stable=True)
        self.heavy = _heavy(self.variances[self.order])
        self.width = max(1, min(k, BLOCK_BYTES // (8 * n)))
        self.whole: tuple[Tensor, Tensor] | None = None
        if q is not None:
            self.whole = self._ordered(q)
        else:
            self.ordered = concepts.index_select(0, self.order)

    def _pass(self, kept: Tensor | None) -> None:  # [N, K], filled with Q less its first row
        """Means, variances and the rows' normalizers.

        Sums are of differences to the first row: where all images say the same they are exactly 0.
        """
        n, first = len(self.rows), None
        sums, squares = (self.concepts.new_zeros(len(self.concepts)) for _ in range(2))
        logs = []
        for start in range(0, n, ROWS):
            rows = self.rows[start : start + ROWS] / self.temperature
            out = None if kept is None else kept[start : start + ROWS]
            q = product(rows, self.concepts.T, out)
            top = q.amax(dim=1, keepdim=True)
            total = q.sub_(top).exp_().sum(dim=1, keepdim=True)
            logs.append(top + total.log())
            q.div_(total)
            first = q[0].clone() if first is None else first
            q.sub_(first)
            sums += q.sum(dim=0)
            squares += q.square().sum(dim=0)
        self.logs, self.mean = torch.cat(logs), sums / n  # [N, 1]; [K], less the first row
        self.variances = (squares - sums.square() / n).clamp_(min=0) / (n - 1)

    def _ordered(self, q: Tensor) -> tuple[Tensor, Tensor]:  # [N, K] -> [N, heavy], [N, the rest] float32
        """Centred; a few rows at a time, while they are in the cache."""
        n, k = q.shape
        parts = q.new_empty(n, self.heavy), q.new_empty(n, k - self.heavy, dtype=torch.float32)
        for order, part in zip(self.order.tensor_split([self.heavy]), parts, strict=True):
            mean = self.mean[order]
            for start in range(0, n, GATHERED):
                rows = slice(start, start + GATHERED)
                part[rows] = q[rows].index_select(1, order).sub_(mean)
        return parts

    def blocks(self) -> Iterator[Tensor]:
        """[N, b] each, in the order of ``order``: float64, then the light columns in float32."""
        for start, end, light in self._parts():
            if self.whole is not None:
                at = self.heavy if light else 0
                yield self.whole[light][:, start - at : end - at]
                continue
            q = product(self.rows, self.ordered[start:end].T)
            q.div_(self.temperature).sub_(self.logs).exp_()
            q.sub_(q.mean(dim=0))
            yield q.float() if light else q

    def _parts(self) -> Iterator[tuple[int, int, bool]]:
        bounds = ((0, self.heavy, self.width), (self.heavy, len(self.order), min(self.width, LIGHT_COLUMNS)))
        for light, (first, last, width) in enumerate(bounds):
            for start in range(first, last, width):
                yield start, min(start + width, last), bool(light)


def _heavy(variances: Tensor) -> int:  # [K] descending
    """How many columns are summed in float64; all, where float32 may be computed in fewer bits."""
    if variances.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
        return len(variances)
    rest = variances.flip(0).cumsum(0)  # of the lightest 1, 2, …
    return len(variances) - int((rest <= LIGHT * rest[-1]).sum())
