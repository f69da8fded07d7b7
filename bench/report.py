"""Renders pytest-benchmark's JSON into one Markdown table: every row, also those that ours loses.

`python bench/report.py results.json [more.json ...] [--out FILE]`. With several files of the same
benches a cell is the median of their medians. Ratios divide by the members `eager` and `mm` of the
same group: below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

BASELINE, LIMIT = "eager", "mm"


class Row(NamedTuple):
    group: str
    member: str
    median: float  # seconds
    spread: float  # interquartile range over median, the largest of the files
    error: float | None  # against float64, the largest of the files


class ReportError(Exception):
    """A file that cannot be reported; one line."""


def load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not record["benchmarks"]:
            raise ReportError(f"report: {path} must hold benchmarks, got none; run pytest bench again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"report: {path} must be the JSON of pytest --benchmark-json, got {type(error).__name__}: {error}"
        ) from error
    return record


def rows(records: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each group and member, in the order of the first file."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        for bench in record["benchmarks"]:
            found.setdefault((bench["group"], bench["extra_info"]["member"]), []).append(bench)
    result = []
    for (group, member), benches in found.items():
        stats = [bench["stats"] for bench in benches]
        errors = [bench["extra_info"].get("error") for bench in benches]
        result.append(
            Row(
                group,
                member,
                statistics.median(s["median"] for s in stats),
                max(s["iqr"] / s["median"] for s in stats),
                max((e for e in errors if e is not None), default=None),
            )
        )
    return result


def seconds(value: float) -> str:
    """Three digits: 12.3 µs, 4.56 ms, 1.23 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size or unit == "µs":
            number = value / size
            digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:.{digits}f} {unit}"
    raise AssertionError(value)


def table(found: Sequence[Row]) -> str:
    medians = {(row.group, row.member): row.median for row in found}
    header = ("group", "member", "median", "iqr", f"vs {BASELINE}", f"vs {LIMIT}", "error vs float64")
    lines = [list(header)]
    for row in found:
        ratios = []
        for base in (BASELINE, LIMIT):
            known = medians.get((row.group, base))
            ratios.append("–" if known is None else f"{row.median / known:.2f}")
        error = "–" if row.error is None else f"{row.error:.1e}"
        lines.append(
            [row.group, row.member, seconds(row.median), f"{100 * row.spread:.0f} %", *ratios, error]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "| " + " | ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ) + " |"
        for line in lines
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def processor(record: dict[str, Any]) -> str:
    """Its name, with the family and model that tell generations of one brand apart."""
    info = record.get("machine_info", {})
    cpu = info.get("cpu", {})
    name = str(cpu.get("brand_raw", info.get("processor") or "unknown processor"))
    if "family" not in cpu or "model" not in cpu:
        return name
    return f"{name} (family {cpu['family']} model {cpu['model']})"


def machine(record: dict[str, Any]) -> str:
    """One line: what ran where."""
    info, bench = record.get("machine_info", {}), record["benchmarks"][0]
    ours, extra = info.get("semobridge_ext", {}), bench["extra_info"]
    cpu = info.get("cpu", {})
    commit = record.get("commit_info", {})
    mark = " with changes" if commit.get("dirty") else ""
    parts = [
        processor(record),
        f"{cpu.get('count', '?')} cores",
        f"{extra.get('threads', '?')} threads",
        f"{extra.get('isa', '?')} kernels ({ours.get('compiler', 'compiler unknown')})",
        f"PyTorch {extra.get('torch', '?')}",
        f"Python {info.get('python_version', '?')}",
        f"commit {str(commit.get('id') or 'unknown')[:12]}{mark}",
        str(record.get("datetime", ""))[:10],
    ]
    return ", ".join(part for part in parts if part)


def render(records: Sequence[dict[str, Any]]) -> str:
    runs = "" if len(records) == 1 else f", medians of {len(records)} runs"
    note = f"Medians after warm-up{runs}; ratios within this table, below 1 is faster."
    return f"{machine(records[0])}\n\n{note}\n\n{table(rows(records))}\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON of pytest --benchmark-json")
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    try:
        text = render([load(path) for path in args.results])
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.write(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
