"""The projector onto a band of singular directions of Ψ = A Wᵀ, without a singular value decomposition.

    M = U_S U_Sᵀ L = L − U_C U_Cᵀ L          L: A or W, U its side's singular vectors, S kept, C cut

The eigenvectors V of ΨᵀΨ give either side: V itself, and ΨV with the lengths taken out. In float64 that
costs less than half of Ψ's decomposition, but an angle between kept and cut directions is then wrong by about
ε·λ₁/(λ_i − λ_j), where the decomposition has ε·σ₁/(σ_i − σ_j): σ₁/2σ times as much, so most at the bottom.
Directions close to a cut, or short ones, are therefore turned once by what is left of their equation, for
which Ψ itself stands in the place of ΨᵀΨ:

    y = Ψv     μ = ‖y‖²     r = Ψᵀy/μ − v     v += Σ_i v_i·(v_iᵀr)/(1 − λ_i/μ)     i beyond the cut

That takes the rounding of y along Ψv_i out as well. The sum is small, so float32 holds it. Where it is not
small (singular values that are equal across a cut) its square would show, and where y is so short that its
rounding beside all Ψv_i does, nothing takes that out. There is no answer then, and the caller decomposes Ψ.
Which it is depends on the matrices and the cuts alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of λ₁: nearer eigenvalues on the two sides of a cut are turned apart, and what is smaller is turned.
_NEAR = 2.0**-8
# Of a sum above: its square is what the first order leaves.
_FIRST_ORDER = 2.0**-26
# How often the rounding of a unit vector may stand in the projected matrix: 2⁻⁵³·2⁸ of its length.
_ROUNDING = 2.0**8
# Of Ψ's largest entry: its squares and its float32 are finite and normal there.
_RANGE = (2.0**-60, 2.0**60)
_BLOCKS = 4


class Gram(NamedTuple):
    """Ψ [m, r] with its taller side first, and the eigenvectors of ΨᵀΨ."""

    psi: Tensor  # [m, r] float64
    values: Tensor  # [r] ascending
    vectors: Tensor  # [r, r] one a row
    factor: Tensor | None  # [n, r] orthonormal columns, where the shorter side is Q·R and Ψ has R for it


def gram_of(tall: Tensor, short: Tensor) -> Gram | None:  # [m, D] and [n, D] float64, n ≤ m
    """None where Ψ has no entries that can be squared."""
    factor = None
    if short.shape[0] > short.shape[1]:
        factor, short = torch.linalg.qr(short)
    psi = tall @ short.T
    if not _RANGE[0] <= _largest(psi) <= _RANGE[1]:
        return None
    values, vectors = torch.linalg.eigh(_lower(psi))
    return Gram(psi, values, vectors.T, factor)


def _largest(t: Tensor) -> float:
    """The largest magnitude, NaN where there is one; reads t once and makes no copy of it."""
    least, most = t.aminmax()
    return max(-float(least), float(most))


def _lower(psi: Tensor) -> Tensor:
    """ΨᵀΨ up to its diagonal and a little above, which is all that `eigh` reads: 5/8 of the products."""
    width = psi.shape[1]
    gram = psi.new_zeros(width, width)
    step = -(-width // _BLOCKS)
    for begin in range(0, width, step):
        part = slice(begin, min(begin + step, width))
        torch.mm(psi[:, part].T, psi[:, : part.stop], out=gram[part, : part.stop])
    return gram


def band_map(
    gram: Gram,
    matrix: Tensor,  # [m, D] float64, or [n, D]: L
    is_tall: bool,  # which of the two
    top: int,
    bottom: int,
) -> Tensor | None:  # [m, D] or [n, D]
    """U_S U_Sᵀ L; None where the corrections of both bands, the kept and the cut, are too large."""
    rank = len(gram.values)
    kept = [slice(bottom, rank - top)]
    cut = [slice(0, bottom), slice(rank - top, rank)]
    # All r directions span the columns of L where it has no more; else the cut ones leave other things too.
    whole = not is_tall or rank == min(matrix.shape)
    if whole and top + bottom == 0:
        return matrix.clone()
    ways = [(cut, kept)] if whole else []
    ways.insert(0 if 2 * (rank - top - bottom) <= rank else len(ways), (kept, cut))
    for inside, outside in ways:
        bands = _Band.of(gram, inside), _Band.of(gram, outside)
        found = _projected(gram, matrix, is_tall, *bands, inside is cut)
        if found is not None:
            return found
    return None


class _Band(NamedTuple):
    values: Tensor  # [b] ascending
    vectors: Tensor  # [b, r]

    @classmethod
    def of(cls, gram: Gram, parts: list[slice]) -> _Band:
        return cls(*(torch.cat([t[part] for part in parts]) for t in (gram.values, gram.vectors)))


def _projected(
    gram: Gram, matrix: Tensor, is_tall: bool, inside: _Band, outside: _Band, is_cut: bool
) -> Tensor | None:
    """The projection onto a band, or without it; None as above."""
    basis = _basis(gram, is_tall, inside, outside)
    if basis is None:
        return None
    length = basis.square().sum(1, keepdim=True).sqrt()
    basis /= length
    factor, failed = torch.linalg.cholesky_ex(basis @ basis.T)
    if bool(failed):
        return None
    basis = torch.linalg.solve_triangular(factor, basis, upper=False)
    rows = basis @ matrix
    found = torch.addmm(matrix, basis.T, rows, alpha=-1) if is_cut else basis.T @ rows
    if is_tall:
        rounding = (rows.square().sum(1, keepdim=True) / length.square()).sum() * gram.values[-1]
        if not float(rounding) <= _ROUNDING**2 * float(found.square().sum()):
            return None
    return found


def _basis(gram: Gram, is_tall: bool, inside: _Band, outside: _Band) -> Tensor | None:  # [b, m] or [b, n]
    """Rows that span the band's singular vectors of a side; of the taller side as long as their values."""
    psi = gram.psi
    basis = inside.vectors @ psi.T if is_tall else inside.vectors
    if len(outside.values):
        apart = inside.values.unsqueeze(1) - outside.values
        least = torch.minimum(apart.abs().amin(1), inside.values)
        near = (least < _NEAR * gram.values[-1]).nonzero().flatten()
        own = inside.vectors[near]
        images = basis[near] if is_tall else own @ psi.T
        square = images.square().sum(1, keepdim=True)
        left = ((images @ psi) / square - own).float()
        others = outside.vectors.float()
        turn = (left @ others.T) / (1 - outside.values / square).float()
        if len(near) and not _largest(turn) <= _FIRST_ORDER:
            return None
        change = turn @ others
        basis[near] += change @ psi.float().T if is_tall else change
    return basis if is_tall or gram.factor is None else basis @ gram.factor.T
