"""One run at a time: a lock file that says who holds it.

The lock is flock's: it ends with the process, however that ends, and it holds between containers and
processes that see other numbers for each other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semobridge_ext._errors import naming

_AGAIN = 0.02  # seconds between two tries
_open: set[int] = set()  # descriptors that a forked child must not keep locked


def _close_in_child() -> None:
    while _open:
        with suppress(OSError):
            os.close(_open.pop())


os.register_at_fork(after_in_child=_close_in_child)


def try_lock(handle: int) -> bool | None:
    """Whether the open file is this process's now; None: its file system has no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        return False if held else None
    return True


def is_at(handle: int, path: Any) -> bool:
    """Whether the open file still stands at the path: another process may have removed it."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _holder(path: Path) -> str:
    """What the other run wrote of itself."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"process {record['pid']} on {record['host']} has been writing since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # it has only just taken the lock
        return "another process is writing"


def _acquire(function: str, argument: str, owned: Any, path: Path, patience: float) -> int:
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        taken = try_lock(handle)
        if taken and is_at(handle, path):
            return handle
        told = _holder(path) if taken is False else ""
        os.close(handle)
        if taken is None:
            raise OSError(
                f"{function}: {argument} must lie on a file system with locks, got {owned}, where flock "
                "fails; choose a folder on another one"
            )
        if not taken and time.monotonic() < until:
            time.sleep(_AGAIN)
            continue
        if not taken:
            raise ValueError(
                f"{function}: {argument} must belong to one run, got {owned}, which {told}; wait for it or "
                "choose another name"
            )


@contextmanager
def held(function: str, argument: str, owned: Any, path: Any, *, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs; `owned` is what the block may write.

    Another holder is waited for that many seconds: where a block takes milliseconds, nobody need be refused.

    Raises ValueError, which names process, host and time, where another run holds it, in this process
    too; OSError where the file system has no locks. The file goes when the block ends; what a killed
    process leaves of it locks nothing.
    """
    path = Path(path)
    handle, process = _acquire(function, argument, owned, path, patience), os.getpid()
    _open.add(handle)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        record = {"pid": process, "host": socket.gethostname(), "since": since}
        with naming(path):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(record).encode() + b"\n")
        yield
    finally:
        if os.getpid() == process:  # a forked child holds nothing
            with suppress(OSError):  # its folder may be gone
                if is_at(handle, path):
                    os.unlink(path)  # while it is locked, so that nobody has it who comes later
            _open.discard(handle)
            os.close(handle)
