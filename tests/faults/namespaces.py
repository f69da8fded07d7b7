"""A PID namespace for a forked run: two such runs have the same process number, as in two containers."""

from __future__ import annotations

import ctypes
import os
import signal

NEW_PID, NEW_MOUNTS = 0x20000000, 0x00020000
PRIVATE, RECURSIVE = 1 << 18, 1 << 14
NUMBER = 2  # of every run that is apart: the first process of a namespace is deaf to its own signals


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def permitted() -> str:
    """Empty, or why no namespace can be made here."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc().unshare(NEW_PID | NEW_MOUNTS) == 0 else ctypes.get_errno())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return os.strerror(code) if code else ""


def enter() -> None:
    """Returns in process 2 of a new namespace, with a /proc of its own.

    This process stays behind and ends, stops and goes on as that one does.
    """
    _check(_libc().unshare(NEW_PID | NEW_MOUNTS))
    told, tell = os.pipe()
    going, go = os.pipe()
    first = os.fork()
    if first:
        _follow(first, told, go)
    libc = _libc()
    _check(libc.mount(None, b"/", None, PRIVATE | RECURSIVE, None))
    _check(libc.mount(b"proc", b"/proc", b"proc", 0, None))
    worker = os.fork()
    if worker:
        _watch(worker, tell, going)
    for handle in (told, tell, going, go):
        os.close(handle)
    assert os.getpid() == NUMBER and os.readlink("/proc/self") == str(NUMBER)


def _watch(worker: int, tell: int, going: int) -> None:
    """The namespace's first process: hands on what becomes of the second."""
    while True:
        _, status = os.waitpid(worker, os.WUNTRACED)
        os.write(tell, status.to_bytes(4, "little"))
        if not os.WIFSTOPPED(status):
            os._exit(0)
        os.read(going, 1)
        os.kill(worker, signal.SIGCONT)


def _follow(first: int, told: int, go: int) -> None:
    """The process that the campaign knows: does the same."""
    while True:
        status = int.from_bytes(os.read(told, 4), "little")
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.write(go, b".")
            continue
        os.waitpid(first, 0)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))
        os._exit(os.WEXITSTATUS(status))
