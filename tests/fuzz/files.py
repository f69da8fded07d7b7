"""Attacks every loader with damaged and crafted files: python -m tests.fuzz.files --help.

A try must end in an object that computes finite results of the right shapes, or in an error of the house's
grammar; within two seconds and 200 MB. Anything else is printed as a find, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import tempfile
import time
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # no threads that a fork would not copy

import torch

from tests.fuzz.attacks import Case
from tests.fuzz.runner import Outcome, Target, try_all
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.shards import parquet_edits
from tests.fuzz.tensor_attacks import attacks


def cases_of(target: Target, path: Path, limit: int | None, seed: int) -> list[Case]:
    """All cases of a loader, or a draw of them in which every kind has its part."""
    rng = random.Random(seed + zlib.crc32(target.name.encode()))
    # Of the many bits of a head no more are made than can be drawn.
    found = attacks(path.read_bytes(), target.form, rng, limit)
    if target.form == "parquet":
        edits = parquet_edits(path.parent, path)
        found += [Case("edit", label, lambda data=data: data) for label, data in edits]
    if limit is None:
        return found
    kinds: dict[str, list[Case]] = collections.defaultdict(list)
    for case in found:
        kinds[case.kind].append(case)
    each = max(1, round(limit * target.share / len(kinds)))
    return [case for some in kinds.values() for case in rng.sample(some, min(each, len(some)))]


def campaign(targets: list[Target], limit: int | None, seed: int) -> list[str]:
    """Prints the counts by loader and kind; returns the finds."""
    finds, total = [], collections.Counter[str]()
    for target in targets:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            path = target.make(Path(place))
            cases = cases_of(target, path, limit, seed)
            done: list[Outcome] = try_all(target, path, cases)
        counts = collections.Counter((cases[o.case].kind, o.what) for o in done)
        total.update(o.what for o in done)
        seconds = time.perf_counter() - began
        print(f"{target.name}: {len(done)} cases, {seconds:.1f} s")
        for kind in dict.fromkeys(case.kind for case in cases):
            words = [
                f"{counts[kind, what]} {what}"
                for what in ("refused", "accepted", "find")
                if counts[kind, what]
            ]
            print(f"  {kind:<18} {', '.join(words)}")
        for o in done:
            if o.what == "find":
                finds.append(f"{target.name}, {cases[o.case].kind}, {cases[o.case].label}: {o.text[:400]}")
        sys.stdout.flush()
    print(
        f"{sum(total.values())} cases: {total['refused']} refused, {total['accepted']} accepted, "
        f"{len(finds)} finds"
    )
    return finds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, metavar="N", help="cases a loader (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORD", help="loaders whose name holds it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    finds = campaign([t for t in TARGETS if args.only in t.name], args.limit, args.seed)
    for find in finds:
        print(f"FIND {find}".encode("utf-8", "backslashreplace").decode())
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
