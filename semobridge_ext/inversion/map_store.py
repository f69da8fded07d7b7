"""A map on disk, its pilots and its training while it is being fitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from semobridge_ext import _digest, _files, _locks, _schema

FORMAT = "semobridge-ext inversion map 1"
_FILE = {
    "matrix": _schema.Field(("D", "M"), (torch.float64,)),
    "offset": _schema.Field(("R", "T"), (torch.float64,)),
    "inner": _schema.Field(("D", "H"), (torch.float64,), optional=True),
    "outer": _schema.Field(("H", "M"), (torch.float64,), optional=True),
}

Map = TypeVar("Map")


def write_map(path: Any, parts: dict[str, Tensor], facts: dict[str, Any]) -> None:
    _files.save_tensors(path, parts, {"format": FORMAT, "facts": json.dumps(facts, sort_keys=True)})


@contextmanager
def read_map(where: str, path: Any) -> Iterator[tuple[dict[str, Any], _digest.Stamp]]:
    """The arguments of InversionMap, and what it was fitted to; what is made of them may refuse them."""
    tensors, meta = _schema.load(where, path, FORMAT, _FILE, ("facts",))
    with _schema.restoring(where, path):
        facts = _files.parse_json(meta["facts"])
        ridge = _schema.number(where, path, "ridge", facts["ridge"], 0.0)
        least = facts["held_out_loss"]
        if least is not None:
            least = _schema.number(where, path, "held_out_loss", least)
        pilots = facts["pilots"]
        _schema.need(where, path, isinstance(pilots, dict), "facts of its pilots", pilots)
        layer = [tensors[name] for name in ("inner", "outer") if name in tensors]
        _schema.need(where, path, len(layer) != 1, "inner and outer, or neither", sorted(tensors))
        parts = {
            "matrix": tensors["matrix"], "offset": tensors["offset"], "identity": facts["identity"],
            "ridge": ridge, "layer": tuple(layer) or None, "held_out_loss": least,
        }  # fmt: skip
        yield parts, pilots


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

    @property
    def training(self) -> Path:
        """Of an unfinished training."""
        return self.path.with_name(f"{self.path.name}.training.safetensors")

    def _finished(self) -> Map | None:
        if not self.path.exists():
            return None
        found = self._read(self.function, self.path)
        if changed := _digest.changes(self._facts_of(found), self.facts):
            raise ValueError(
                f"{self.function}: out must be new or of the same fit, got {self.path} with other {changed}; "
                f"choose another name, or delete it, {self.path.name}.pilots-* and {self.training.name}"
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
        """Pilots and training, also where a call was killed after it had written the map."""
        starts = f"{self.path.name}.pilots-", f"{self.path.name}.training."
        if not self.path.parent.is_dir():
            return []
        return [p for p in self.path.parent.iterdir() if p.name.startswith(starts) and p.is_file()]
