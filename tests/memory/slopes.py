"""`python -m tests.memory.slopes [CALLS]`: what each public entry holds more of with every call.

New arguments each time, as a cache by shape or value would hide behind old ones. The slope is the median of
what the groups of calls have added, in bytes of malloc in use and in Python's own blocks: what is kept once,
such as scratch that grows to the largest call, adds to one group, and a leak adds to all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.memory.entries import ENTRIES, call
from tests.memory.memory import Held, held

POINTS = 9  # between which calls are counted


class Slope(NamedTuple):
    calls: int
    seconds: float
    kib: float  # of malloc in use a call
    blocks: float  # of Python a call
    tensors: float  # a call


def _slope(x: list[float], y: list[float]) -> float:
    return median((y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1))


def slope(entry: Callable[[int], object], calls: int, seconds: float) -> Slope:
    """Of `entry(seed)`, after a third of the calls; fewer where the seconds do not suffice."""
    began = time.monotonic()
    each = max(1, calls // (3 * POINTS // 2))
    seed = 0
    at: list[float] = []
    found: list[Held] = []
    for point in range(3 * POINTS // 2):
        for _ in range(each):
            entry(seed)
            seed += 1
        if point >= POINTS // 2:
            at.append(float(seed))
            found.append(held())
        elif time.monotonic() - began > seconds / 3:
            each = max(1, each // 2)
    lines = {
        name: _slope(at, [float(getattr(h, name)) for h in found]) for name in ("in_use", "blocks", "tensors")
    }
    spent = time.monotonic() - began
    return Slope(seed, spent, lines["in_use"] / 1024, lines["blocks"], lines["tensors"])


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    torch.set_num_threads(1)
    print(
        f"{'entry':<20} {'calls':>7} {'seconds':>8} {'KiB/call':>10} {'blocks/call':>12} {'tensors/call':>13}"
    )
    for name in sys.argv[2:] or ENTRIES:
        s = slope(lambda seed, name=name: call(name, seed), calls, 30.0)
        print(
            f"{name:<20} {s.calls:7} {s.seconds:8.1f} {s.kib:10.4f} {s.blocks:12.4f} {s.tensors:13.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
