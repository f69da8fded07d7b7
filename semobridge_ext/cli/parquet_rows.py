"""Rows of Parquet files by number, read forward: no more in memory than a batch and what is asked for."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

_BATCH = 1 << 14  # rows decoded at once
_READ = {"pre_buffer": False, "buffer_size": 1 << 20}  # bytes at once; else a whole row group is in memory


class Cursor:
    """Some columns of one file after another; a step back begins at a row group again."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._path: Path | None = None
        self._starts: list[int] = []  # first row of each row group, and the end
        self._at = 0
        self._file: Any = None
        self._batches: Any = None
        self._left: Any = None  # what a batch has beyond the rows that were asked for

    def _open(self, path: Path) -> None:
        import pyarrow.parquet

        if self._file is not None:
            self._file.close()
        self._file, self._path = pyarrow.parquet.ParquetFile(path, **_READ), path
        facts = self._file.metadata
        sizes = (facts.row_group(i).num_rows for i in range(facts.num_row_groups))
        self._starts, self._batches = list(accumulate(sizes, initial=0)), None

    def _seek(self, row: int) -> None:
        """To the row group of a row, unless reading on leads there."""
        group = max((i for i, start in enumerate(self._starts[:-1]) if start <= row), default=0)
        if self._batches is None or row < self._at or self._starts[group] > self._at:
            groups = list(range(group, len(self._starts) - 1))
            self._batches = self._file.iter_batches(_BATCH, row_groups=groups, columns=self._columns)
            self._at, self._left = self._starts[group], None

    def take(self, path: Path, first: int, rows: int) -> Any:
        """A pyarrow.Table of the rows from number `first` on; fewer where the file ends."""
        import pyarrow

        if path != self._path:
            self._open(path)
        self._seek(first)
        parts, end = [], first + rows
        while self._at < end:
            batch = next(self._batches, None) if self._left is None else self._left
            if batch is None:
                break
            skip = min(max(first - self._at, 0), len(batch))
            used = min(len(batch), end - self._at)
            if used > skip:
                parts.append(batch.slice(skip, used - skip))
            self._at += used
            self._left = batch.slice(used) if used < len(batch) else None
        schema = parts[0].schema if parts else self._file.schema_arrow
        found = pyarrow.Table.from_batches(parts, schema)
        return found.select(self._columns)
