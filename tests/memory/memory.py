"""How much memory a process has, by who holds it: the system, malloc, Python."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip
_libc = ctypes.CDLL(None)
HAS_MALLINFO = hasattr(_libc, "mallinfo2")  # glibc 2.33


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


if HAS_MALLINFO:
    _libc.mallinfo2.restype = _Mallinfo


class Held(NamedTuple):
    """Bytes, and Python's counts.

    Resident less what is in use and free in malloc's arenas is code, mapped files and Python's own arenas.
    """

    resident: int
    in_use: int  # malloc's, in arenas and mapped
    free: int  # in malloc's arenas: what fragmentation is
    mapped: int  # of `in_use`, blocks with a mapping of their own
    blocks: int  # Python's own small ones, by count
    tensors: int  # that the collector knows


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> Held:
    """After a collection."""
    gc.collect()
    tensors = sum(issubclass(type(found), Tensor) for found in gc.get_objects())  # asks no proxy
    found = _libc.mallinfo2()
    return Held(
        resident(), found.uordblks + found.hblkhd, found.fordblks, found.hblkhd,
        sys.getallocatedblocks(), tensors,
    )  # fmt: skip


def trim() -> None:
    """What is free in malloc's arenas goes back to the system."""
    gc.collect()
    _libc.malloc_trim(0)
