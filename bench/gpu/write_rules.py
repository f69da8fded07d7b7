"""Writes what `auto` takes on a GPU where nothing was measured, from the model on paper.

`python bench/gpu/write_rules.py [--docs docs/gpu.md]` writes semobridge_ext/runtime/rule_table.py. For every
architecture, operator, dtype and size the kernel's launches are held against those of `backend("eager")`,
which rounds alike (on_paper/choices.py), on the machines of that architecture (on_paper/devices.py). A kernel
is taken from the size on from which it stays ahead: on the mean of all shapes, machines and half types, and
at none of them behind by more than a fifth. No figure here is a measurement.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this tree, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch
from on_paper import choices, devices
from on_paper.machine import counting_for

TABLE = Path(__file__).resolve().parents[2] / "semobridge_ext" / "runtime" / "rule_table.py"
MARKS = ("<!-- rules: written by bench/gpu/write_rules.py -->", "<!-- end of rules -->")
# Python's time is not on paper, and Triton's launches take more of it than PyTorch's: below 4 MB of the array
# that is saved it decides.
LEAST_TRITON = 1 << 20
NEAR = 0.8
# The rate of Triton's float32 products is assumed and not counted: it would have to be wrong by as much.
ASSUMED_AHEAD = 1.25
KINDS = ((torch.float32,), choices.HALVES)
NAMES = ("float32", "half types")

Steps = list[tuple[int, str]]
Gain = tuple[float, float] | None


class Rule(NamedTuple):
    """Of one operator and kind of dtype."""

    steps: Steps
    gain: Gain  # least and most that the kernel is faster, where it is taken; None: nowhere


def _rounded(value: float) -> float:
    return round(value, 1) if value < 10 else float(round(value))


def is_ahead(kernel: str, single: bool, size: int, ratios: Sequence[float]) -> bool:
    """Of eager's times over the kernel's, at all shapes of a size."""
    if kernel == "triton" and (size < LEAST_TRITON or (single and min(ratios) < ASSUMED_AHEAD)):
        return False
    return min(ratios) > NEAR and math.prod(ratios) > 1


def rule_of(ratios: dict[int, list[float]], kernel: str, single: bool) -> Rule:
    """From eager's times over the kernel's, by size."""
    first, taken = None, []
    for size in sorted(ratios, reverse=True):
        if not is_ahead(kernel, single, size, ratios[size]):
            break
        first, taken = size, taken + ratios[size]
    if first is None:
        return Rule([(0, "eager")], None)
    gain = _rounded(min(taken)), _rounded(max(taken))
    return Rule([(0, kernel)] if first == min(ratios) else [(0, "eager"), (first, kernel)], gain)


def derive(
    only: Collection[tuple[int, int]] = (), ops: Collection[str] = ()
) -> dict[tuple[int, int], dict[str, tuple[Rule, Rule]]]:
    """Architecture → operator → its rules for float32 and for half types; all, or those named."""
    found: dict[tuple[int, int], dict[str, tuple[Rule, Rule]]] = {}
    for capability, machines in devices.architectures().items():
        if only and capability not in only:
            continue
        found[capability] = {}
        for op, calls_of in choices.OPS.items():
            if ops and op not in ops:
                continue
            rules = []
            for dtypes in KINDS:
                if op != "prepared_projection":  # which alone has another kernel for each half type
                    dtypes = dtypes[-1:]
                ratios: dict[int, list[float]] = {}
                kernel = ""
                for machine in machines:
                    with counting_for(machine):
                        for call in (call for dtype in dtypes for call in calls_of(dtype)):
                            ours, plain = (sum(x.seconds(machine) for x in side) for side in call[-2:])
                            ratios.setdefault(call.size, []).append(plain / ours)
                            kernel = call.kernel
                rules.append(rule_of(ratios, kernel, torch.float32 in dtypes))
            found[capability][op] = rules[0], rules[1]
    return found


def source(found: dict[tuple[int, int], dict[str, tuple[Rule, Rule]]]) -> str:
    """The module."""
    lines = [
        '"""Written by bench/gpu/write_rules.py from the model on paper; do not edit, write it again."""',
        "",
        "from __future__ import annotations",
        "",
        "Steps = list[tuple[int, str]]  # from this size on, this backend; ascending",
        "Gain = tuple[float, float] | None  # by what a kernel is faster on paper where it is taken",
        "Capability = tuple[int, int]",
        "",
        "# Compute capability → operator or loop → for float32 and for half types.",
    ]
    for name, kind, field in (("RULES", "Steps", "steps"), ("GAINS", "Gain", "gain")):
        lines.append(f"{name}: dict[Capability, dict[str, tuple[{kind}, {kind}]]] = {{")
        for capability, ops in found.items():
            lines.append(f"    {capability}: {{")
            for op, rules in ops.items():
                single, half = (repr(getattr(rule, field)).replace("'", '"') for rule in rules)
                lines.append(f'        "{op}": ({single}, {half}),')
            lines.append("    },")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _cell(rule: Rule) -> str:
    if rule.gain is None:
        return "PyTorch"
    words = ", ".join(
        ("PyTorch" if backend == "eager" else backend) + (f" from {least}" if least else "")
        for least, backend in rule.steps
    )
    least, most = rule.gain
    return f"{words}: {least:g}–{most:g}"


def tables(found: dict[tuple[int, int], dict[str, tuple[Rule, Rule]]]) -> str:
    """What is taken, and what the machines are."""
    names = [f"sm_{major}{minor}" for major, minor in found]
    lines = ["| operator | dtype | " + " | ".join(names) + " |", "|" + "---|" * (2 + len(names))]
    for op in choices.OPS:
        for kind, name in enumerate(NAMES):
            cells = " | ".join(_cell(rules[op][kind]) for rules in found.values())
            lines.append(f"| `{op}` | {name} | {cells} |")
    lines += [
        "",
        "| machine | architecture | memory, TB/s | half types, TFLOP/s | float32, TFLOP/s | multiprocessors "
        "| L2, MB | from L2, TB/s | launch, meeting, µs | published in |",
        "|" + "---|" * 10,
    ]
    for m in devices.MACHINES:
        major, minor = m.capability
        lines.append(
            f"| {m.name} | sm_{major}{minor} | {m.memory:g} | {m.half:g} | {m.single:g} | {m.processors} | "
            f"{m.l2} | {m.cache:g} | {m.node * 1e6:g}, {m.meeting * 1e6:g} | {m.source} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    found = derive()
    TABLE.write_text(source(found), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", TABLE], check=False)
    text = tables(found)
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
