"""The files of a folder of shards: where they lie, what its JSON files say, and whether one was replaced.

shards.py reads the rows and their metadata.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from semobridge_ext import _errors, _files
from semobridge_ext.cli.fingerprints import fingerprint, found_in

FEATURES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
SEALS = "shards.jsonl"
FORMAT = 2  # of settings.json and what belongs to it; 1 had no digests of inputs and shards

# What the readers of a folder take from its two JSON files, where it is there.
_TEXTS = (
    "command",
    "model",
    "pretrained",
    "weights",
    "weights_sha256",
    "features",
    "takes",
    "mapping",
    "source",
)
_FLAGS = ("normalized", "text")
_NUMBERS = ("rows", "inputs", "seconds", "images_per_second", "rows_per_second")


def read_json(function: str, path: Path) -> dict[str, Any]:
    """The object of a JSON file; ValueError for one that holds something else."""
    try:
        value = _files.parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{function}: {path} must be JSON, got {error}; make the folder again") from error
    if not isinstance(value, dict):
        got = _errors.describe(value)
        raise ValueError(f"{function}: {path} must be a JSON object, got {got}; make the folder again")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a finite one, of a size that float takes."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1 << 64 and math.isfinite(value)


def npy_header(path: Path) -> int:
    """The length of what stands before the rows of a .npy file."""
    with open(path, "rb") as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        read(file)
        return file.tell()


@contextmanager
def reading(function: str, path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a reader of a file raises into one ValueError that names the file."""
    try:
        yield
    except Exception as error:  # pyarrow's and NumPy's readers raise every kind at damaged bytes
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{function}: {path} must be a whole {kind} file, got {told}; make the folder again"
        ) from error


def arrow(function: str) -> Any:
    """pyarrow.parquet, or the command that installs it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{function}: pyarrow must be installed to read and write Parquet, got none; "
            "pip install 'semobridge-ext[cli]'"
        ) from error
    return pyarrow.parquet


class ShardFiles:
    """The files of one folder of shards, of this package or of clip-retrieval."""

    def __init__(self, function: str, path: str | Path, part: str = FEATURES) -> None:
        self.function, self.path, self.part = function, Path(path), part
        self.maker: tuple[str, str | None] | None = None  # its model, where the command names it
        self._checked: set[Path] = set()
        self._wide: tuple[Path, int] | None = None  # the file whose rows were read first, and its width

    def features_path(self, index: int) -> Path:
        return self.path / self.part / f"{self.part}_{index}.npy"

    def metadata_path(self, index: int) -> Path:
        return self.path / METADATA / f"{METADATA}_{index}.parquet"

    def shards(self) -> list[int]:
        """Shard numbers in order; both files of each are there."""
        found = _numbers(self.path / self.part, rf"{self.part}_(\d+)\.npy")
        if not found:
            raise FileNotFoundError(
                f"{self.function}: SHARDS must be a folder with {self.part}/{self.part}_0.npy, got "
                f"{self.path}; "
                "make one with: semobridge-ext extract IMAGES FOLDER"
            )
        lacking = sorted(set(found) - set(_numbers(self.path / METADATA, rf"{METADATA}_(\d+)\.parquet")))
        if lacking:
            raise FileNotFoundError(
                f"{self.function}: every shard must have its metadata, got none for shard {lacking[0]} in "
                f"{self.path}; run the interrupted command again"
            )
        self._names = found  # clip-retrieval pads the numbers where it has many shards
        return sorted(found)

    def settings(self) -> dict[str, Any]:
        """What made the folder; empty for one of another program."""
        path = self.path / "settings.json"
        found = read_json(self.function, path) if path.is_file() else {}
        for name, value in found.items():
            if name in _TEXTS and not _files.is_text(value) and not (name == "pretrained" and value is None):
                raise self._wrong(path, f"a text as {name}", value)
            if name in _FLAGS and not isinstance(value, bool):
                raise self._wrong(path, f"true or false as {name}", value)
        return found

    def _wrong(self, path: Path, what: str, value: Any) -> ValueError:
        got = _errors.describe(value)
        return ValueError(f"{self.function}: {path} must hold {what}, got {got}; make the folder again")

    def summary(self) -> dict[str, Any]:
        path = self.path / "summary.json"
        found = read_json(self.function, path) if path.is_file() else {}
        for name in _NUMBERS:
            if name in found and not _is_number(found[name]):
                raise self._wrong(path, f"a finite number as {name}", found[name])
        return found

    def listed(self) -> Iterator[list[Any]]:
        """The lines of shards.jsonl, one a finished shard; a line cut short counts for nothing."""
        path = self.path / SEALS
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                found = _files.parse_json(line)
            except ValueError:
                continue
            if isinstance(found, list) and found and type(found[0]) is int:
                yield found

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """By file name; of a shard that was made again, the later one."""
        return {name: kept for line in self.listed() for name, kept in found_in(line).items()}

    def check_written(self, path: Path) -> None:
        """Refuses a file that is not the one that shards.jsonl speaks of, once; reads three pages of it."""
        if path in self._checked:
            return
        kept = self._fingerprints.get(path.name)
        if kept is not None and kept != fingerprint(path):
            raise ValueError(
                f"{self.function}: {path} must hold what was written, got other bytes; copy the folder "
                f"again, or make it again; if you changed it yourself, delete {SEALS} beside it"
            )
        self._checked.add(path)

    def check_width(self, path: Path, width: int) -> None:
        """Refuses rows that are not as wide as those of the file that was read first."""
        self._wide = self._wide or (path, width)
        if width != self._wide[1]:
            raise ValueError(
                f"{self.function}: SHARDS must be of one width, got {self._wide[1]} in {self._wide[0]} and "
                f"{width} in {path}; make them again, from one model"
            )

    def _lacking(self) -> str | None:
        """What shards.jsonl lists and is not there; of another program's folders nothing is known."""
        listed = {line[0] for line in self.listed()}
        lacking = sorted(listed - set(self.shards())) if listed else []
        return f"no {self.features_path(lacking[0]).name}" if lacking else None

    def check_finished(self) -> None:
        """Refuses a folder whose run was interrupted, that lost a shard, or that a later version wrote."""
        written = self.settings().get("format")
        if written is not None and _is_number(written) and written > FORMAT:
            raise ValueError(
                f"{self.function}: SHARDS must be of format {FORMAT} or older, got {written} in {self.path}, "
                "which a later version wrote; upgrade semobridge-ext"
            )
        if self.settings() and not self.summary():
            raise ValueError(
                f"{self.function}: SHARDS must be finished, got {self.path}, whose run was interrupted; "
                "the command that began it goes on where it stopped"
            )
        if (lacking := self._lacking()) is not None:
            raise ValueError(
                f"{self.function}: SHARDS must hold every shard of {SEALS}, got {lacking} in {self.path}; "
                "copy the folder again, or run the command that made it"
            )

    def features_file(self, index: int) -> Path:
        """Of an existing shard; after `shards`."""
        return self.path / self.part / self._names[index]

    def metadata_file(self, index: int) -> Path:
        """Of an existing shard, whatever way its number is written."""
        return self.path / METADATA / _numbers(self.path / METADATA, rf"{METADATA}_(\d+)\.parquet")[index]


def _numbers(folder: Path, pattern: str) -> dict[int, str]:
    """File names by shard number."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(match[1]): match[0] for name in names if (match := re.fullmatch(pattern, name))}
