"""The file of an unfinished training: whose it is, whole or not, and one run at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from semobridge_ext import _digest, _files, _locks, _numbers

AGAIN = "remove it and train again"


class Checkpoint:
    """One run's state in a file.

    Args:
        function: the public call that trains, for messages.
        file_format: of the file.
        data: what the run is trained on, for messages.
        path: of the file.
        facts: everything that the training depends on, by the names that ``fit`` and the constructor
            have for it. A file of other facts is refused, and the message says which differ.
    """

    def __init__(self, function: str, file_format: str, data: str, path: Any, facts: dict[str, Any]) -> None:
        self._function, self._format, self._data = function, file_format, data
        self.path, self.stamp = _files.place(path, function), _digest.stamp(facts)

    def exists(self) -> bool:
        return os.path.exists(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs off the file, which would overwrite it in turns."""
        _files.make_folder(Path(self.path))
        with _locks.held(self._function, "checkpoint", self.path, f"{self.path}.lock"):
            yield

    def save(self, tensors: dict[str, Tensor], progress: Any) -> None:
        """Writes the tensors, and where the run stands as JSON."""
        text = json.dumps(progress, default=_numbers.for_json)
        meta = {"stamp": json.dumps(self.stamp), "progress": text, "format": self._format}
        meta["content"] = _digest.digest([tensors, text])
        _files.save_tensors(self.path, {n: t.clone() for n, t in tensors.items()}, meta)

    def load(self, names: Iterable[str]) -> tuple[dict[str, Tensor], Any]:
        """The named tensors and where the run stands; ValueError for another run's file or a damaged one."""
        _, meta = self._read(())
        if changed := _digest.changes(self._stamp_of(meta["stamp"]), self.stamp):
            raise ValueError(
                f"{self._function}: checkpoint must come from the same {self._data} and settings, got "
                f"{self.path} of another run, with other {changed}; choose another name or remove it"
            )
        tensors, meta = self._read(tuple(names))
        if _digest.digest([tensors, meta["progress"]]) != meta["content"]:
            raise self._damaged()
        return tensors, json.loads(meta["progress"])

    def _read(self, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
        required = ("stamp", "progress", "content")
        remedy = f"{AGAIN}, or finish the run with the version that began it"
        return _files.load_tensors(
            self._function, self.path, self._format, names, required, remedy, damaged=AGAIN
        )

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{self._function}: checkpoint must hold what was written, got {self.path} with other bytes; "
            f"{AGAIN}"
        )

    def _stamp_of(self, text: str) -> dict[str, Any]:
        try:
            found = _files.parse_json(text)
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(found, dict):
            raise self._damaged()
        return found
