"""The leading eigenpairs of a symmetric matrix, as many as hold a share of its trace.

The total energy is the trace, so a solver may stop once it has enough, and it is known when that is. Small
matrices are decomposed as a whole; of large ones a block Krylov basis is grown until the pairs are there,
because the whole decomposition of 20 000² in float64 takes an hour and the leading part minutes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DENSE = 3000  # up to here the whole decomposition is as fast as any part of it
# Vectors a product. Few, for a high degree: for 669 pairs at 6000 a basis of 1792 does, and in blocks of 256
# none below 2400. Enough, too, for products to be bound by arithmetic and not by reading the matrix.
BLOCK = 64
# A Ritz pair's residual ‖A y − θ y‖ as a share of the largest eigenvalue. The eigenvalue is then off by less
# than that, and the vector by it over the gap.
RESIDUAL = 1e-11
GROWTH = 1.15  # of the basis to the next look at it, at most
LARGEST_BASIS = 0.5  # of the matrix's width: beyond it the whole decomposition costs less


def components(values: Tensor, share: float, total: float) -> int | None:
    """How many of descending values reach a share of the total; None: all of them together do not."""
    reached = int(torch.searchsorted(values.cumsum(0), share * total))
    return reached + 1 if reached < len(values) else None


def leading_eigenpairs(matrix: Tensor, share: float) -> tuple[Tensor, Tensor]:  # [m], [n, m]
    """Eigenvalues in descending order and their vectors; m is the first count that reaches the share.

    Args:
        matrix: [n, n] float64, symmetric and positive semi-definite.
        share: of the trace, in (0, 1).
    """
    total = float(matrix.diagonal().sum())
    found = None if len(matrix) <= DENSE else _by_krylov(matrix, share, total)
    if found is not None:
        return found
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = components(values, share, total) or len(values)
    return values[:count], vectors[:, :count]


def _by_krylov(matrix: Tensor, share: float, total: float) -> tuple[Tensor, Tensor] | None:
    """Block Lanczos with full reorthogonalisation; None: the basis grew too large to pay."""
    n = len(matrix)
    limit = max(int(LARGEST_BASIS * n) // BLOCK, 2) * BLOCK
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(n, BLOCK, generator=generator, dtype=matrix.dtype).to(matrix.device)

    # Stored transposed, so that the basis so far is one contiguous operand.
    basis = matrix.new_empty(limit + BLOCK, n)
    inner = matrix.new_zeros(limit, limit)  # the matrix in the basis
    block, size, look = torch.linalg.qr(random())[0], 0, 2 * BLOCK
    seen: list[tuple[int, float]] = []  # sizes of the basis, and the largest residual in each
    while size < limit:
        basis[size : size + BLOCK] = block.T
        image = matrix @ block
        size += BLOCK
        done = basis[:size]
        projected = done @ image
        inner[:size, size - BLOCK : size] = projected
        inner[size - BLOCK : size, :size] = projected.T
        image -= done.T @ projected
        image -= done.T @ (done @ image)
        block, coupling = _next_block(image, done, random)
        if size < look and size < limit:
            continue
        ritz = _ritz_pairs(inner[:size, :size], coupling, share, total)
        look = int(GROWTH * size)
        if ritz is None:
            continue
        values, combined, residual = ritz
        if residual <= RESIDUAL:
            vectors = done.T @ combined
            return (values, vectors) if _is_leading(matrix, values, vectors, random()) else None
        seen.append((size, residual))
        look = _next_look(seen)
    return None


def _next_look(seen: list[tuple[int, float]]) -> int:
    """Where the line through the last two residuals' logarithms is small enough, at most GROWTH away.

    They fall ever faster, so that a line asks for too much, and less so the nearer the end is.
    """
    size, residual = seen[-1]
    furthest = int(GROWTH * size)
    if len(seen) < 2 or residual >= seen[-2][1]:
        return furthest
    slope = math.log(residual / seen[-2][1]) / (size - seen[-2][0])
    return min(furthest, size + int(math.log(RESIDUAL / residual) / slope))


def _is_leading(matrix: Tensor, values: Tensor, vectors: Tensor, start: Tensor) -> bool:
    """Whether nothing larger than the least of these eigenvalues is left beside their vectors.

    A basis that begins with b vectors holds b copies of an eigenvalue and finds more by rounding alone, so
    eigenpairs may be missed that a smaller one then stands for. A few steps of a fresh block show them.
    """

    def beside(block: Tensor) -> Tensor:
        return block - vectors @ (vectors.T @ block)

    block = torch.linalg.qr(beside(start))[0]
    for _ in range(3):
        block = torch.linalg.qr(beside(matrix @ block))[0]
    left = block.T @ beside(matrix @ block)
    return float(torch.linalg.eigvalsh((left + left.T) / 2)[-1]) <= float(values[-1] + 1e-9 * values[0])


def _next_block(rest: Tensor, done: Tensor, random) -> tuple[Tensor, Tensor]:
    """Orthonormal columns for what the basis lacks of an image, and the image's part along them.

    Where the basis already holds all of a direction, a random one takes its place: an eigenvalue may occur
    more often than a block has columns.
    """
    block, upper = torch.linalg.qr(rest)
    spent = upper.diagonal().abs() <= 1e-13 * upper.diagonal().abs().max().clamp(min=1e-300)
    if bool(spent.any()):
        block[:, spent] = random()[:, spent]
    for _ in range(2 if bool(spent.any()) else 1):
        block = torch.linalg.qr(block - done.T @ (done @ block))[0]
    return block, block.T @ rest


def _ritz_pairs(
    inner: Tensor,  # [k, k]
    coupling: Tensor,  # [b, b]
    share: float,
    total: float,
) -> tuple[Tensor, Tensor, float] | None:
    """Ritz values and vectors in the basis that reach the share, and their largest residual over λ_1.

    None: not enough yet. The sum of all is the trace, which tells for nothing when that is so.
    """
    if float(inner.diagonal().sum()) < share * total:
        return None
    values, vectors = torch.linalg.eigh(inner)
    values, vectors = values.flip(0), vectors.flip(1)
    count = components(values, share, total)
    if count is None:
        return None
    residuals = torch.linalg.vector_norm(coupling @ vectors[-len(coupling) :, :count], dim=0)
    return values[:count], vectors[:, :count], float(residuals.max() / values[0])
