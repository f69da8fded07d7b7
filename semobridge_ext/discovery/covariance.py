"""The covariance of the images' distributions over concepts, by whichever of its two forms is smaller.

    q_i = softmax(cos(image_i, concepts)/t)     [N, K]; columns centred
    Σ   = QᵀQ/(N−1)                             [K, K], for N ≥ K: sums over blocks of images
    G   = QQᵀ/(N−1)                             [N, N], for N < K: sums over blocks of concepts

Both have the same eigenvalues but for zeros. With G u = λ u the vector of Σ is v = Qᵀu/√(λ(N−1)), so that
λ v_k² = (Qᵀu)_k²/(N−1). Sums are float64: the cut between two eigenvalues that float32 cannot tell apart
would otherwise turn with rounding. Columns that hold next to no energy are summed in float32 (``centred``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from semobridge_ext.discovery.centred import Centred, probabilities, unit
from semobridge_ext.discovery.leading_spectrum import leading_eigenpairs
from semobridge_ext.runtime import products

IMAGES = 256  # a block of the covariance; fixed, so that the sums do not depend on how images arrive


def add_product(total: Tensor, x: Tensor) -> None:  # [n, n] += x xᵀ for x [n, k]
    """The lower block triangle alone, products in the dtype of x; ``mirror`` fills the rest."""
    for start, end in _parts(len(total)):
        if x.dtype == total.dtype:
            products.add_product(total[start:end, :end], x[start:end], x[:end].T)
        else:
            total[start:end, :end] += products.product(x[start:end], x[:end].T)


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


def gram_scores(
    rows: Tensor,  # [N, D]
    concepts: Tensor,  # [K, D] unit rows, float64
    temperature: float,
    energy: float,
) -> tuple[Tensor, Tensor]:  # [K], [m]
    centred = Centred(rows, concepts, temperature)
    if energy == 1:
        return centred.variances, centred.variances.new_empty(0)
    n = len(rows)
    gram = concepts.new_zeros(n, n)
    for q in centred.blocks():
        add_product(gram, q)
    values, vectors = leading_eigenpairs(mirror(gram).div_(n - 1), energy)
    del gram
    found = [(vectors.to(q.dtype).T @ q).square().sum(dim=0).double() for q in centred.blocks()]
    scores = torch.empty_like(centred.variances)
    scores[centred.order] = torch.cat(found) / (n - 1)
    return scores, values
