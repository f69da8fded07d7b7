"""A model on paper: launches, bytes, operations, and the time these imply on an A100 and an H100.

`python bench/gpu/model.py [--docs docs/gpu.md]`. No figure here is a measurement. Ours is counted from
the kernels' own tiles and from what the engines launch; the plain sequence, which is what a user of
PyTorch would write (folded projector, half types, cuBLAS and torch.topk), by running it on meta tensors
(SeMoBridge-T: on real ones) and counting what PyTorch dispatches. A launch waits for the one before and takes

    NODE + the longest of   bytes of memory / bandwidth      bytes through L2 / its bandwidth
                            operations / rate                waves · loads that nothing hides

where a grid that leaves multiprocessors idle has only a share of L2's bandwidth and of the rate
(on_paper/machine.py). A launch whose blocks meet costs one NODE, and MEETING between its phases, during which
the next matrix is fetched. The host's time and overlap are left out. Both sides are counted the same way.
`--record COMMIT` keeps our side's figures as those of before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this tree, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parent))
from on_paper import loops, ops
from on_paper.machine import DEVICES, MEETING, NODE, TRIP
from on_paper.row import BEFORE, Row, before, summary, times

MARKS = ("<!-- model: written by bench/gpu/model.py -->", "<!-- end of model -->")


def all_rows() -> list[Row]:
    return [*ops.rows(), *loops.rows()]


def amount(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "


def duration(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(found: Sequence[Row]) -> str:
    header = ["call", "", "launches", "memory", "through L2", "operations", *(d.name for d in DEVICES)]
    lines = [line(header), "|" + "---|" * len(header)]
    commit, earlier = before()
    for row in found:
        title = f"{row.title} ({row.note})"
        if row.title in earlier:
            then = earlier[row.title]
            seconds = [duration(then[device.name]) for device in DEVICES]
            lines.append(line([title, f"at {commit}", f"{then['launches']:.0f}", "", "", "", *seconds]))
            title = ""
        for kind, launches in (("ours", row.ours), *([row.other] if row.other else []), ("plain", row.plain)):
            moved, work = sum(x.memory for x in launches), sum(x.operations for x in launches)
            cache = sum(max(x.cache, x.memory) for x in launches)
            cells = [title, kind, str(len(launches)), f"{amount(moved)}B", f"{amount(cache)}B"]
            lines.append(line([*cells, f"{amount(work)}FLOP", *map(duration, times(launches))]))
            title = ""
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    parser.add_argument("--record", metavar="COMMIT", help="keep our side's figures as those of this commit")
    options = parser.parse_args(argv)
    found = all_rows()
    if options.record:
        record = {"commit": options.record, "rows": {row.title: summary(row) for row in found}}
        BEFORE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    devices = "; ".join(
        f"{d.name} {d.memory / 1e12:.3g} TB/s, {d.cache / 1e12:.3g} from L2, {d.half / 1e12:.0f} and "
        f"{d.single / 1e12:.3g} TFLOP/s"
        for d in DEVICES
    )
    text = (
        f"**A model, not a measurement.** What programs reach, seen or assumed ({devices}: half-type "
        f"products and float32); {NODE * 1e6:.2g} µs a launch, {TRIP * 1e6:.2g} µs a load that nothing "
        f"hides, {MEETING * 1e6:.2g} µs for the blocks of a launch to meet.\n\n{table(found)}"
    )
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
