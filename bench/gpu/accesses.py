"""Runs every CUDA kernel in emulation with its accesses watched; tabulates what the requests of warps move.

`python bench/gpu/accesses.py [--docs docs/gpu.md] [--lines]`. Needs g++ and the test tools, no GPU. A request
is one instruction of a warp. Global memory moves sectors of 32 bytes, shared memory wavefronts of 32 banks.
Needed is what the same bytes take as one run from the same start. tests/cuda_emulation/test_traffic.py bounds
the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MARKS = ("<!-- accesses: written by bench/gpu/accesses.py -->", "<!-- end of accesses -->")

if TYPE_CHECKING:
    from tests.cuda_emulation.watched import Line


def measured() -> list[Line]:
    from tests.cuda_emulation.watched import by_line, traffic, watched

    return by_line(traffic(watched().build().module))


def cells(lines: Sequence[Line]) -> list[str]:
    """Moved and needed by a request, on the mean; the worst line's and the worst request's ratio."""
    if not lines:
        return ["–"] * 4
    requests = sum(line.requests for line in lines)
    return [
        f"{sum(line.moved for line in lines) / requests:.2f}",
        f"{sum(line.needed for line in lines) / requests:.2f}",
        f"{max(line.ratio for line in lines):.2f}",
        f"{max(line.worst for line in lines):.2f}",
    ]


def table(lines: Sequence[Line]) -> str:
    header = ["kernel", "sectors per request", "needed", "worst line", "worst request",
              "wavefronts per request", "needed", "worst line", "worst request"]  # fmt: skip
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for kernel in sorted({line.kernel for line in lines}):
        mine = [line for line in lines if line.kernel == kernel]
        both = [cells([line for line in mine if line.shared is shared]) for shared in (False, True)]
        rows.append("| " + " | ".join([f"`{kernel}`", *both[0], *both[1]]) + " |")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    parser.add_argument("--lines", action="store_true", help="print every line of the kernels too")
    options = parser.parse_args(argv)
    found = measured()
    text = (
        "Over the cases of the test suite; a line's and a request's ratio is what it moves over what it "
        f"needs.\n\n{table(found)}"
    )
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    if options.lines:
        for line in sorted(found, key=lambda line: -line.ratio):
            print(
                f"{line.ratio:5.2f} {line.worst:5.2f} {line.kernel} {line.place} {line.shared=} {line.store=}"
            )
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
