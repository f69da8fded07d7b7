"""What the tests compile, kept by content in build/test-cache: one build for all workers and later runs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "test-cache"
_DAYS = 7  # an entry that no run has used for so long is removed


def digest(*contents: object) -> str:
    """Of texts, bytes, and files: a path stands for its name and what the file holds."""
    total = hashlib.sha256()
    for content in contents:
        if isinstance(content, Path):
            data = content.name.encode() + b"\0" + content.read_bytes()
        else:
            data = content if isinstance(content, bytes) else str(content).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def files_below(*folders: Path, ending: str | tuple[str, ...] = "") -> list[Path]:
    """Every file with such a name, in an order that does not depend on the file system."""
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name.endswith(ending) and path.suffix != ".pyc")


@functools.cache
def version_of(program: str) -> str:
    """What a compiler says of itself."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def kept(kind: str, contents: Iterable[object], make: Callable[[Path], object]) -> Path:
    """The folder of what `contents` determine. `make` fills it, once, whoever asks first.

    The lock's file says when the folder is whole, so an interrupted build is not taken for one.
    """
    folder = CACHE / f"{kind}-{digest(*contents)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{folder.name}.lock", "a+", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() != "whole" or not folder.is_dir():
            lock.truncate(0)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            lock.write("whole")
    for used in (folder, Path(lock.name)):
        os.utime(used)
    return folder


def remove_stale() -> None:
    """Entries of sources that are gone; called once a run, before the workers start."""
    oldest = time.time() - _DAYS * 86400
    for entry in CACHE.glob("*"):
        if entry.stat().st_mtime < oldest:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
