"""Appends a release's benchmarks to one CSV, so that versions can be compared: bench/results/history.csv.

`python bench/history.py bench/results/bench.json VERSION [--out FILE]`. A row is one member of one group: the
20th, 50th and 80th percentile of its rounds in seconds, and its error against float64. What a version has
measured on a machine is not written twice.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report import ReportError, load, processor

COLUMNS = (
    "version",
    "date",
    "processor",
    "threads",
    "isa",
    "torch",
    "group",
    "member",
    "p20",
    "p50",
    "p80",
    "error",
)
HOME = Path(__file__).resolve().parent / "results" / "history.csv"


def lines(record: dict[str, Any], version: str) -> list[dict[str, Any]]:
    """One for each benchmark of a run, in its order."""
    name = processor(record)
    found = []
    for bench in record["benchmarks"]:
        extra = bench["extra_info"]
        p20, p50, p80 = np.percentile(bench["stats"]["data"], (20, 50, 80))
        error = extra.get("error")
        found.append({
            "version": version, "date": str(record.get("datetime", ""))[:10], "processor": name,
            "threads": extra.get("threads"), "isa": extra.get("isa"), "torch": extra.get("torch"),
            "group": bench["group"], "member": extra["member"], "p20": f"{p20:.4g}", "p50": f"{p50:.4g}",
            "p80": f"{p80:.4g}", "error": "" if error is None else f"{error:.2g}",
        })  # fmt: skip
    return found


def append(path: Path, added: Sequence[dict[str, Any]]) -> None:
    """Behind what the file holds; ReportError where it holds the same version of the same machine."""
    known: list[dict[str, str]] = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            known = list(csv.DictReader(file))
    first = added[0]
    if any(row["version"] == first["version"] and row["processor"] == first["processor"] for row in known):
        raise ReportError(
            f"history: VERSION must be new for this machine, got {first['version']} on {first['processor']}, "
            f"which {path} holds; delete its rows to measure again"
        )
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows(added)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON of pytest --benchmark-json")
    parser.add_argument("version", help="of the release, such as 0.2.0")
    parser.add_argument("--out", type=Path, default=HOME)
    args = parser.parse_args(argv)
    try:
        added = lines(load(args.results), args.version)
        append(args.out, added)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{args.out}: {len(added)} rows of {args.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
