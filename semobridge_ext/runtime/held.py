"""Whether tensors still hold the values that something was derived from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Held:
    """The tensors that a plan was made from, and whether others are these with the same values.

    Compared by identity, memory, size, strides and version. ``.data =`` leaves a tensor's identity and
    version as they were, so its memory is held and compared too. Inference tensors count no writes: their
    values are compared with a copy.

    What writes through ``.data``, another library or another process leaves no trace in a version.

    Args:
        tensors: what the plan is made from, in an order of the caller's.
    """

    __slots__ = ("_checks", "_pair", "_storages", "_tensors")

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._storages = [t.untyped_storage() for t in tensors]  # a freed address would come back
        self._checks = tuple(map(_unchanged, tensors))
        plain = len(tensors) == 2 and all(t.is_contiguous() and not t.is_inference() for t in tensors)
        self._pair = _unchanged_pair(*tensors) if plain else None

    def same(self, *tensors: Tensor | None) -> bool:
        try:
            if self._pair is not None:
                return len(tensors) == 2 and self._pair(*tensors)
            return len(tensors) == len(self._tensors) and all(
                now is then and unchanged()
                for now, then, unchanged in zip(tensors, self._tensors, self._checks, strict=True)
            )
        except RuntimeError:  # an inference tensor took the place of the data, and has no version
            return False


def _unchanged(tensor: Tensor) -> Callable[[], bool]:
    address, size, strides = tensor.data_ptr(), tensor.numel(), tensor.stride()
    if tensor.is_inference():
        with torch.inference_mode(False), torch.no_grad():
            values = tensor.detach().clone()

        def whole() -> bool:
            return torch.equal(tensor, values)
    else:
        version = tensor._version

        def whole() -> bool:
            return tensor._version == version

    return lambda: (
        tensor.data_ptr() == address and tensor.numel() == size and tensor.stride() == strides and whole()
    )


def _unchanged_pair(a: Tensor, b: Tensor) -> Callable[[Tensor | None, Tensor | None], bool]:
    """The same for a bridge's two matrices, which one image's call asks for: half a microsecond, not one."""
    where_a, where_b, address_a, address_b = a.data_ptr, b.data_ptr, a.data_ptr(), b.data_ptr()
    size_a, size_b, count_a, count_b = a.numel, b.numel, a.numel(), b.numel()
    plain_a, plain_b, version_a, version_b = a.is_contiguous, b.is_contiguous, a._version, b._version
    return lambda x, y: (
        x is a
        and y is b
        and a._version == version_a
        and b._version == version_b
        and where_a() == address_a
        and where_b() == address_b
        and size_a() == count_a
        and size_b() == count_b
        and plain_a()
        and plain_b()
    )
