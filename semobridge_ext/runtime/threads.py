"""How many threads a native kernel may use."""

from __future__ import annotations

import os
import threading

import torch

_forked = False
_team = threading.local()  # .called: this thread has led a team of OpenMP's threads


def thread_count() -> int:
    """PyTorch's number of threads; 1 in a process made by fork.

    A forked child has the parent's record of its OpenMP threads, but not the threads: a parallel region
    would wait for them for ever (so does ``torch.mm``). Processes that were spawned are not concerned.
    """
    count = 1 if _forked else torch.get_num_threads()
    if count > 1:
        _team.called = True
    return count


def _in_child() -> None:
    """Where a kernel here has led a team, PyTorch's own parallel loops would hang from now on.

    OpenMP keeps a team for the thread that leads it, so a child of another thread can start teams of its own,
    and PyTorch is left as it is. PyTorch's loader does the same in its workers.
    """
    global _forked
    _forked = True
    if getattr(_team, "called", False):
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_in_child)
