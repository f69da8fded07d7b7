"""The folder of an export: one run at a time, for one set of settings, finished or not.

OUT/.lock           while a run writes: who it is
OUT/settings.json   what is exported and how; a run of other settings is refused
OUT/summary.json    counts, the files and their sizes, written last: its absence is an unfinished export
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semobridge_ext import _digest, _errors, _files, _locks
from semobridge_ext.cli.shard_files import read_json
from semobridge_ext.handover.sources import NAME

FORMAT = 1  # of settings.json and summary.json


def _size(path: Path) -> int | None:
    """Bytes of a file, or of all files of a folder; None where there is none."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.is_file() else None


class ExportFolder:
    """Where an export goes."""

    def __init__(self, path: Any) -> None:
        self.path = Path(_files.place(path, NAME))
        if self.path.is_file():
            remedy = "choose another name"
            raise ValueError(_errors.message(NAME, "out", "be a folder", f"the file {self.path}", remedy))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Makes the folder this run's own; ValueError names the run that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _locks.held(NAME, "out", self.path, self.path / ".lock"):
            yield

    def begin(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The summary of an export that is there already; None: it is to be made, or to be finished."""
        stamp = _digest.stamp({"format_of_folder": FORMAT, **settings})
        path = self.path / "settings.json"
        if path.is_file():
            found = read_json(NAME, path)
            if changed := _digest.changes(found, stamp):
                contract, got = (
                    "hold an export of the same settings",
                    f"{self.path} made with other {changed}",
                )
                remedy = "choose another folder, or delete this one"
                raise ValueError(_errors.message(NAME, "out", contract, got, remedy))
        else:
            _files.remove_leftovers(self.path)
            others = sorted(p.name for p in self.path.iterdir() if p.name != ".lock")
            if others:
                contract, got = "be new or an unfinished export", f"{self.path} with {others[0]}"
                raise ValueError(_errors.message(NAME, "out", contract, got, "choose another folder"))
            self._write("settings.json", stamp)
        _files.remove_leftovers(self.path)
        return self._finished()

    def _finished(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        if not path.is_file():
            return None
        summary = read_json(NAME, path)
        sizes = summary.get("files")
        whole = isinstance(sizes, dict) and all(_size(self.path / n) == size for n, size in sizes.items())
        if not whole:  # a file has gone or was cut: it is made again
            path.unlink()
            return None
        return summary

    def finish(self, files: list[str], readme: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Says that the export is whole; the summary."""
        _files.write_text(self.path / "README.txt", readme)
        summary = {**facts, "files": {name: _size(self.path / name) for name in files}}
        self._write("summary.json", summary)
        return summary

    def _write(self, name: str, value: Any) -> None:
        _files.write_text(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
