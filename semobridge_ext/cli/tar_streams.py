"""Compressed tars, unpacked as far as they are read and within a limit.

A few kilobytes may unpack to terabytes, and an .xz may ask for gigabytes of memory: both are refused before
that happens. Python's own readers of such files have no limit of either kind.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

UNPACKED_BYTES = 1 << 34  # a shard has about a gigabyte; this much unpacks in a few minutes
XZ_MEMORY = 1 << 28  # `xz -9` makes files that take 65 MiB to unpack
_PACKED = 1 << 13  # read at once; what a stream leaves of it is copied, and the smallest has 20 bytes
_PIECE = 1 << 20  # unpacked at once


class TooLarge(ValueError):
    """What lies behind is more than may be unpacked."""


class _Gzip:
    """zlib's decompressor with the interface of the other two."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)  # with the head and the checksum of gzip

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, most)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail


def _xz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


_KINDS: dict[bytes, Callable[[], Any]] = {
    rb"\x1f\x8b\x08": _Gzip, rb"BZh[1-9]1AY&SY": bz2.BZ2Decompressor, rb"\xfd7zXZ\x00": _xz,
}  # fmt: skip
_ZSTD = b"\x28\xb5\x2f\xfd"


def opened(path: str, most: int) -> tuple[BinaryIO | Unpacked, bool]:
    """The bytes of a tar, unpacked where it is compressed, and whether it is."""
    with open(path, "rb") as file:
        head = file.read(10)
    kind = next((found for magic, found in _KINDS.items() if re.match(magic, head)), None)
    if kind is None:
        return open(path, "rb"), False
    return Unpacked(path, kind, most), True


def check_kind(file: BinaryIO | Unpacked) -> None:
    """ValueError for a compression that is known and not read."""
    if not isinstance(file, Unpacked):
        head = file.read(len(_ZSTD))
        file.seek(0)
        if head == _ZSTD:
            raise ValueError("it is compressed with zstd, which is not read; compress it with gzip")


class Unpacked:
    """The unpacked bytes of a file, read forward.

    Args:
        path: of the file. kind: makes its decompressor.
        most: unpacked bytes. TooLarge for a call that leads beyond them, before it unpacks anything.
    """

    def __init__(self, path: str, kind: Callable[[], Any], most: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - until close
        self._kind, self._most = kind, most
        self._stream, self._left, self._at = kind(), b"", 0
        self._ended = False

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        """Onward, as far as the file goes; never back, which would mean to unpack all anew."""
        if position < self._at:
            raise ValueError(f"a compressed tar is read forward: from {self._at}, not back to {position}")
        self._check(position)
        while self._at < position and self._some(position - self._at):
            pass

    def read(self, size: int) -> bytes:
        self._check(self._at + size)
        found = bytearray()
        while len(found) < size and (data := self._some(size - len(found))):
            found += data
        return bytes(found)

    def _check(self, position: int) -> None:
        if position > self._most:
            raise TooLarge(f"it unpacks to more than the limit of {self._most} bytes (--max-tar-bytes)")

    def _some(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end. EOFError where a stream is cut."""
        while not self._ended:
            if self._stream.eof:
                self._next_stream()
                continue
            packed, self._left, ended = self._left, b"", False
            if not packed and self._stream.needs_input:
                packed = self._file.read(_PACKED)
                ended = not packed
            try:
                data = self._stream.decompress(packed, min(size, _PIECE))
            except lzma.LZMAError as error:
                if "Memory" not in str(error):
                    raise
                raise TooLarge(f"unpacking it takes more than {XZ_MEMORY >> 20} MiB of memory") from error
            if data:
                self._at += len(data)
                return data
            if ended and not self._stream.eof:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        return b""

    def _next_stream(self) -> None:
        """Several may stand one behind the other, with zeros between them; what is no stream is no tar's."""
        left = self._stream.unused_data.lstrip(b"\0")
        while not left and (more := self._file.read(_PACKED)):
            left = more.lstrip(b"\0")
        left += self._file.read(10) if len(left) < 10 else b""
        kind = next((found for magic, found in _KINDS.items() if re.match(magic, left)), None)
        self._ended = kind is not self._kind
        if not self._ended:
            self._stream, self._left = self._kind(), left
