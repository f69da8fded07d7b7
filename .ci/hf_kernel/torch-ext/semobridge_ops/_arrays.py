"""Tensors alone: a kernel of the hub imports PyTorch and nothing else, so NumPy's arrays are not taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Rows = Tensor

_NARROW = (torch.int32, torch.int16, torch.int8, torch.uint8)


def is_array(value: Any) -> bool:
    return False


def tensor(function: str, argument: str, value: Any, device: torch.device | None = None) -> Any:
    return value


def array(result: Tensor) -> Any:
    return result


def whole(value: Any, device: torch.device | None = None) -> Any:
    """Whole numbers of any width as int64, and lists of them; anything else as it is."""
    if isinstance(value, Tensor):
        return value.long() if value.dtype in _NARROW and value.layout is torch.strided else value
    if isinstance(value, (list, tuple, range)) and all(type(x) is int for x in value):
        return torch.tensor(list(value), dtype=torch.int64, device=device)
    return value
