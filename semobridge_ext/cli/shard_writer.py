"""Writing a folder of shards: one run at a time, resumed only where nothing has changed.

    FOLDER/.lock         while a run writes: who it is
    FOLDER/shards.jsonl  one line a shard: its number, digests of its files, fingerprints of the features

A shard is finished when its line and all its files are there. A resumed run reads every finished shard
and compares the digests; readers compare the fingerprints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from semobridge_ext import _digest, _files, _locks
from semobridge_ext.cli.fingerprints import fingerprint, without
from semobridge_ext.cli.listing import state
from semobridge_ext.cli.output import write_json
from semobridge_ext.cli.shard_files import FEATURES, FORMAT, METADATA, SEALS, TEXTS, read_json
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import LANCE, PARQUET


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: Any) -> None:
    """What stands before the rows in a .npy file."""
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)


def _width(path: Path) -> int:
    """Of the rows of a finished shard."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        return int(np.lib.format.read_array_header_1_0(file)[0][1])


def write_rows(file: BinaryIO, rows: np.ndarray) -> None:  # [n, D]
    """A .npy file. Through Python's file: np.save hides a disk that is full at the last rows."""
    write_header(file, rows.shape, rows.dtype)
    _write_data(file, rows)


def _write_data(file: BinaryIO, rows: np.ndarray) -> None:
    file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def source_facts(folder: Folder) -> str:
    """The shards that are read: their digests where the writer kept them, else sizes and times."""
    seals = folder.path / SEALS
    if seals.is_file():
        return _digest.marked(_digest.digest([folder.settings(), seals.read_bytes()]))
    indices = folder.shards()
    files = [path for i in indices for path in folder.source_files(i)]
    return _digest.marked(_digest.digest([[path.name, state(str(path))] for path in files]))


class Writer(Folder):
    """A folder of shards that this run makes, or goes on with; `texts`: with rows of texts in step."""

    layout = "shards"
    texts = False

    @property
    def _folders(self) -> tuple[str, ...]:
        return (FEATURES, TEXTS, METADATA) if self.texts else (FEATURES, METADATA)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Makes the folder this run's own; ValueError names the run that has it.

        Until `begin` has accepted the settings, nothing in it may change.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _locks.held(self.function, "OUT", self.path, self.path / ".lock"):
            yield

    def begin(self, settings: dict[str, Any], differing: Callable[[], str] = lambda: "") -> int:
        """The first shard to write, once the settings are accepted and the finished shards are whole.

        Raises ValueError where the folder was made with other settings (`differing` may say more of
        what changed), by an older version, or where a shard is damaged.
        """
        kind = {} if self.layout == "shards" else {"layout": self.layout}
        self._accept(_digest.stamp({"format": FORMAT, **settings, **kind}), differing)
        return self._ready()

    def _ready(self) -> int:
        """How many shards are finished and whole, once nothing of a killed run is left."""
        for name in self._folders:
            (self.path / name).mkdir(exist_ok=True)
        for name in ("", *self._folders):
            _files.remove_leftovers(self.path / name)
        seals, done = self._seals(), 0
        while done in seals and all(path.is_file() for path in self._files_of(done)):
            for path, digest in zip(self._files_of(done), seals[done], strict=True):
                self._check(path, digest)
            done += 1
        return done

    def _accept(self, settings: dict[str, Any], differing: Callable[[], str]) -> None:
        path = self.path / "settings.json"
        if not path.is_file():
            folders = [self.path / name for name in (*self._folders, PARQUET, LANCE)]
            if any(folder.is_dir() and any(folder.iterdir()) for folder in folders):
                raise ValueError(
                    f"{self.function}: OUT must be new or an unfinished run, got {self.path} with "
                    "shards and no settings.json; choose another folder"
                )
            write_json(path, settings)
            return
        found = read_json(self.function, path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(
                f"{self.function}: OUT must be new or begun by this version, got {self.path} of an older "
                "one; choose another folder, or delete this one (map, search, retrieve and report read it)"
            )
        if changed := _digest.changes(found, settings):
            more = differing()
            raise ValueError(
                f"{self.function}: OUT must hold a run of the same settings and inputs, got {self.path} made "
                f"with other {changed}{more and f'; the first input that differs is {more}'}; choose another "
                "folder, or delete this one"
            )

    def check_written(self, path: Path) -> None:
        """What is here was compared by its digest, or written since."""

    def _check(self, path: Path, digest: str) -> None:
        if _digest.file_digest(path) != digest:
            raise ValueError(
                f"{self.function}: {path} must hold what was written, got other bytes; delete it, and the "
                "same command makes its shard and those after it again"
            )

    # -- shards --------------------------------------------------------------------------------------

    def texts_path(self, index: int) -> Path:
        return self.path / TEXTS / f"{TEXTS}_{index}.npy"

    def _files_of(self, index: int) -> tuple[Path, ...]:
        """In the order in which they are written."""
        texts = (self.texts_path(index),) if self.texts else ()
        return self.features_path(index), *texts, self.metadata_path(index)

    def _seals(self) -> dict[int, tuple[str, ...]]:
        """The digests of all files by shard; a line cut short by a kill counts for nothing."""
        path, found = self.path / SEALS, {}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                index, *digests = without(_files.parse_json(line))
                if len(digests) == len(self._folders):
                    found[int(index)] = tuple(map(str, digests))
            except (ValueError, TypeError, OverflowError):
                continue
        return found

    def add(
        self,
        index: int,
        rows: int,
        blocks: Iterable[np.ndarray],
        dtype: Any,
        metadata: bytes,
        texts: np.ndarray | None = None,
    ) -> None:
        """One shard of so many rows, which come in blocks [n, D], and its records as a Parquet file.

        `texts` [n, D]: where the folder has texts.
        """

        def features(file: BinaryIO) -> None:
            width = None
            for block in blocks:
                if width is None:
                    width = block.shape[1]
                    write_header(file, (rows, width), dtype)
                _write_data(file, block)
            if width is None:  # a shard whose images were all corrupt
                write_header(file, (0, 0), dtype)

        self.write(index, features, metadata, texts)

    def row_total(self) -> int:
        """Of all finished shards."""
        return sum(self.shape(index)[0] for index in self.shards())

    def write(
        self,
        index: int,
        features: Callable[[BinaryIO], object],
        metadata: bytes,
        texts: np.ndarray | None = None,  # [n, D], where the folder has texts
    ) -> None:
        """One shard: the features by a function that writes them, then the line, then what makes it count."""
        *rows, parquet = self._files_of(index)
        with _files.replaced(rows[0]) as file:
            features(file)
        if texts is not None:
            with _files.replaced(rows[1]) as file:
                write_rows(file, texts)
        # Not of the metadata, to which users add columns.
        prints = {path.name: fingerprint(path) for path in rows}
        seal = [index, *(_digest.file_digest(path) for path in rows), _digest.bytes_digest(metadata), prints]
        _files.append_line(self.path / SEALS, json.dumps(seal))
        _files.write_bytes(parquet, metadata)

    def width_before(self, index: int) -> int:
        """Of the rows of earlier shards; 0 where none has any."""
        return next((w for i in reversed(range(index)) if (w := _width(self.features_path(i)))), 0)

    def reopen(self) -> None:
        """Takes back that the run is finished: shards of it have gone."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)
