"""How many threads a native kernel may use."""

from __future__ import annotations

import os

import torch

_forked = False


def thread_count() -> int:
    """PyTorch's number of threads; 1 in a process made by fork.

    A forked child has the parent's record of its OpenMP threads, but not the threads: a parallel region
    would wait for them for ever (so does ``torch.mm``). Processes that were spawned are not concerned.
    """
    return 1 if _forked else torch.get_num_threads()


def _in_child() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_in_child)
