"""Watching what a call makes anew of operands that are kept in float64 on the host."""

from __future__ import annotations

from torch import Tensor, float64, ops
from torch.utils._python_dispatch import TorchDispatchMode


class Conversions(TorchDispatchMode):
    """Counts what is copied from float64, as it would be onto another device, and exponentials in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        wide = isinstance(args[0], Tensor) and args[0].dtype is float64
        self.count += wide and function in (ops.aten._to_copy.default, ops.aten.exp.default)
        return function(*args, **(kwargs or {}))
