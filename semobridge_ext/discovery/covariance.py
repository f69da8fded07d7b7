"""The covariance of the images' distributions over concepts, by whichever of its two forms is smaller.

    q_i = softmax(cos(image_i, concepts)/t)     [N, K]; columns centred
    Σ   = QᵀQ/(N−1)                             [K, K], for N ≥ K: sums over blocks of images
    G   = QQᵀ/(N−1)                             [N, N], for N < K: sums over blocks of concepts

Both have the same eigenvalues but for zeros. With G u = λ u the vector of Σ is v = Qᵀu/√(λ(N−1)), so that
λ v_k² = (Qᵀu)_k²/(N−1). Everything is float64: the cut between two eigenvalues that float32 cannot tell
apart would otherwise turn with rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from semobridge_ext.discovery.leading_spectrum import leading_eigenpairs
from semobridge_ext.runtime.rows import unit_rows

IMAGES = 256  # a block of the covariance; fixed, so that the sums do not depend on how images arrive
ROWS = 128  # of a softmax at once: few enough that its passes meet the cache
BLOCK_BYTES = 256 << 20  # of [N, concepts] at once
KEPT_BYTES = 1 << 30  # Q as a whole, where it is no larger; else its blocks are computed twice


def unit(rows: Tensor) -> Tensor:  # [N, D] float64
    return unit_rows(rows.double())


def probabilities(
    rows: Tensor,  # [n, D] unit rows, float64
    concepts: Tensor,  # [K, D] unit rows, float64
    temperature: float,
    out: Tensor | None = None,  # [n, K]
) -> Tensor:  # [n, K]
    """Softmax over the concepts, in place of the one array of its size."""
    q = torch.mm(rows / temperature, concepts.T, out=out)
    q.sub_(q.amax(dim=1, keepdim=True)).exp_()
    return q.div_(q.sum(dim=1, keepdim=True))


def add_product(total: Tensor, x: Tensor) -> None:  # [n, n] += x xᵀ for x [n, k]
    """The lower block triangle alone; ``mirror`` fills the rest."""
    for start, end in _parts(len(total)):
        total[start:end, :end].addmm_(x[start:end], x[:end].T)


def mirror(total: Tensor) -> Tensor:
    for start, end in _parts(len(total)):
        total[:start, start:end] = total[start:end, :start].T
    return total


def _parts(n: int) -> Iterator[tuple[int, int]]:
    step = max(256, -(-n // 16))
    for start in range(0, n, step):
        yield start, min(start + step, n)


class Covariance:
    """[K, K] sums over images that need not be kept.

    The mean is subtracted at the end. What that cancels is lost against Σq², 1e-16 of it: nothing beside
    the scores that decide.
    """

    def __init__(self, concepts: Tensor, temperature: float) -> None:  # [K, D] unit rows, float64
        self.concepts, self.temperature = concepts, temperature
        self.products = concepts.new_zeros(len(concepts), len(concepts))
        self.sums = concepts.new_zeros(len(concepts))
        self.images = 0

    def add(self, rows: Tensor) -> None:  # [n, D]
        if not len(rows):
            return
        q = probabilities(unit(rows), self.concepts, self.temperature)
        add_product(self.products, q.T)
        self.sums += q.sum(dim=0)
        self.images += len(rows)

    def copy(self) -> Covariance:
        """With sums of its own."""
        other = Covariance.__new__(Covariance)
        other.__dict__.update(self.__dict__)
        other.products, other.sums = self.products.clone(), self.sums.clone()
        return other

    def scores(self, energy: float) -> tuple[Tensor, Tensor]:  # [K], [m]
        """Of the images so far; the products become the covariance, in place."""
        mean = self.sums / self.images
        if energy == 1:
            diagonal = self.products.diagonal() - self.images * mean.square()
            return diagonal.clamp(min=0) / (self.images - 1), mean.new_empty(0)
        matrix = mirror(self.products)
        matrix.addr_(mean, mean, alpha=-self.images).div_(self.images - 1)
        values, vectors = leading_eigenpairs(matrix, energy)
        return vectors.square() @ values, values


class _Centred:
    """Q with centred columns, a block of concepts at a time: kept as a whole, or computed at each pass."""

    def __init__(self, rows: Tensor, concepts: Tensor, temperature: float) -> None:
        self.rows, self.concepts, self.temperature = unit(rows), concepts, temperature
        n, k = len(rows), len(concepts)
        self.width = max(1, min(k, BLOCK_BYTES // (8 * n)))
        self.whole: Tensor | None = None
        if 8 * n * k <= KEPT_BYTES:
            self.whole = concepts.new_empty(n, k)
            for part, q in zip(self.rows.split(ROWS), self.whole.split(ROWS), strict=True):
                probabilities(part, concepts, temperature, out=q)
            self.whole -= self.whole.mean(dim=0)
        else:
            parts = (self.rows / temperature).split(IMAGES)
            logs = [torch.logsumexp(part @ concepts.T, dim=1) for part in parts]
            self.logs = torch.cat(logs)[:, None]  # [N, 1]

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Start, end and [N, end − start]."""
        k = len(self.concepts)
        for start in range(0, k, self.width):
            end = min(start + self.width, k)
            if self.whole is not None:
                yield start, end, self.whole[:, start:end]
                continue
            q = self.rows @ self.concepts[start:end].T
            q.div_(self.temperature).sub_(self.logs).exp_()
            yield start, end, q.sub_(q.mean(dim=0))


def gram_scores(
    rows: Tensor,  # [N, D]
    concepts: Tensor,  # [K, D] unit rows, float64
    temperature: float,
    energy: float,
) -> tuple[Tensor, Tensor]:  # [K], [m]
    centred = _Centred(rows, concepts, temperature)
    n = len(rows)
    scores = concepts.new_empty(len(concepts))
    if energy == 1:
        for start, end, q in centred.blocks():
            scores[start:end] = q.square().sum(dim=0) / (n - 1)
        return scores, scores.new_empty(0)
    gram = concepts.new_zeros(n, n)
    for _, _, q in centred.blocks():
        add_product(gram, q)
    values, vectors = leading_eigenpairs(mirror(gram).div_(n - 1), energy)
    for start, end, q in centred.blocks():
        scores[start:end] = (vectors.T @ q).square().sum(dim=0) / (n - 1)
    return scores, values
