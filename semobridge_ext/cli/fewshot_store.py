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

_RECORD: dict[str, Any] = {"set": str, "method": str, "shots": int, "seed": int}


class Store:
    """The file of finished episodes.

    Args:
        path: of the file. function: the command, for messages. figures: fractions that a record must hold.
    """

    def __init__(
        self, path: Path, function: str = "fewshot", figures: tuple[str, ...] = ("accuracy",)
    ) -> None:
        self.path, self._function, self._figures = path, function, figures
        self._stamps: dict[str, _digest.Stamp] = {}
        self._done: dict[Episode, tuple[str, list[Record]]] = {}  # with the digest of the stamp
        for text in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                line = _files.parse_json(text)
            except ValueError:
                continue  # cut short by a kill: its episode is run again
            if not isinstance(line, dict):
                raise ValueError(
                    f"{function}: --out must be new or begun by this version, got {path} of an older one, "
                    "which does not tell its inputs; choose another folder, or delete that file"
                )
            try:
                self._take(line)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{function}: {path} must hold results as they were written, got a line with "
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
                for figure in self._figures:
                    if isinstance(record[figure], bool) or not isinstance(record[figure], (int, float)):
                        raise TypeError("a record of other kinds")
                    if not 0 <= record[figure] <= 1:
                        raise ValueError(f"a figure of {record[figure]}")
            self._done[name, shots, seed] = line["of"], line["records"]

    def open(self, problem: Problem, settings: dict[str, Any]) -> dict[tuple[int, int], list[Record]]:
        """The finished episodes of a problem by shots and seed; refused where they are of another study."""
        return self.begin(problem.name, {**settings, **facts_of(problem)})

    def begin(self, problem: str, facts: dict[str, Any]) -> dict[tuple[int, int], list[Record]]:
        """The same for a problem by its name and all that its episodes depend on."""
        stamp = _digest.stamp(facts)
        found = self._stamps.get(problem)
        if found is not None and (changed := _digest.changes(found, stamp)):
            raise ValueError(
                f"{self._function}: --out must hold results of the same inputs and settings, got "
                f"{self.path} where '{problem}' was run with other {changed}; choose another folder, or "
                "delete that file"
            )
        if found is None:
            _files.append_line(self.path, json.dumps({"problem": problem, "stamp": stamp}))
        self._stamps[problem], digest = stamp, _digest.digest(stamp)
        return {
            (shots, seed): records
            for (name, shots, seed), (of, records) in self._done.items()
            if name == problem and of == digest
        }

    def add(self, problem: Problem, shots: int, seed: int, records: list[Record]) -> None:
        self.note(problem.name, shots, seed, records)

    def note(self, problem: str, shots: int, seed: int, records: list[Record]) -> None:
        """One finished episode of what `begin` was told."""
        of = _digest.digest(self._stamps[problem])
        line = {"episode": [problem, shots, seed], "of": of, "records": records}
        _files.append_line(self.path, json.dumps(line))
