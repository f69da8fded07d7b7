"""Rows of features on their way into a program: the dtype of the sums, strides, unit length."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the sums: float64 where any operand is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def materialized(x: Tensor) -> Tensor:
    """The tensor with its values in memory: a lazy negation is carried out, a zero without storage made."""
    return x.new_zeros(x.shape) if x._is_zerotensor() else x.resolve_neg()


def unit_columns(x: Tensor) -> Tensor:  # [N, D]
    """The tensor with a column stride of one, copied only where it has another."""
    x = materialized(x.detach())
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def unit_rows(x: Tensor) -> Tensor:  # [.., D]
    """``x/‖x‖`` for every row; a zero row stays zero."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norms == 0, torch.zeros_like(x), x / norms)
