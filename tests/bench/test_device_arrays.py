"""The arrays of the kernels' cases on a device: exact sizes, translated addresses, what is copied."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from bench.gpu.device_arrays import CudaMemory, DeviceArrays
from tests.cuda_emulation import buffers
from tests.cuda_emulation.buffers import HALF, Matrix, plain
from tests.support.device_memory import FakeMemory


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    memory = FakeMemory()
    memory.device = DeviceArrays(memory)
    monkeypatch.setattr(buffers, "allocate", memory.device.allocate)
    monkeypatch.setattr(buffers, "GUARD", 0)
    return memory


def bytes_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def waiting() -> None:
    pass


def test_an_array_is_as_long_as_its_values(memory: FakeMemory):
    """Guards inside of the allocation hid from memcheck what was written there."""
    kept = [Matrix(3, 5), Matrix(3, 5, gap=2), Matrix(2, 7, HALF, shift=1), plain([1, 2, 3], np.int64)]
    assert memory.sizes == [60, ((2 * 7) + 5) * 4, 15 * 2, 24] and len(memory.arrays) == 4
    assert kept[2].address % 16 == 2 and all(address % 16 == 0 for address in memory.arrays)
    empty = Matrix(0, 5)
    assert memory.sizes[4:] == [20] and empty.rows == 0


def test_a_kernel_sees_the_device_s_memory(memory: FakeMemory):
    x, out = Matrix(2, 4, values=np.arange(8.0).reshape(2, 4)), Matrix(2, 4)
    seen: list[tuple] = []

    def kernel(view: tuple, flag: bool, address: int, scale: float) -> str:
        seen.append((view, flag, address, scale))
        bytes_at(address, 32)[:] = bytes_at(view[0], 32)
        return "done"

    assert memory.device.call(kernel, (x.view, True, out.address, 2.0), waiting) == "done"
    (view, flag, address, scale) = seen[0]
    assert view[0] in memory.arrays and address in memory.arrays and view[1:] == x.view[1:]
    assert flag is True and scale == 2.0 and np.array_equal(out.values, x.values)
    inside = x.address + 12
    memory.device.call(lambda a: seen.append(a), (inside,), waiting)
    assert seen[1] == view[0] + 12, "an address inside of an array"


def test_an_overrun_leaves_the_allocation(memory: FakeMemory):
    out = Matrix(2, 3)

    def overruns(address: int) -> None:
        bytes_at(address, 25)[:] = 1

    memory.device.call(overruns, (out.address,), waiting)
    (address,) = memory.arrays
    assert memory.beside(address, 24) == 1
    out.check_guards()  # which cannot see it


def test_what_a_kernel_is_to_write_is_not_initialised(memory: FakeMemory):
    out, gaps, x = Matrix(2, 4), Matrix(2, 4, gap=3), Matrix(1, 4, values=np.zeros(4))
    memory.device.call(lambda *_: None, (out.address, gaps.address, x.view), waiting)
    at = {m: next(a for a, size in zip(memory.arrays, memory.sizes, strict=True) if size == n)
          for m, n in (("out", 32), ("gaps", 44), ("x", 16))}  # fmt: skip
    assert set(memory.uploads) == {at["gaps"], at["x"]}, "initcheck would find a read of `out`"
    memory.device.call(lambda *_: None, (out.address,), waiting)
    assert memory.uploads[-1] == at["out"], "what the host has seen is there"


def test_memory_goes_with_its_array(memory: FakeMemory):
    x = Matrix(2, 4)
    words = x._words
    del x
    gc.collect()
    assert len(memory.arrays) == 1, "a view holds on to it"
    del words
    gc.collect()
    assert not memory.arrays and memory.device._block_of(1 << 40) is None


def test_what_a_list_names_is_there_for_its_launch(memory: FakeMemory):
    """A phase is written down with the device's addresses; its launch takes and brings what they name."""
    x, y, z = (Matrix(1, 4, values=np.arange(4.0)) for _ in range(3))
    listed: list[int] = []
    memory.device.note(lambda a, b: listed.extend((*a, b)), ((x.address,), y.address))
    assert listed[0] in memory.arrays and listed[1] in memory.arrays

    def tower_step_cuda(address: int) -> None:
        bytes_at(listed[1], 16)[:] = bytes_at(listed[0], 16)
        bytes_at(address, 16)[:] = 0

    x._words[...] = Matrix(1, 4, values=7.0)._words
    memory.device.call(tower_step_cuda, (z.address,), waiting)
    assert (y.values == 7).all() and (z.values == 0).all()
    del x, y
    gc.collect()
    memory.device.call(lambda a: None, (z.address,), waiting)


class Runtime:
    """CUDA's runtime as far as its memory goes, on the host's."""

    def __init__(self) -> None:
        self.held: dict[int, ctypes.Array] = {}
        self.cudaGetErrorString = lambda status: f"error {status}".encode()  # a function that takes `restype`

    def cudaMalloc(self, found, size: ctypes.c_size_t) -> int:
        if size.value > 1 << 20:
            return 2
        block = ctypes.create_string_buffer(size.value)
        found._obj.value = ctypes.addressof(block)
        self.held[ctypes.addressof(block)] = block
        return 0

    def cudaFree(self, address: ctypes.c_void_p) -> int:
        del self.held[address.value]
        return 0

    def cudaMemcpy(
        self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int
    ) -> int:
        inside = to if kind == 1 else source
        if inside.value not in self.held:
            return 1
        ctypes.memmove(to, source, size.value)
        return 0


def test_memory_of_cuda(monkeypatch: pytest.MonkeyPatch):
    runtime, asked = Runtime(), []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (asked.append(name), runtime)[1])
    memory = CudaMemory("13.0")
    assert asked == ["libcudart.so.13"], "that of PyTorch's major version"
    address = memory.malloc(8)
    there, back = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
    memory.upload(address, there)
    memory.download(back, address)
    assert (back == there).all()
    with pytest.raises(RuntimeError, match=r"^device_arrays: cudaMalloc failed: error 2$"):
        memory.malloc(1 << 21)
    with pytest.raises(RuntimeError, match=r"^device_arrays: cudaMemcpy failed: error 1$"):
        memory.download(back, 16)
    memory.free(address)
    assert not runtime.held
    assert DeviceArrays(memory).allocate(0).size == 0 and not runtime.held, "nothing is nothing there too"
