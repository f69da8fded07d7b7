"""The orthogonal map between two models' features of the same items, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def procrustes(
    function: str,
    x: Tensor,  # [N, K]
    y: Tensor,  # [N, M]
    center: bool,
) -> tuple[Tensor, Tensor | None]:  # [K, M] float64, [M]
    """Q with QᵀQ = I (or QQᵀ = I where M > K) of largest Σ ⟨x Q, y⟩, and the offset of centred rows.

    With XᵀY = U Σ Vᵀ it is U Vᵀ (Schönemann 1966).
    """
    rows = []
    for name, value in (("X", x), ("Y", y)):
        value = _arrays.tensor(function, name, value)
        _errors.check_float_tensor(function, name, value)
        if value.dim() != 2 or value.numel() == 0:
            remedy = "pass one row per item"
            raise ValueError(_errors.message(function, name, "be 2-D and not empty", value, remedy))
        _errors.check_finite(function, name, value, "drop the items with NaN or inf")
        rows.append(value.detach().to("cpu", torch.float64))
    if len(rows[0]) != len(rows[1]):
        contract, remedy = f"have {len(rows[0])} rows, as X", "row i of both must be the same item"
        raise ValueError(_errors.message(function, "Y", contract, y, remedy))
    means = [r.mean(dim=0) for r in rows]
    if center:
        rows = [r - mean for r, mean in zip(rows, means, strict=True)]
    u, _, vt = torch.linalg.svd(rows[0].T @ rows[1], full_matrices=False)
    q = u @ vt
    return q, means[1] - means[0] @ q if center else None
