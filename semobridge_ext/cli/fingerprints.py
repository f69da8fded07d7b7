"""A few pages of a file, hashed: whether it is the one that was written there, at the cost of opening it.

A swapped or replaced shard differs in nearly every page. One that was damaged in between is found by the
digest of the whole file, which a run that goes on compares.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

PAGE = 1 << 12  # bytes; three of them are read, and part of what a fingerprint is


def fingerprint(path: Path) -> str:
    """32 hexadecimal digits of the size and the first, middle and last page of a file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        total = hashlib.blake2b(b"%d " % size, digest_size=16)
        for at in sorted({0, max(0, size // 2 - PAGE // 2), max(0, size - PAGE)}):
            file.seek(at)
            total.update(file.read(PAGE))
    return total.hexdigest()


def found_in(line: list[Any]) -> dict[str, str]:
    """By file name, what the end of a line of shards.jsonl says; older versions wrote none."""
    last = line[-1]
    return {str(name): str(kept) for name, kept in last.items()} if isinstance(last, dict) else {}


def without(line: Any) -> Any:
    """The value of a line as it is where there are none."""
    return line[:-1] if isinstance(line, list) and line and isinstance(line[-1], dict) else line
