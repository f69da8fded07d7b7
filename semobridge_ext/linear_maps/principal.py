"""Principal directions of rows, for the maps that are taken from data."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def principal_directions(function: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], variances [D] descending, directions [D, D] of the rows [N, D], in float64."""
    rows = _arrays.tensor(function, "rows", rows)
    _errors.check_float_tensor(function, "rows", rows)
    if rows.dim() != 2 or len(rows) < 2 or rows.shape[1] == 0:
        raise ValueError(_errors.message(function, "rows", "be [N, D] with N ≥ 2", rows, "pass more rows"))
    _errors.check_finite(function, "rows", rows, "drop the rows with NaN or inf")
    wide = rows.detach().to("cpu", torch.float64)
    mean = wide.mean(dim=0)
    centred = wide - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(wide) - 1))
    return mean, values.flip(0).clamp_min(0), vectors.flip(1)
