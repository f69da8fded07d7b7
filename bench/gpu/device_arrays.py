"""Arrays of the kernels' cases in device memory of the exact size, so that memcheck and initcheck see it all.

Every array that a case makes gets a cudaMalloc of its own, past whose ends memcheck knows every access. The
case goes on with an array of the host; around a call of a kernel those that the call names are copied to the
device and back, and their addresses are translated. What a case only lets a kernel write is not copied there,
so that initcheck finds what is read before it is written.
"""

from __future__ import annotations

import bisect
import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tests.cuda_emulation.buffers import unwritten

_ALIGNMENT = 256  # of cudaMalloc
LISTED = ("tower_step_cuda",)  # kernels that find addresses in a list of what was noted before


class Memory(Protocol):
    """The device's: addresses and sizes in bytes."""

    def malloc(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def upload(self, to: int, data: np.ndarray) -> None: ...
    def download(self, data: np.ndarray, source: int) -> None: ...


class CudaMemory:
    """By the CUDA runtime that PyTorch has loaded; its own allocator rounds sizes up and keeps blocks."""

    def __init__(self, version: str) -> None:  # of CUDA, as torch.version.cuda
        self._cuda = ctypes.CDLL(f"libcudart.so.{version.split('.')[0]}")
        self._cuda.cudaGetErrorString.restype = ctypes.c_char_p

    def _check(self, what: str, status: int) -> None:
        if status != 0:
            said = self._cuda.cudaGetErrorString(status).decode()
            raise RuntimeError(f"device_arrays: {what} failed: {said}")

    def malloc(self, size: int) -> int:
        found = ctypes.c_void_p()
        self._check("cudaMalloc", self._cuda.cudaMalloc(ctypes.byref(found), ctypes.c_size_t(size)))
        return found.value or 0

    def free(self, address: int) -> None:
        self._cuda.cudaFree(ctypes.c_void_p(address))  # at the end of a process that failed it may fail too

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind
        self._check("cudaMemcpy", self._cuda.cudaMemcpy(*arguments))

    def upload(self, to: int, data: np.ndarray) -> None:
        self._copy(to, data.ctypes.data, data.nbytes, 1)

    def download(self, data: np.ndarray, source: int) -> None:
        self._copy(data.ctypes.data, source, data.nbytes, 2)


class Block:
    """An array of the host [size] uint8 and its memory on the device."""

    def __init__(self, host: np.ndarray, address: int, dense: bool) -> None:
        self.host, self.address, self.dense = weakref.ref(host), address, dense
        self.begin, self.size = host.ctypes.data, host.nbytes


class DeviceArrays:
    """The arrays that live, by their addresses on the host."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._blocks: dict[int, Block] = {}
        self._begins: list[int] = []
        self._noted: dict[int, Block] = {}

    def allocate(self, size: int, dense: bool = True) -> np.ndarray:
        """Bytes for a case. Not `dense`: with gaps, which are checked and so must be there at first."""
        if size == 0:
            return np.empty(0, np.uint8)  # its address is no address of the device, and may not be read
        room = np.empty(size + _ALIGNMENT, np.uint8)
        host = room[-room.ctypes.data % _ALIGNMENT :][:size].view(_Array)
        block = Block(host, self._memory.malloc(size), dense)
        self._blocks[block.begin] = block
        bisect.insort(self._begins, block.begin)
        weakref.finalize(host, self._drop, block)
        return host

    def _drop(self, block: Block) -> None:
        self._memory.free(block.address)
        del self._blocks[block.begin]
        self._begins.remove(block.begin)

    def _block_of(self, number: int) -> Block | None:
        i = bisect.bisect_right(self._begins, number) - 1
        block = self._blocks[self._begins[i]] if i >= 0 else None
        return block if block is not None and number < block.begin + block.size else None

    def _there(self, value: Any, named: dict[int, Block]) -> Any:
        """With addresses of the device; whose they are is entered in `named`."""
        if isinstance(value, tuple):
            return tuple(self._there(one, named) for one in value)
        block = self._block_of(value) if type(value) is int else None
        if block is None:
            return value
        named[block.begin] = block
        return block.address + value - block.begin

    def note(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Runs what only writes addresses down, which a later launch of `LISTED` reads."""
        return function(*self._there(args, self._noted))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], wait: Callable[[], None]) -> Any:
        """Runs a kernel on the device's memory; the host's arrays are as it leaves that."""
        named: dict[int, Block] = {}
        if getattr(function, "__name__", "") in LISTED:
            named |= {begin: block for begin, block in self._noted.items() if begin in self._blocks}

        translated = self._there(args, named)
        arrays = [(block, host) for block in named.values() if (host := block.host()) is not None]
        for block, host in arrays:
            if not (block.dense and unwritten(host)):
                self._memory.upload(block.address, host)
        result = function(*translated)
        wait()
        for block, host in arrays:
            self._memory.download(host, block.address)
        return result


class _Array(np.ndarray):
    """An array that can be referred to weakly, and to which its views hold on."""
