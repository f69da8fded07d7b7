"""What a few-shot study has finished: one line an episode, which an interrupted study goes on from.

{"problem": name, "stamp": {..}}                 what its episodes depend on, before the first of them
{"episode": [name, shots, seed], "of": digest of the stamp, "records": [..]}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semobridge_ext import _digest, _files
from semobridge_ext.cli.fewshot_output import Record
from semobridge_ext.fewshot.study import Problem, facts_of

Episode = tuple[str, int, int]  # problem, shots, seed

_RECORD: dict[str, Any] = {"set": str, "method": str, "shots": int, "seed": int, "accuracy": (int, float)}


class Store:
    """The file of finished episodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamps: dict[str, _digest.Stamp] = {}
        self._done: dict[Episode, tuple[str, list[Record]]] = {}  # with the digest of the stamp
        for text in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                line = _files.parse_json(text)
            except ValueError:
                continue  # cut short by a kill: its episode is run again
            if not isinstance(line, dict):
                raise ValueError(
                    f"fewshot: --out must be new or begun by this version, got {path} of an older one, "
                    "which does not tell its inputs; choose another folder, or delete that file"
                )
            try:
                self._take(line)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"fewshot: {path} must hold results as they were written, got a line with "
                    f"{type(error).__name__}: {error}; choose another folder, or delete that file"
                ) from error

    def _take(self, line: dict[str, Any]) -> None:
        if "problem" in line:
            if not isinstance(line["stamp"], dict):
                raise TypeError("a stamp that is no object")
            self._stamps[line["problem"]] = line["stamp"]
        else:
            name, shots, seed = line["episode"]
            for record in line["records"]:
                if not all(isinstance(record[field], kind) for field, kind in _RECORD.items()):
                    raise TypeError("a record of other kinds")
                if not 0 <= record["accuracy"] <= 1:
                    raise ValueError(f"an accuracy of {record['accuracy']}")
            self._done[name, shots, seed] = line["of"], line["records"]

    def open(self, problem: Problem, settings: dict[str, Any]) -> dict[tuple[int, int], list[Record]]:
        """The finished episodes of a problem by shots and seed; refused where they are of another study."""
        stamp = _digest.stamp({**settings, **facts_of(problem)})
        found = self._stamps.get(problem.name)
        if found is not None and (changed := _digest.changes(found, stamp)):
            raise ValueError(
                f"fewshot: --out must hold results of the same inputs and settings, got {self.path} where "
                f"'{problem.name}' was run with other {changed}; choose another folder, or delete that file"
            )
        if found is None:
            _files.append_line(self.path, json.dumps({"problem": problem.name, "stamp": stamp}))
        self._stamps[problem.name], digest = stamp, _digest.digest(stamp)
        return {
            (shots, seed): records
            for (name, shots, seed), (of, records) in self._done.items()
            if name == problem.name and of == digest
        }

    def add(self, problem: Problem, shots: int, seed: int, records: list[Record]) -> None:
        of = _digest.digest(self._stamps[problem.name])
        line = {"episode": [problem.name, shots, seed], "of": of, "records": records}
        _files.append_line(self.path, json.dumps(line))
