"""Folders of shards in clip-retrieval's layout: features as .npy, what they belong to as Parquet.

    FOLDER/img_emb/img_emb_0.npy         [n, D] float16 or float32; FOLDER/text_emb/… likewise for texts
    FOLDER/metadata/metadata_0.parquet   n rows: image_path, and label, caption, .. where known
    FOLDER/settings.json                 what made them; a run with other settings is refused
    FOLDER/summary.json                  counts and times, written last: its absence is an unfinished run

A shard exists when its Parquet file does, which is renamed into place after its features.
shard_files.py knows the files, shard_writer.py writes them; table_writer.py writes tables in their place, and
tables.py reads those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _files
from semobridge_ext.cli.shard_files import ShardFiles, arrow, npy_header, reading

_ROWS = 1 << 14  # read at once: 16384 float32 rows of width 512 are 32 MiB


class Folder(ShardFiles):
    """One folder of shards; reads what this package and clip-retrieval write."""

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
        self.check_written(path)
        if rows.size:
            self.check_width(path, rows.shape[1])
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
        """Refuses a shard whose files are not of one length, or of another width; reads their headers."""
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
