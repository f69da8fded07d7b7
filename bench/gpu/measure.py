"""Every op and loop on a GPU, timed by pairs of events beside what a user would write.

`python bench/gpu/measure.py --out FOLDER [--seconds N]`, a part of `make gpu-check`. Writes gpu_bench.json
anew after every row and appends to gpu_bench.md. The time budget ends it between two rows; what was left out
is named. Members of a row:

    plain             the program of a user who knows the folded form, in the row's dtype; for topk cuBLAS and
                      torch.topk, for loops autograd over the whole model
    auto, native, triton    the public function under each backend; one without a kernel says so
    compile           torch.compile of plain
    library           cuVS, where it is installed
    mm                the bare product by cuBLAS, where one product is most of the work

Results are held against float64 before they are timed. The exit status is 1 where one of ours is beyond its
bound or breaks. docs/gpu.md says how to read the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # the files beside this one are no package

import problems_loops
import problems_ops
import torch
from problems import BACKENDS, REAL, TINY, Lazy, Prepared, Problem, Sizes
from timing import WARM_UP, Clock, Rates, measured_rates

import semobridge_ext as sb

COMPILE_SECONDS = 60.0  # with less left, torch.compile is not begun
COLUMNS = ("call", "member", "device µs", "quartiles", "Python µs", "whole µs", "÷ plain", "÷ compile",
           "÷ mm", "of the roofline", "error")  # fmt: skip
_NO_KERNEL = ("use backend", "was built without", "needs Triton", "out of memory", "is not installed")
Row = dict[str, Any]


def all_problems(sizes: Sizes, device: torch.device) -> Iterator[Lazy]:
    """The most telling first: a budget may end it anywhere."""
    yield from problems_ops.problems(sizes, device, torch.bfloat16)
    yield from problems_loops.problems(sizes, device)
    yield from problems_ops.problems(sizes, device, torch.float32)


# -- one member --------------------------------------------------------------------------------------


def refusal(error: Exception) -> bool:
    """Whether the member only says that it has no kernel, or no room, for the call."""
    known = (NotImplementedError, RuntimeError, torch.OutOfMemoryError)
    return isinstance(error, known) and any(part in str(error) for part in _NO_KERNEL)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def peak_of(prepared: Prepared) -> int:
    """Bytes of the device's memory that a call adds at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prepared.call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_member(problem: Problem, name: str, clock: Clock, rates: Rates) -> Row:
    """Checks, then times; what it could not do is its state."""
    row: Row = {"call": problem.title, "member": name}
    try:
        prepared = problem.members[name]()
        if name != "mm":
            row["error"] = problem.check((prepared.probe or prepared.call)())
            if name in BACKENDS and not row["error"] <= problem.bound:
                told = f"error {row['error']:.1e} against float64, at most {problem.bound:.0e}"
                return row | {"state": "wrong", "told": told}
        for _ in range(WARM_UP):
            prepared.call()
        peak = peak_of(prepared)
        times = clock.measure(prepared.call)
    except Exception as error:
        return row | {"state": "refused" if refusal(error) else "failed", "told": first_line(error)}
    device, python, whole = (
        {k: v / prepared.steps for k, v in spread._asdict().items()} for spread in times[:3]
    )
    floor = rates.floor(problem.moved, problem.operations, problem.half)
    return row | {
        "state": "timed", "device": device, "python": python, "whole": whole, "ahead": times.ahead,
        "roofline": floor / device["median"], "bytes": problem.moved, "operations": problem.operations,
        "peak_bytes": peak,
    }  # fmt: skip


def with_ratios(rows: list[Row]) -> list[Row]:
    """Each member's time on the device over that of the ones that it is compared with."""
    medians = {r["member"]: r["device"]["median"] for r in rows if r["state"] == "timed"}
    for row in rows:
        if row["state"] == "timed":
            own = row["device"]["median"]
            row["ratios"] = {k: own / medians[k] for k in ("plain", "compile", "mm") if k in medians}
    return rows


def measure_problem(problem: Problem, clock: Clock, rates: Rates, end: float) -> list[Row]:
    rows = []
    for name in problem.members:
        if name == "compile" and end - time.monotonic() < COMPILE_SECONDS:
            told = f"less than {COMPILE_SECONDS:.0f} s were left"
            rows.append({"call": problem.title, "member": name, "state": "left out", "told": told})
            continue
        rows.append(measure_member(problem, name, clock, rates))
        told = f"{rows[-1]['device']['median'] * 1e6:.1f} µs" if rows[-1]["state"] == "timed" else "-"
        print(f"{problem.title}, {name}: {rows[-1]['state']} {rows[-1].get('told', told)}", flush=True)
        gc.collect()
    return with_ratios(rows)


# -- the table ---------------------------------------------------------------------------------------


def micro(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def line(row: Row, title: str) -> str:
    if row["state"] != "timed":
        told = f"{row['state']}: {row['told']}".replace("|", "\\|")
        cells = [title, row["member"], told, *[""] * (len(COLUMNS) - 3)]
    else:
        d, ratios = row["device"], row["ratios"]
        mark = "" if row["ahead"] >= 0.5 else " †"
        cells = [title, row["member"], micro(d["median"]) + mark, f"{micro(d['low'])}–{micro(d['high'])}",
                 micro(row["python"]["median"]), micro(row["whole"]["median"])]  # fmt: skip
        cells += [f"{ratios[k]:.2f}" if k in ratios else "–" for k in ("plain", "compile", "mm")]
        cells.append(f"{row['roofline']:.0%}")
        cells.append(f"{row['error']:.1e}" if "error" in row else "–")
    return "| " + " | ".join(cells) + " |\n"


def heading(facts: dict[str, str], rates: Rates) -> str:
    limits = (
        f"{rates.bandwidth / 1e9:.0f} GB/s by a copy, {rates.half / 1e12:.0f} TFLOP/s by a bfloat16 product, "
        f"{rates.single / 1e12:.1f} by a float32 one"
    )
    where = ", ".join(f"{k} {v}" for k, v in facts.items())
    return (
        f"# Times on a GPU\n\n{where}. Measured limits: {limits}.\n\n"
        "Time on the device by pairs of events, inputs not in L2, the host ahead (†: it was not in half the "
        "calls, and the time holds its gaps); Python's until the call returns; whole until the result is "
        "there. A loop's are those of one step. The floor of the roofline is the least bytes or operations "
        "of any program at the measured limits; the error is the worst row's against float64.\n\n"
        f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    )


class Report:
    """gpu_bench.json, whole after every row, and gpu_bench.md, which grows."""

    def __init__(self, out: Path, facts: dict[str, str], rates: Rates) -> None:
        self._json, self._table = out / "gpu_bench.json", out / "gpu_bench.md"
        self.record: dict[str, Any] = {"machine": facts, "rates": rates._asdict(), "rows": [], "left_out": []}
        self._table.write_text(heading(facts, rates), encoding="utf-8")
        self._write()

    def _write(self) -> None:
        draft = self._json.with_name(f".{self._json.name}.new")
        draft.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._json)

    def add(self, rows: list[Row]) -> None:
        self.record["rows"] += rows
        with self._table.open("a", encoding="utf-8") as table:
            table.writelines(line(row, "" if i else row["call"]) for i, row in enumerate(rows))
        self._write()

    def leave_out(self, count: int) -> None:
        if count:
            told = f"{count} of the problems were left out: the time was over"
            self.record["left_out"] = told
            with self._table.open("a", encoding="utf-8") as table:
                table.write(f"\n{told}.\n")
            self._write()


def machine(device: torch.device) -> dict[str, str]:
    own = torch.cuda.get_device_properties(device)
    info = sb.build_info()
    facts = {"device": own.name, "torch": torch.__version__}
    return facts | {name: str(info[name]) for name in ("triton", "cuda")}


def run(out: Path, seconds: float, device: torch.device, sizes: Sizes, only: str) -> int:
    end = time.monotonic() + seconds
    torch.set_grad_enabled(False)
    tiny = sizes is TINY
    clock = Clock(device, flush_bytes=4096 if tiny else 0, least=2 if tiny else 7, most=3 if tiny else 50)
    rates = measured_rates(clock, device, copy_bytes=4096 if tiny else 1 << 30, side=32 if tiny else 8192)
    report, lazy = Report(out, machine(device), rates), list(all_problems(sizes, device))
    for i, make in enumerate(lazy):
        if time.monotonic() >= end:
            report.leave_out(len(lazy) - i)
            break
        try:
            problem = make()
        except Exception as error:  # the next one may still fit
            row = {"call": getattr(make, "func", make).__name__, "member": "all"}
            told = first_line(error)
            report.add([row | {"state": "refused" if refusal(error) else "failed", "told": told}])
            continue
        if only in problem.title:
            report.add(measure_problem(problem, clock, rates, end))
        del problem
        gc.collect()
        torch.cuda.empty_cache()
    rows = report.record["rows"]
    return int(any(r["state"] in ("wrong", "failed") and r["member"] in (*BACKENDS, "all") for r in rows))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, which is there")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no row begins after these")
    parser.add_argument("--only", default="", help="problems whose title holds this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="sizes that show that it runs, and measure nothing"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("gpu_bench: no GPU that PyTorch can use; run it on a machine that has one")
    before = torch.is_grad_enabled()
    gc.freeze()  # what was imported lives on: a collection then looks at the members' own objects
    try:
        sizes = TINY if options.tiny else REAL
        return run(options.out, options.seconds, torch.device(options.device), sizes, options.only)
    finally:
        gc.unfreeze()
        torch.set_grad_enabled(before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
