"""Whether tensors still hold the values that something was derived from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Kept(NamedTuple):
    tensor: Tensor
    storage: torch.UntypedStorage  # held: a freed address comes back with other values
    address: int
    version: int  # of a tensor that counts its in-place writes
    shape: torch.Size
    stride: tuple[int, ...] | None  # None: contiguous
    values: Tensor | None  # of one that does not count them


class Held:
    """The tensors that a plan was made from, and whether others are these with the same values.

    Compared by identity, memory, shape and version. ``.data =`` leaves a tensor's identity and version
    as they were, so its memory is held and compared too. Inference tensors count no writes: their values
    are compared with a copy.

    What writes through ``.data``, another library or another process leaves no trace in a version.

    Args:
        tensors: what the plan is made from, in an order of the caller's.
    """

    __slots__ = ("_kept",)

    def __init__(self, *tensors: Tensor) -> None:
        self._kept = tuple(map(_keep, tensors))

    def same(self, *tensors: Tensor | None) -> bool:
        if len(tensors) != len(self._kept):
            return False
        try:
            # Unpacked at once: one image's bridge asks this twice in five microseconds.
            for now, (tensor, _, address, version, shape, stride, values) in zip(tensors, self._kept):  # noqa: B905
                if (
                    now is not tensor
                    or tensor.data_ptr() != address
                    or tensor.shape != shape
                    or (not tensor.is_contiguous() if stride is None else tensor.stride() != stride)
                    or (tensor._version != version if values is None else not torch.equal(tensor, values))
                ):
                    return False
        except RuntimeError:  # an inference tensor took the place of the data, and has no version
            return False
        return True


def _keep(tensor: Tensor) -> _Kept:
    with torch.inference_mode(False), torch.no_grad():
        counts = not tensor.is_inference()
        return _Kept(
            tensor, tensor.untyped_storage(), tensor.data_ptr(), tensor._version if counts else -1,
            tensor.shape, None if tensor.is_contiguous() else tensor.stride(),
            None if counts else tensor.detach().clone(),
        )  # fmt: skip
