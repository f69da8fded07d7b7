"""What the closed form folds into, and the cheapest products that apply it.

Without a bias ``norm(bridged) = norm(f V_r V_rᵀ)``, with V_r the right singular vectors of W that the
cut-off keeps. Three forms of that projector cost D², 2·D·r and 2·D·(D − r) multiplications a row; the
cheapest is packed for the CPU, folded once, in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize.cpu import Projection


class Fold(NamedTuple):
    """What follows from (text_projection, inverse), in float64 on the CPU."""

    rank: int
    right: Tensor  # [D, r] kept right singular vectors
    dropped: Tensor  # [D, D - r] the others
    singular: Tensor  # [min(T, D)] all singular values
    pinv: Tensor  # [D, T]
    closed_form: bool  # inverse is the pseudo-inverse, not a trained or edited one
    projector: Tensor  # [D, D]


def fold_of(text_projection: Tensor, atol: float, inverse: Tensor | None) -> Fold:
    """Folds W and its cut-off; `inverse` None stands for the pseudo-inverse itself."""
    w = text_projection.detach().to("cpu", torch.float64)
    # All of V is needed, for the complement; the reduced form has it unless W is wide.
    u, s, vh = torch.linalg.svd(w, full_matrices=w.shape[0] < w.shape[1])
    rank = int((s > atol).sum())
    right, dropped = vh[:rank].T, vh[rank:].T
    pinv = (right / s[:rank]) @ u[:, :rank].T
    projector, closed_form = right @ right.T, True
    if inverse is not None:
        held = inverse.detach().to("cpu", torch.float64)
        # Within the rounding of the dtype that it went through it still is the pseudo-inverse.
        slack = 4 * torch.finfo(inverse.dtype).eps * float(pinv.abs().amax()) if rank else 0.0
        closed_form = bool(((held - pinv).abs() <= slack).all())
        projector = projector if closed_form else held @ w
    return Fold(rank, right, dropped, s, pinv, closed_form, projector)


def packed_projector(fold: Fold, compute: torch.dtype) -> Projection:
    """``norm(f·projector)`` in its cheapest form."""
    width = fold.projector.shape[1]
    complement = 2 * fold.rank > width
    factor = fold.dropped if complement else fold.right
    # Two thin products and their extra pass pay from about half of the square one's work.
    if not fold.closed_form or 2 * factor.shape[1] > 0.9 * width:
        return Projection(fold.projector, compute=compute)
    if factor.shape[1] == 0:
        factor = factor.new_zeros(width, 1)  # full rank: only the norm is left
    return Projection(factor, factor.T, compute=compute, residual=complement)


def packed_chain(
    fold: Fold,
    inverse: Tensor,  # [D, T]
    w: Tensor,  # [T, D]
    text_length: float,
    compute: torch.dtype,
) -> Projection:
    """``ℓ·norm(f W⁺)·W``: the norm between the products stays."""
    # ‖f W⁺‖ = ‖f V_r Σ_r⁻¹‖ and V_r Σ_r⁻¹ · Σ_r V_rᵀ = W⁺ W: r columns instead of T.
    kept = fold.singular[: fold.rank]
    first, second = (
        (fold.right / kept, kept.unsqueeze(1) * fold.right.T) if fold.closed_form else (inverse, w)
    )
    return Projection(
        first, second, compute=compute, normalize_first=True, scale_first=text_length, normalize=False
    )
