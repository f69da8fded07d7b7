"""An inversion on disk: finished chunks in a folder, then one file.

Every file is written to a temporary name and renamed, and carries the settings, the package's version and
digests of the tower, the features, the start values and of what it holds. So a killed run loses one chunk at
most, and a run that differs is refused. One run writes at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _digest, _files, _locks, _schema
from semobridge_ext.inversion.descent import Chunk
from semobridge_ext.inversion.settings import Settings

FORMAT = "semobridge-ext inversion 2"
_NAMES = ("tokens", "features", "losses", "recorded", "steps_done")
_AGAIN = "delete it, and the same call makes it again"  # of a damaged file
_FILE = {
    "tokens": _schema.Field(("B", "R", "T"), finite=False),
    "features": _schema.Field(("B", "D"), finite=False),
    "losses": _schema.Field(("steps", "B"), finite=False),  # NaN where no step was taken
    "recorded": _schema.Field(("n", "B", "D"), finite=False),
    "steps_done": _schema.Field(("B",), _schema.WHOLE),
    "settings": _schema.Field(("bytes",), (torch.uint8,)),
}


def _parsed(text: bytes) -> dict[str, Any]:
    """The settings, and the digest of the rest; empty where they are damaged."""
    try:
        found = _files.parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parts_of(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _part_of(path: Path, index: int) -> Path:
    return _parts_of(path) / f"chunk-{index:06d}.safetensors"


def _tensors_of(function: str, path: Path, out: Path) -> dict[str, Tensor]:
    remedy = f"choose another name, or delete {out} and {_parts_of(out)}"
    return _schema.load(function, path, FORMAT, _FILE, remedy=remedy, damaged=_AGAIN)[0]


def kept_batch_size(function: str, out: str | Path) -> int | None:
    """The samples a chunk of the run that began or finished this file; None where there is none."""
    for path in (Path(out), _part_of(Path(out), 0)):
        if path.exists():
            found = _parsed(bytes(_tensors_of(function, path, Path(out))["settings"].tolist()))
            size = found.get("batch_size")
            return size if isinstance(size, int) and size > 0 else None
    return None


class Store:
    """One inversion on disk."""

    def __init__(
        self,
        function: str,
        out: str | Path,
        settings: Settings,
        description: dict[str, Any],
        targets: Tensor,
        tokens: Tensor,
        size: int,
    ) -> None:
        self.function, self.path = function, Path(_files.place(out, function))
        self.parts = _parts_of(self.path)
        self._lock = self.path.with_name(self.path.name + ".lock")
        self.facts = _digest.stamp({
            "function": function,
            "samples": len(targets),
            "batch_size": size,
            **vars(settings),
            **{k: v for k, v in description.items() if k not in ("tower", "rows")},
            "tower": description["tower"].name,
            "model_digest": [description["tower"], description["rows"]],
            "features_digest": targets,
            "init_digest": tokens,
        })  # fmt: skip

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs off the file and its parts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locks.held(self.function, "out", self.path, self._lock):
            yield

    def _read(self, path: Path) -> Chunk:
        delete = f"delete {self.path} and {self.parts}"
        tensors = _tensors_of(self.function, path, self.path)
        found = _parsed(bytes(tensors.pop("settings").tolist()))
        if found.pop("content", None) != _digest.digest(tensors):
            raise ValueError(f"{self.function}: {path} must hold what was written, got other bytes; {_AGAIN}")
        if changed := _digest.changes(found, self.facts):
            raise ValueError(
                f"{self.function}: out must be new or of the same run, got {path} with other {changed}; "
                f"choose another name or {delete}"
            )
        return Chunk(**tensors)

    def finished(self) -> list[Chunk]:
        """The whole result as one chunk, if an earlier run wrote it."""
        return [self._read(self.path)] if self.path.exists() else []

    def remove_left(self) -> None:
        """Parts and lock of a run that was killed after it had written the whole."""
        if self.parts.is_dir() or self._lock.exists():
            with suppress(OSError, ValueError), self.held():  # read-only, or a run is about to do it
                self._remove_parts()

    def _part(self, index: int) -> Path:
        return _part_of(self.path, index)

    def has(self, index: int) -> bool:
        return self._part(index).exists()

    def load(self, index: int) -> Chunk | None:
        path = self._part(index)
        return self._read(path) if path.exists() else None

    def save(self, index: int, chunk: Chunk) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        _files.save_tensors(self._part(index), self._tensors(chunk), {"format": FORMAT})

    def _tensors(self, chunk: Chunk) -> dict[str, Tensor]:
        tensors = {name: getattr(chunk, name) for name in _NAMES}
        text = json.dumps({**self.facts, "content": _digest.digest(tensors)}, sort_keys=True)
        # A tensor, because the order of several metadata keys in the file is left to chance.
        return {"settings": torch.tensor(list(text.encode()), dtype=torch.uint8), **tensors}

    def finish(self, chunks: list[Chunk]) -> None:
        """Writes the whole and removes the parts, and what killed runs left between two names."""
        whole = Chunk(
            tokens=torch.cat([c.tokens for c in chunks]),
            features=torch.cat([c.features for c in chunks]),
            losses=torch.cat([c.losses for c in chunks], 1),
            recorded=torch.cat([c.recorded for c in chunks], 1),
            steps_done=torch.cat([c.steps_done for c in chunks]),
        )
        _files.save_tensors(self.path, self._tensors(whole), {"format": FORMAT})
        self._remove_parts()

    def _remove_parts(self) -> None:
        if self.parts.is_dir():
            for path in self.parts.iterdir():
                if path.name.lstrip(".").startswith("chunk-"):
                    path.unlink(missing_ok=True)
            if not any(self.parts.iterdir()):
                self.parts.rmdir()
