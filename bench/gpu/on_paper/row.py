"""One call of the table, and what the same model said of it before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from on_paper.machine import DEVICES, Launch

BEFORE = Path(__file__).with_name("before.json")


class Row(NamedTuple):
    title: str
    note: str
    ours: list[Launch]
    plain: list[Launch]  # the sequence that a user of PyTorch writes
    other: tuple[str, list[Launch]] | None = None  # another way of ours, by its name


def times(launches: list[Launch]) -> list[float]:
    """Seconds on each of `DEVICES`: every launch waits for the one before."""
    return [sum(launch.seconds(device) for launch in launches) for device in DEVICES]


def summary(row: Row) -> dict[str, float]:
    """What is kept of a row's own side for later tables: launches, and seconds by device."""
    named = zip((device.name for device in DEVICES), times(row.ours), strict=True)
    return {"launches": len(row.ours), **dict(named)}


def before() -> tuple[str, dict[str, dict[str, float]]]:
    """The commit whose kernels were counted, and their summaries by title."""
    record = json.loads(BEFORE.read_text(encoding="utf-8"))
    return record["commit"], record["rows"]
