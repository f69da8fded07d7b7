"""The entries of a folder in order of name, however many there are, some thousand names in memory.

A folder of more than RUN entries is sorted in runs on disk that are merged as they are read. Python's own
entries of a million files take about 300 MB.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

RUN = 1 << 15  # names in memory at once


class Entry:
    """What of os.DirEntry is asked for, by name alone."""

    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, os.path.join(folder, name)

    def is_dir(self) -> bool:
        return os.path.isdir(self.path)

    def stat(self) -> os.stat_result:
        return os.stat(self.path)


def sorted_entries(folder: str | Path) -> Iterable[os.DirEntry[str] | Entry]:
    """Files and folders within a folder; what the system refuses is raised here, not later."""
    with os.scandir(folder) as found:
        first: list[os.DirEntry[str]] = []
        for entry in found:
            first.append(entry)
            if len(first) > RUN:
                return _merged(os.fspath(folder), _runs(first, found))
    return sorted(first, key=lambda e: e.name)


def _runs(first: list[os.DirEntry[str]], rest: Iterator[os.DirEntry[str]]) -> list[BinaryIO]:
    """Sorted runs of names, in files that go when they are closed."""
    runs, names = [_run([entry.name for entry in first])], []
    first.clear()
    for entry in rest:
        names.append(entry.name)
        if len(names) == RUN:
            runs.append(_run(names))
            names = []
    return [*runs, _run(names)]


def _run(names: list[str]) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has been read
    file.writelines(os.fsencode(name) + b"/" for name in sorted(names))  # which no name holds
    file.seek(0)
    return file


def _merged(folder: str, runs: list[BinaryIO]) -> Iterator[Entry]:
    for name in heapq.merge(*map(_names, runs)):
        yield Entry(folder, name)


def _names(file: BinaryIO) -> Iterator[str]:
    with file:
        left = b""
        while piece := file.read(1 << 12):
            *whole, left = (left + piece).split(b"/")
            yield from map(os.fsdecode, whole)
