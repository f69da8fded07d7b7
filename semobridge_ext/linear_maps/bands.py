"""The projector onto a band of singular directions of Ψ = A Wᵀ, without a singular value decomposition.

    M = U_S U_Sᵀ L = L − U_C U_Cᵀ L          L: A or W, U its side's singular vectors, S kept, C cut

The eigenvectors V of ΨᵀΨ give either side: V itself, and ΨV with the lengths taken out. In float64 that costs
less than half of Ψ's decomposition, but an angle between kept and cut directions is then wrong by about
ε·λ₁/(λ_i − λ_j), where the decomposition has ε·σ₁/(σ_i − σ_j): a σ₁/σ worse at the bottom. So directions close
to a cut are turned once more by what is left of their equation, which Ψ in place of ΨᵀΨ gives exactly:

    r_j = Ψᵀ(Ψv_j)/λ_j − v_j          v_j += Σ_i v_i·(v_iᵀr_j)/(1 − λ_i/λ_j)          i on the other side of the cut

and the lengths and angles within the band by the first order of (U Uᵀ)⁻¹. Both corrections are small, so float32
holds them. Where one is not small (singular values that are equal across a cut, or vanish), the second order
would show: there is no answer here then, and the caller decomposes Ψ. Which it is depends on the matrices and the
cuts alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of λ₁: what lies nearer to the other side of a cut is turned. Farther, the angle is right to 2⁻⁵²·2¹⁰ of a
# single pair, which a map of hundreds of directions shows no more.
_NEAR = 2.0**-8
# Of a correction: its square is what the first order leaves.
_FIRST_ORDER = 2.0**-26
# Of λ₁: Ψv is right to 2⁻⁵³·σ₁, and of a direction of σ = 2⁻¹⁴·σ₁ little enough of it is left.
_LEAST = 2.0**-28
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
    if not _RANGE[0] <= float(psi.abs().amax()) <= _RANGE[1]:
        return None
    values, vectors = torch.linalg.eigh(_lower(psi))
    return Gram(psi, values, vectors.T, factor)


def _lower(psi: Tensor) -> Tensor:
    """ΨᵀΨ up to its diagonal and a little above, which is all that `eigh` reads: 5/8 of the products."""
    width = psi.shape[1]
    gram = psi.new_zeros(width, width)
    step = -(-width // _BLOCKS)
    for begin in range(0, width, step):
        part = slice(begin, min(begin + step, width))
        gram[part, : part.stop] = psi[:, part].T @ psi[:, : part.stop]
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
    kept, rest = torch.arange(bottom, rank - top), torch.arange(rank)
    rest = rest[(rest < bottom) | (rest >= rank - top)]
    # All r directions span L's rows where L has no more dimensions than r; else the cut ones do not say what is kept.
    whole = not is_tall or rank == min(matrix.shape)
    bands = [(rest, kept, True), (kept, rest, False)] if whole else [(kept, rest, False)]
    for band, others, is_cut in sorted(bands, key=lambda b: len(b[0])):
        if not len(band):
            return matrix.clone()
        found = _projected(gram, matrix, is_tall, band, others)
        if found is not None:
            return matrix - found if is_cut else found
    return None


def _projected(gram: Gram, matrix: Tensor, is_tall: bool, band: Tensor, others: Tensor) -> Tensor | None:
    psi, largest = gram.psi, float(gram.values[-1])
    values, vectors, other = gram.values[band], gram.vectors[band], gram.vectors[others]
    if is_tall and not float(values.amin()) >= _LEAST * largest:
        return None
    basis = vectors @ psi.T if is_tall else vectors
    if len(others):
        apart = values.unsqueeze(1) - gram.values[others]
        near = (apart.abs().amin(1) < _NEAR * largest).nonzero().flatten()
        if len(near):
            own, scale = vectors[near], values[near].unsqueeze(1)
            images = basis[near] if is_tall else own @ psi.T
            left = ((images @ psi) / scale - own).float()
            other = other.float()
            turn = (left @ other.T) / (apart[near] / scale).float()
            if not float(turn.abs().amax()) <= _FIRST_ORDER:
                return None
            change = turn @ other
            basis[near] += change @ psi.float().T if is_tall else change
    if is_tall:
        basis = basis / values.sqrt().unsqueeze(1)
    elif gram.factor is not None:
        basis = basis @ gram.factor.T
    skew = basis @ basis.T
    skew.diagonal().sub_(1)
    if not float(skew.abs().amax()) <= _FIRST_ORDER:
        return None
    product = basis @ matrix
    product -= skew.float() @ product.float()
    return basis.T @ product
