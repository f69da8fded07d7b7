"""`python -m tests.memory.soak CALLS SEED`: random mixed public calls, and who holds the memory meanwhile.

Prints a line at intervals: resident memory, malloc's blocks in use, free memory in malloc's arenas, mapped
blocks, what tracemalloc counts (with --trace), Python's blocks and live tensors. The last line is after
malloc_trim: what that brings back was free already, which is fragmentation; a leak stays in use.
"""

from __future__ import annotations

import argparse
import os
import random
import time
import tracemalloc

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.memory.entries import ENTRIES, WEIGHTS, call
from tests.memory.memory import held, trim

MIB = float(1 << 20)


def line(calls: int | str, seconds: float) -> str:
    now = held()
    traced = tracemalloc.get_traced_memory()[0] / MIB
    sizes = " ".join(f"{v / MIB:9.1f}" for v in (now.resident, now.in_use, now.free, now.mapped))
    return f"{calls:>8} {seconds:7.0f} {sizes} {traced:9.2f} {now.blocks:9} {now.tensors:7}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("calls", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--every", type=int, default=10_000, metavar="N", help="calls between two lines")
    parser.add_argument("--trace", action="store_true", help="tracemalloc too, which slows the calls down")
    parser.add_argument("--only", nargs="*", default=list(ENTRIES), metavar="NAME", help="these entries")
    parser.add_argument("--trim-each", action="store_true", help="malloc_trim at each line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.trace:
        tracemalloc.start()
    draw, began, refused = random.Random(args.seed), time.monotonic(), 0
    weights = [WEIGHTS.get(name, 1.0) for name in args.only]
    print("   calls seconds  resident    in use      free    mapped    traced    blocks tensors")
    for i in range(args.calls):
        if i % args.every == 0:
            if args.trim_each:
                trim()
            print(line(i, time.monotonic() - began), flush=True)
        (name,) = draw.choices(args.only, weights)
        refused += not call(name, draw.randrange(1 << 30))
    print(line(args.calls, time.monotonic() - began))
    trim()
    print(line("trimmed", time.monotonic() - began))
    print(f"{args.calls} calls, {refused} of them refused")


if __name__ == "__main__":
    main()
