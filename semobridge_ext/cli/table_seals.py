"""What shards.jsonl says of a table: a line for each shard that is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _files
from semobridge_ext.cli.fingerprints import without
from semobridge_ext.cli.shard_files import SEALS


class Seal(NamedTuple):
    """A line of shards.jsonl beside a table; the fingerprints of its files stand behind."""

    proof: Any  # what a run that goes on compares; None of a shard without rows
    rows: int
    inputs: int  # of `extract`, with those that were lost
    lost: list[tuple[str, str]]  # path and reason


def read_seals(home: Path) -> dict[int, Seal]:
    """By shard; a line cut short by a kill, or of another kind, counts for nothing."""
    path, found = home / SEALS, {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            index, proof, rows, inputs, lost = without(_files.parse_json(line))
            pairs = [(path, why) for path, why in lost]
        except (ValueError, TypeError):
            continue
        whole = all(type(number) is int and 0 <= number < 1 << 53 for number in (index, rows, inputs))
        if whole and inputs == rows + len(pairs) and all(isinstance(text, str) for p in pairs for text in p):
            found[index] = Seal(proof, rows, inputs, pairs)
    return found
