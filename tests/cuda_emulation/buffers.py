"""Arrays as the kernels meet them: any alignment and row stride, with guarded surroundings.

NumPy only: this file also runs in a process under AddressSanitizer, where the guards are left out, so
that the allocator's own red zones lie right beside the data.
"""

from __future__ import annotations

import os

import numpy as np

FLOAT, HALF, BFLOAT = 0, 2, 3  # DType of csrc/core/view.h
NAMES = {FLOAT: "float32", HALF: "float16", BFLOAT: "bfloat16"}
SANITIZED = bool(os.environ.get("CUDA_EMULATION_SANITIZED"))
GUARD = 0 if SANITIZED else 64  # bytes on both sides; bench/gpu/kernels.py takes none
# What a new array is filled with, a signalling NaN of its type: a sum that takes one from beside the rows
# shows it, and where a kernel writes what it made of one there, that is another word.
GARBAGE = {FLOAT: np.uint32(0x7FA5A5A5), HALF: np.uint16(0x7DA5), BFLOAT: np.uint16(0x7FA5)}


def allocate(size: int, dense: bool = True) -> np.ndarray:
    """Bytes that the kernels can reach; bench/gpu/device_arrays.py puts a device's memory in its place.

    Not `dense`: there are bytes between the values, which `check_guards` looks at.
    """
    return np.empty(size, np.uint8)


def unwritten(block: np.ndarray) -> bool:
    """Whether bytes hold nothing but what a new array is filled with."""
    return any(
        block.size % word.nbytes == 0 and bool((block.view(word.dtype) == word).all())
        for word in GARBAGE.values()
    )


def to_bits(values: np.ndarray, dtype: int) -> np.ndarray:
    """Float64 values rounded to nearest even, as raw words."""
    if dtype == FLOAT:
        return np.ascontiguousarray(values, np.float32).view(np.uint32)
    if dtype == HALF:
        return np.ascontiguousarray(values, np.float16).view(np.uint16)
    u = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where((u & 0x7FFFFFFF) > 0x7F800000, np.uint16(0x7FFF), rounded)


def from_bits(bits: np.ndarray, dtype: int) -> np.ndarray:
    if dtype == FLOAT:
        return bits.view(np.float32).astype(np.float64)
    if dtype == HALF:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class Matrix:
    """[rows, cols] of a storage type; `shift` elements off a 16-byte boundary, rows `gap` apart."""

    def __init__(
        self, rows: int, cols: int, dtype: int = FLOAT, *, shift: int = 0, gap: int = 0, values=None
    ) -> None:
        self.rows, self.cols, self.dtype, self.stride = rows, cols, dtype, cols + gap
        garbage = GARBAGE[dtype]
        size, word = garbage.nbytes, garbage.dtype
        length = (max(rows, 1) - 1) * self.stride + cols  # no gap behind the last row
        total = 2 * GUARD + (shift + length) * size
        dense = rows > 0 and shift == gap == 0
        self._block = allocate(total, dense)
        if self._block.ctypes.data % 16 and total:
            wider = allocate(total + 16, dense)
            begin = -wider.ctypes.data % 16
            self._block = wider[begin : begin + total]
        self._block.view(word)[...] = garbage
        self._begin = GUARD + shift * size
        inner = self._block[self._begin : self._begin + length * size].view(word)
        self._words = np.lib.stride_tricks.as_strided(
            inner, (rows, cols), (self.stride * size, size), writeable=True
        )
        if values is not None:
            self._words[...] = to_bits(np.broadcast_to(values, (rows, cols)), dtype)

    @property
    def address(self) -> int:
        return self._block.ctypes.data + self._begin

    @property
    def view(self) -> tuple[int, int, int, int, int]:
        return (self.address, self.dtype, self.rows, self.cols, self.stride)

    @property
    def values(self) -> np.ndarray:  # float64 copy
        return from_bits(np.ascontiguousarray(self._words), self.dtype)

    def check_guards(self) -> None:
        """Nothing was written beside the rows."""
        garbage = GARBAGE[self.dtype]
        untouched, first = self._block.view(garbage.dtype).copy(), self._begin // garbage.nbytes
        for r in range(self.rows):
            begin = first + r * self.stride
            untouched[begin : begin + self.cols] = garbage
        wrong = np.flatnonzero(untouched != garbage)
        assert wrong.size == 0, f"written outside the rows, first at value {int(wrong[0]) - first}"


NOTHING = (0, 0, 0, 0, 0)


def plain(values, dtype) -> np.ndarray:
    """A contiguous array of its own; under AddressSanitizer its ends are guarded by the allocator."""
    values = np.ascontiguousarray(values, dtype)
    copy = allocate(values.nbytes).view(dtype).reshape(values.shape)
    copy[...] = values
    return copy
