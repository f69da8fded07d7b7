"""Folders of shards in clip-retrieval's layout: features as .npy, what they belong to as Parquet.

    FOLDER/img_emb/img_emb_0.npy         [n, D] float16 or float32; FOLDER/text_emb/… likewise for texts
    FOLDER/metadata/metadata_0.parquet   n rows: image_path, and label, caption, .. where known
    FOLDER/settings.json                 what made them; a run with other settings is refused
    FOLDER/summary.json                  counts and times, written last: its absence is an unfinished run

A shard exists when its Parquet file does, which is renamed into place after its features.
shard_writer.py writes them; table_writer.py writes tables in their place, and tables.py reads those.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _files

FEATURES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
SEALS = "shards.jsonl"
FORMAT = 2  # of settings.json and what belongs to it; 1 had no digests of inputs and shards
_ROWS = 1 << 14  # read at once: 16384 float32 rows of width 512 are 32 MiB


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


def _is_text(value: Any) -> bool:
    """Whether it is a string that a file can hold: JSON knows halves of characters, UTF-8 does not."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


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


class Folder:
    """One folder of shards; reads what this package and clip-retrieval write."""

    def __init__(self, function: str, path: str | Path, part: str = FEATURES) -> None:
        self.function, self.path, self.part = function, Path(path), part
        self.maker: tuple[str, str | None] | None = None  # its model, where the command names it

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
            if name in _TEXTS and not _is_text(value) and not (name == "pretrained" and value is None):
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

    def features(self, index: int) -> Tensor:
        """[n, D] float16 or float32 of one shard, memory-mapped."""
        path = self.features_file(index)
        # Copy-on-write: torch warns about arrays that it may not write to.
        # Empty arrays, where a whole shard was corrupt, cannot be mapped.
        with reading(self.function, path, ".npy"):
            size = path.stat().st_size
            rows = np.load(path, mmap_mode=None if size < 4096 else "c", allow_pickle=False)
            if size != (whole := npy_header(path) + rows.nbytes):
                raise ValueError(f"{size} bytes where its header says {whole}")
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype not in (np.float16, np.float32):
            got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise ValueError(
                f"{self.function}: {path} must be [n, D] float16 or float32, got {got}; make the folder again"
            )
        return torch.from_numpy(rows)

    def shape(self, index: int) -> tuple[int, int]:
        """Rows and width of one shard."""
        rows, width = self.features(index).shape
        return rows, width

    def parts(self, index: int) -> list[tuple[int, int, int]]:
        """What is read at once of one shard: its number, first row and end; none of one without rows."""
        size, width = self.shape(index)
        ends = range(0, size, _ROWS) if width else ()
        return [(index, first, min(first + _ROWS, size)) for first in ends]

    def blocks(self, rows: int = _ROWS) -> Iterator[Tensor]:
        """Every row once, in order, float32, at most `rows` at a time."""
        for index in self.shards():
            for part in self.features(index).split(rows):
                if part.numel():
                    yield part.float()

    def load(self) -> Tensor:
        """[N, D] float32 unit rows: all of them in memory, and a block beside them."""
        # Shapes alone: pages of a mapped file stay in memory for as long as its rows are held.
        shapes = [shape for index in self.shards() if all(shape := self.shape(index))]
        found = torch.empty(sum(shape[0] for shape in shapes), shapes[0][1] if shapes else 0)
        at = 0
        for block in self.blocks():
            if block.shape[1] != found.shape[1]:
                raise ValueError(
                    f"{self.function}: SHARDS must be of one width, got {found.shape[1]} and "
                    f"{block.shape[1]} in {self.path}; make the folder again"
                )
            torch.nn.functional.normalize(block, dim=1, out=found[at : at + len(block)])
            at += len(block)
        return found

    def label_codes(self, column: str, codes: dict[str, int]) -> Tensor:
        """[N] int64, −1 without a label; `codes` grows by the labels."""
        self.shards()
        self.check_finished()
        parts = [
            torch.tensor(
                [-1 if v is None else codes.setdefault(str(v), len(codes)) for v in values],
                dtype=torch.int64,
            )
            for values in self.columns(column)
        ]
        found = torch.cat(parts)
        if not bool((found >= 0).any()):
            raise ValueError(
                f"{self.function}: SHARDS must have labels, got {self.path} with none in '{column}'; "
                "extract a folder with one sub-folder per class, or name another column with --label"
            )
        return found

    def rows_of(self, codes: Tensor) -> Tensor:
        """Unit rows [n, D] of the records that have a label."""
        rows = self.unit_rows(len(codes))
        kept = (codes >= 0).nonzero().squeeze(1)
        if len(kept) == len(rows):
            return rows
        at = 0
        for part in kept.split(
            _ROWS
        ):  # forward within the same memory: a row is read before it is written to
            rows[at : at + len(part)] = rows[part]
            at += len(part)
        return rows[:at]

    def labelled(self, column: str, codes: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Unit rows [N, D] and label codes [N] of the rows that have a label; `codes` grows."""
        found = self.label_codes(column, codes)
        return self.rows_of(found), found[found >= 0]

    def unit_rows(self, records: int) -> Tensor:
        """All rows, finite and as many as there are records: [N, D] unit rows in float32."""
        rows = self.load()
        if len(rows) != records:
            raise ValueError(
                f"{self.function}: SHARDS must have one record per row, got {len(rows)} rows and "
                f"{records} records in {self.path}; make the folder again"
            )
        if len(bad := _errors.rows_with(rows, lambda part: ~torch.isfinite(part))):
            raise ValueError(
                f"{self.function}: SHARDS must hold finite features, got NaN or infinity in {len(bad)} of "
                f"{len(rows)} rows of {self.path} (the first is {int(bad[0])}); make the folder again"
            )
        return rows

    def class_names(self) -> list[str]:
        """The labels, sorted."""
        return sorted({str(label) for label in self.column("label") if label is not None})

    def features_file(self, index: int) -> Path:
        """Of an existing shard; after `shards`."""
        return self.path / self.part / self._names[index]

    def metadata_file(self, index: int) -> Path:
        """Of an existing shard, whatever way its number is written."""
        return self.path / METADATA / _numbers(self.path / METADATA, rf"{METADATA}_(\d+)\.parquet")[index]

    def metadata_bytes(self, index: int) -> bytes:
        """The metadata of one shard as a Parquet file."""
        return self.metadata_file(index).read_bytes()

    def source_files(self, index: int) -> tuple[Path, ...]:
        """The files that a shard is read from."""
        return self.features_file(index), self.metadata_file(index)

    def table(self, index: int) -> Any:
        """The metadata of one shard: one record for each row of its features."""
        parquet, path = arrow(self.function), self.metadata_file(index)
        with reading(self.function, path, "Parquet"):
            return parquet.read_table(path)

    def check_rows(self, index: int) -> None:
        """Refuses a shard whose two files are not of one length; reads their headers."""
        parquet, path = arrow(self.function), self.metadata_file(index)
        with reading(self.function, path, "Parquet"):
            found = parquet.read_metadata(path).num_rows
        if found != (rows := len(self.features(index))):
            raise self._wrong(path, f"one record for each of {rows} rows", found)

    def records(self, index: int, rows: list[int]) -> list[dict[str, Any]]:
        """The metadata of some rows of one shard."""
        table = self.table(index)
        with reading(self.function, self.metadata_file(index), "Parquet"):
            return table.take(rows).to_pylist()

    def counts(self, index: int) -> tuple[int, int, list[tuple[str, str]]]:
        """Inputs and rows of one shard, and which images were corrupt and why, as `extract` notes them."""
        parquet, path = arrow(self.function), self.metadata_file(index)
        with reading(self.function, path, "Parquet"):
            facts = parquet.read_metadata(path)
            inputs = int(facts.metadata[b"inputs"])
            lost = [(p, why) for p, why in _files.parse_json(facts.metadata[b"corrupt"])]
            if not all(isinstance(text, str) for pair in lost for text in pair):
                raise TypeError("corrupt images that are no pairs of a path and a reason")
        if inputs != facts.num_rows + len(lost):
            raise self._wrong(path, f"{facts.num_rows + len(lost)} inputs", inputs)
        return inputs, facts.num_rows, lost

    def losses(self) -> list[tuple[str, str]]:
        """Files that `extract` could not read, and why; folders of other programs do not say."""
        parquet, lost = arrow(self.function), []
        for index in self.shards():
            facts = parquet.read_metadata(self.metadata_file(index)).metadata or {}
            if b"corrupt" in facts:
                lost += self.counts(index)[2]
        return lost

    def record_count(self) -> int:
        """Of all shards; reads the headers of their metadata."""
        parquet, total = arrow(self.function), 0
        for index in self.shards():
            with reading(self.function, path := self.metadata_file(index), "Parquet"):
                total += int(parquet.read_metadata(path).num_rows)
        return total

    def column(self, name: str, option: str = "--label") -> list[Any]:
        """One column of all shards; `option` is what named it."""
        return [value for values in self.columns(name, option) for value in values]

    def columns(self, name: str, option: str = "--label") -> Iterator[list[Any]]:
        """One column, a shard at a time."""
        for index in self.shards():
            table = self.table(index)
            with reading(self.function, self.metadata_file(index), "Parquet"):
                names = table.column_names
            self._check_column(name, option, names)
            with reading(self.function, self.metadata_file(index), "Parquet"):
                values = table.column(name).to_pylist()
            yield values

    def _check_column(self, name: str, option: str, names: list[str]) -> None:
        if name not in names:
            raise ValueError(
                f"{self.function}: {option} must be a column of the metadata, got '{name}'; "
                f"{self.path} has {', '.join(names) or 'none'}; name another"
            )


def _numbers(folder: Path, pattern: str) -> dict[int, str]:
    """File names by shard number."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(match[1]): match[0] for name in names if (match := re.fullmatch(pattern, name))}
