"""NumPy in, NumPy out: arrays become tensors over the same memory, and results become arrays again.

A public function asks for a tensor first, so that a tensor pays nothing here. What its rows are, an array
or a tensor, its results are; its other arguments may be either.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors

Rows = TypeVar("Rows")  # a tensor for a tensor, an array for an array

_NARROW = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)
_MOST = np.iinfo(np.int64).max


class _Unlocked:
    """A read-only array's memory under an interface that does not say so; it keeps the array alive.

    Torch warns of every read-only array (a memory map, for one), though nothing here writes.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def shared(array: np.ndarray) -> Tensor:
    """A tensor over an array's memory; a copy where torch has no such layout or order of bytes."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(step < 0 or step % array.itemsize for step in array.strides):
        array = array.copy(order="C")
    if not array.flags.writeable:
        array = np.asarray(_Unlocked(array))
    return torch.from_numpy(array)


def is_array(value: Any) -> bool:
    """A NumPy array, or what becomes one by itself, as a table of pandas does."""
    return not isinstance(value, Tensor) and hasattr(value, "__array__")


def tensor(function: str, argument: str, value: Any, device: torch.device | None = None) -> Any:
    """An array of a float dtype as a tensor, on the device of what it meets; anything else as it is.

    Raises:
        TypeError: an array of another dtype.
    """
    if not is_array(value):
        return value
    found = np.asarray(value)
    if found.dtype.kind != "f" or found.dtype.itemsize > 8:
        contract, got = "be float32, float64 or float16", f"an array of {found.dtype}"
        remedy = "convert it with .astype(np.float32)"
        raise TypeError(_errors.message(function, argument, contract, got, remedy))
    return shared(found) if device is None else shared(found).to(device)


def array(result: Tensor) -> Any:
    """A result as an array, for a caller who passed arrays."""
    return result.detach().cpu().numpy()


def whole(value: Any, device: torch.device | None = None) -> Any:
    """Whole numbers of any width, in a tensor, an array or a list, as an int64 tensor; else the value."""
    if isinstance(value, Tensor):
        if value.dtype is torch.uint64 and value.layout is torch.strided:
            numbers = value.view(torch.int64)  # negative where int64 does not reach
            return value if not value.is_meta and bool((numbers < 0).any()) else numbers.clone()
        return value.long() if value.dtype in _NARROW and value.layout is torch.strided else value
    if not is_array(value) and not isinstance(value, (list, tuple, range)):
        return value
    try:
        found = np.asarray(value)
    except (TypeError, ValueError):  # ragged
        return value
    if found.dtype.kind not in "iu" and not (found.size == 0 and found.dtype.kind == "f"):
        return value
    if found.dtype == np.uint64 and found.size and int(found.max()) > _MOST:  # would turn negative
        return value
    numbers = shared(found.astype(np.int64, copy=False))
    return numbers if device is None else numbers.to(device)
