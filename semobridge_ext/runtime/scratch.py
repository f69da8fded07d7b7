"""Named scratch: tensors that a step writes before it reads them, shared under a name."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Workspaces by name and dtype: made by the first step, the same memory ever after.

    A captured graph names addresses, so a step must not allocate once it is captured. A name that is
    asked for at a larger size gets new memory, and the old one is kept for the graphs that still use it;
    ask for the largest size first where that would cost memory.

    Args:
        device: of every tensor.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._outgrown: list[Tensor] = []

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of this shape; zeros at first, later what the last user left in it."""
        size = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < size:
            if kept is not None:
                self._outgrown.append(kept)
            kept = self._kept[name, dtype] = torch.zeros(size, dtype=dtype, device=self.device)
        return kept[:size].view(shape)
