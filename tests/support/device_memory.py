"""A device's memory for bench/gpu/device_arrays.py: other bytes than the host's, uninitialised and fenced."""

from __future__ import annotations

import numpy as np

_FENCE, _NOTHING = 64, 0x7F
_MARK = 0xC3


class FakeMemory:
    """Exact sizes; `beside` tells what was written past an end, as memcheck would."""

    def __init__(self) -> None:
        self.arrays: dict[int, np.ndarray] = {}
        self.uploads: list[int] = []  # addresses
        self.sizes: list[int] = []
        self.most = 0

    def malloc(self, size: int) -> int:
        room = np.full(size + 2 * _FENCE + 16, _MARK, np.uint8)
        begin = _FENCE + -(room.ctypes.data + _FENCE) % 16
        room[begin : begin + size] = _NOTHING
        address = room.ctypes.data + begin
        self.arrays[address] = room
        self.sizes.append(size)
        self.most = max(self.most, len(self.arrays))
        return address

    def _values(self, address: int, size: int) -> np.ndarray:
        room = self.arrays[address]
        begin = address - room.ctypes.data
        return room[begin : begin + size]

    def free(self, address: int) -> None:
        del self.arrays[address]

    def upload(self, to: int, data: np.ndarray) -> None:
        self.uploads.append(to)
        self._values(to, data.nbytes)[:] = data

    def download(self, data: np.ndarray, source: int) -> None:
        data[:] = self._values(source, data.nbytes)

    def beside(self, address: int, size: int) -> int:
        """Bytes that were written outside of an array of that size."""
        room = self.arrays[address].copy()
        begin = address - self.arrays[address].ctypes.data
        room[begin : begin + size] = _MARK
        return int((room != _MARK).sum())
