"""What an inversion aims at: unit rows, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def unit_targets(
    function: str,
    name: str,
    feats: Any,
    width: int,
    compute: torch.dtype,
    device: torch.device | None = None,  # where they must be; None: anywhere
) -> Tensor:  # [B, D] in `compute`
    """[B, D] unit rows; a zero row stays zero."""
    feats = _arrays.tensor(function, name, feats, device)
    feats = _errors.check_float_tensor(function, name, feats)
    if feats.dim() != 2:
        remedy = "pass one row per sample, feats[None] for one"
        raise ValueError(_errors.message(function, name, "be 2-D", feats, remedy))
    _errors.check_last_dim(function, name, feats, width, f"the tower's features are {width} wide")
    if device is not None:
        _errors.check_same_device(function, name, feats, device)
    remedy = "drop these rows; nothing points at them"
    _errors.check_rows(function, name, feats.detach(), remedy, infinite=False)
    rows = feats.detach().to(compute).contiguous()  # the norm of a strided row has other last bits
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(rows), rows / norm)
