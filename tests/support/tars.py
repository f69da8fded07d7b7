"""Bytes of tars: members as they are, and blocks that tarfile would not write."""

from __future__ import annotations

import tarfile


def header(name: str | bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    """One header block, its sum correct."""
    info = tarfile.TarInfo("x")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    encoded = name.encode() if isinstance(name, str) else name
    block[:100] = encoded.ljust(100, b"\0")
    block[124:136] = size.ljust(12, b"\0") if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    return summed(block)


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: str | bytes, data: bytes = b"data", kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + padded(data)


END = bytes(1024)
