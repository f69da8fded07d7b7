"""Members of a tar from a stranger: no header can turn the reader round or fill its memory.

Python's tarfile trusts sizes: one below zero makes it read the same header for ever, one of an extended
header is read into memory whole, and a damaged header in the middle ends the archive without a word.
Plain files are read; links, devices, pipes and sparse files are named with the reason against them.
"""

from __future__ import annotations

import lzma
import re
import unicodedata
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from semobridge_ext.cli import tar_streams

MEMBER_BYTES = 1 << 28  # an uncompressed RGB image at the limit of pixels
_EXTENDED = 1 << 20  # bytes of an extended header; real ones have a few hundred
_BLOCK = 512
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device",
    b"6": "a pipe", b"S": "a sparse file",
}  # fmt: skip
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")

# What reading a damaged archive raises; struct.error and the like cannot come from the code below.
ERRORS = (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)


class Member(NamedTuple):
    """A file of the archive, or why it is not read."""

    name: str  # printable; undecodable bytes as surrogates
    size: int
    offset: int  # of its data in the uncompressed archive
    reason: str


class Archive:
    """A tar, plain or compressed, as a context manager.

    Args:
        path: of the file.
        most: bytes of a member that is read.
        unpacked: bytes of a compressed tar up to which it is read.
    """

    def __init__(
        self, path: str, most: int = MEMBER_BYTES, unpacked: int = tar_streams.UNPACKED_BYTES
    ) -> None:
        self.path, self.most, self.unpacked = path, most, unpacked

    def __enter__(self) -> Archive:
        self._file, self.compressed = tar_streams.opened(self.path, self.unpacked)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def content(self, member: Member) -> bytes:
        """Its bytes; ValueError with the reason, where it is refused or cut."""
        if member.reason:
            raise ValueError(member.reason)
        self._file.seek(member.offset)
        data = self._file.read(member.size)
        if len(data) < member.size:
            raise ValueError(f"the tar ends within {member.name}")
        return data

    def members(self) -> Iterator[Member]:
        """Files in order, without directories. ValueError where the archive is damaged: nothing follows."""
        tar_streams.check_kind(self._file)
        position, last, notes = 0, "", _Notes()
        while (block := self._block(position, last)).count(0) < _BLOCK:
            _check_sum(block, position)
            kind, size, name = block[156:157], _number(block[124:136]), _name(block)
            position += _BLOCK
            if kind == b"S":
                position = self._behind_sparse_map(block, position)
            if kind in b"xXLKg":
                _check_size(size, name)
                if kind not in b"Kg":
                    notes.read(kind, self._extended(position, size), size)
            else:
                name, size = notes.path or name, size if notes.size is None else notes.size
                size = 0 if kind in _WITHOUT_DATA else size
                last = _shown(name)
                _check_size(size, last)
                if kind != b"5" and not (kind in b"0\0" and name.endswith("/")):
                    yield Member(last, size, position, self._reason(kind, name, size, notes))
                notes = _Notes()
            position += -(-size // _BLOCK) * _BLOCK

    def _block(self, position: int, last: str) -> bytes:
        """The header at `position`; the byte before it tells whether the data of `last` is whole."""
        if self._file.tell() != position:  # never back by one byte: that would unpack all anew
            self._file.seek(max(position - 1, 0))
            if position and not self._file.read(1):
                raise ValueError(f"it ends within {last or 'a header'}")
        block = self._file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise ValueError("it ends within a header" if block else "it ends without an end mark")
        return block

    def _behind_sparse_map(self, block: bytes, position: int) -> int:
        more = block[482]
        while more:
            more = self._block(position, "")[504]
            position += _BLOCK
        return position

    def _extended(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        return self._file.read(size) if size <= _EXTENDED else b""

    def _reason(self, kind: bytes, name: str, size: int, notes: _Notes) -> str:
        if notes.reason:
            return notes.reason
        if kind not in b"0\0" + b"7":
            return f"it is {_KINDS.get(kind) or f'of kind {kind!r}, which is not read'}"
        if _shown(name) != name:
            return "its name holds control characters"
        if name.startswith("/") or ".." in name.split("/"):
            return "its name leaves the tar"
        if size > self.most:
            return f"it has {size} bytes, more than the limit of {self.most} (--max-member-bytes)"
        return ""


class _Notes:
    """What extended headers say about the file behind them."""

    def __init__(self) -> None:
        self.path, self.size, self.reason = "", None, ""  # type: str, int | None, str

    def read(self, kind: bytes, data: bytes, size: int) -> None:
        if len(data) < size:
            self.reason = f"its extended header has {size} bytes"
        elif kind == b"L":
            self.path = _text(data)
        else:
            self._records(data)

    def _records(self, data: bytes) -> None:
        """pax: b"<length> <key>=<value>\\n", length of the whole record."""
        start = 0
        while start < len(data) and data[start]:
            head = re.compile(rb"(\d{1,9}) ([^=]{1,255})=").match(data, start)
            end = start + int(head[1]) if head else 0
            if head is None or end <= head.end() or data[end - 1 : end] != b"\n":
                self.reason = "its extended header is damaged"
                return
            key, value = head[2], data[head.end() : end - 1]
            if key == b"path":
                self.path = _text(value)
            elif key == b"size":
                self.size = int(value) if re.fullmatch(rb"\d{1,19}", value) else -1
            elif key.startswith(b"GNU.sparse."):
                self.reason = "it is a sparse file"
            start = end


def read_member(path: str, name: str) -> bytes:
    """The bytes of one file of a tar; ValueError where there is none of that name."""
    with Archive(path) as tar:
        for member in tar.members():
            if member.name == name:
                return tar.content(member)
    raise ValueError(f"no {name} in {path}")


# -- fields of a header --------------------------------------------------------------------------------


def _check_sum(block: bytes, position: int) -> None:
    told, rest = _number(block[148:156]), block[:148] + block[156:]
    # Some old writers add signed bytes.
    if told != 256 + sum(rest) and told != 256 + sum(byte - 256 * (byte > 127) for byte in rest):
        raise ValueError(f"no header of a tar at byte {position}")


def _check_size(size: int, name: str) -> None:
    if not 0 <= size < 1 << 62:
        raise ValueError(f"{name} has a size of {size} bytes, and what follows it cannot be found")


def _number(field: bytes) -> int:
    """Octal digits, or, behind a first byte of 0x80 or 0xff, a big-endian number."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - (1 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"-?[0-7]*", digits):
        raise ValueError(f"no number in a header: {field!r}")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _shown(name: str) -> str:
    """The name on one line, control characters as escapes."""
    if name.isprintable():
        return name
    unfit = ("Cc", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in unfit else c for c in name
    )
