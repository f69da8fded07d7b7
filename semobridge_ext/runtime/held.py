"""Whether tensors still hold the values that something was derived from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Kept(NamedTuple):
    tensor: Tensor
    storage: torch.UntypedStorage  # held: a freed address comes back with other values
    address: int
    layout: tuple[torch.Size, tuple[int, ...]]
    version: int  # of a tensor that counts its in-place writes
    values: Tensor | None  # of one that does not


class Held:
    """The tensors that a plan was made from, and whether others are these with the same values.

    Compared by identity, memory, shape and version. ``.data =`` leaves a tensor's identity and version
    as they were, so its memory is held and compared too. Inference tensors count no writes: their values
    are compared with a copy.

    What writes through ``.data``, another library or another process leaves no trace in a version.

    Args:
        tensors: what the plan is made from, in an order of the caller's.
        copies: False keeps no copies: inference tensors then never count as unchanged.
    """

    __slots__ = ("_kept",)

    def __init__(self, *tensors: Tensor, copies: bool = True) -> None:
        self._kept = tuple(_keep(t, copies) for t in tensors)

    def same(self, *tensors: Tensor) -> bool:
        if len(tensors) != len(self._kept):
            return False
        for tensor, kept in zip(tensors, self._kept, strict=True):
            if (
                tensor is not kept[0]
                or tensor.data_ptr() != kept[2]
                or (tensor.shape, tensor.stride()) != kept[3]
            ):
                return False
            try:
                if tensor._version != kept[4]:
                    return False
            except RuntimeError:  # an inference tensor
                if kept[5] is None or not torch.equal(tensor, kept[5]):
                    return False
        return True


def _keep(tensor: Tensor, copies: bool) -> _Kept:
    with torch.inference_mode(False), torch.no_grad():
        version, values = -1, None
        if not tensor.is_inference():
            version = tensor._version
        elif copies:
            values = tensor.detach().clone()
        layout = tensor.shape, tensor.stride()
        return _Kept(tensor, tensor.untyped_storage(), tensor.data_ptr(), layout, version, values)
