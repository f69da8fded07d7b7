"""A map on disk, and its pilots while it is being fitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from semobridge_ext import _digest, _locks

Map = TypeVar("Map")


class MapStore(Generic[Map]):
    """One file, read where an earlier call has finished it.

    `read` and `write` are the map's own; `facts_of` gives what it was fitted to.
    """

    def __init__(
        self,
        function: str,
        path: Path,
        facts: _digest.Stamp,
        read: Callable[[str, Any], Map],
        facts_of: Callable[[Map], _digest.Stamp],
    ) -> None:
        self.function, self.path, self.facts = function, path, facts
        self._read, self._facts_of = read, facts_of

    def part(self, index: int) -> Path:
        """Of a round's pilots."""
        return self.path.with_name(f"{self.path.name}.pilots-{index}.safetensors")

    def _finished(self) -> Map | None:
        if not self.path.exists():
            return None
        found = self._read(self.function, self.path)
        if changed := _digest.changes(self._facts_of(found), self.facts):
            raise ValueError(
                f"{self.function}: out must be new or of the same fit, got {self.path} with other {changed}; "
                f"choose another name, or delete it and {self.path.name}.pilots-*"
            )
        return found

    def kept(self, make: Callable[[], Map], write: Callable[[Map], None]) -> Map:
        """The map of an earlier call, or the one that `make` gives, written."""
        lock = self.path.with_name(self.path.name + ".lock")
        found = self._finished()
        if found is not None and not (self._left() or lock.exists()):
            return found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locks.held(self.function, "out", self.path, lock):
            found = self._finished()
            if found is None:
                found = make()
                write(found)
            for path in self._left():
                path.unlink(missing_ok=True)
        return found

    def _left(self) -> list[Path]:
        """The pilots' files, also where a call was killed after it had written the map."""
        start = f"{self.path.name}.pilots-"
        if not self.path.parent.is_dir():
            return []
        return [p for p in self.path.parent.iterdir() if p.name.startswith(start) and p.is_file()]
