"""Counting what a step launches without running it.

An engine's pieces make one kernel launch per method. Its ``cost.py`` replaces each of these methods by a
note, so that a step on a machine without a GPU tells every kernel, the bytes that it must move and its
operations. PyTorch's own launches are left for a ``TorchDispatchMode`` around the step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Note = Callable[..., None]  # kernel, bytes read and written, operations, and what an engine adds


def bytes_of(*tensors: Tensor | None) -> int:
    """Of all tensors together, each counted as often as it is named."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
