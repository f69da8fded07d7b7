"""Where a gallery's rows come from: a folder of shards or a tensor; read in order, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.cli.shard_writer import source_facts
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features

NAME = "export_gallery"
BLOCK = 1 << 14  # rows at once: 32 MiB of float32 rows of width 512


class Part(NamedTuple):
    """Consecutive rows as they are stored, and a record of each where records are asked for."""

    rows: Tensor  # [n, K] float32
    table: Any  # pyarrow.Table of n records, or None


class Source(Protocol):
    """A gallery before its map."""

    count: int
    width: int

    def facts(self) -> dict[str, Any]:
        """What a second run compares."""

    def schema(self) -> Any:
        """pyarrow.Schema of the records."""

    def parts(self, first: int, records: bool) -> Iterator[Part]:
        """The rows from number `first` on."""

    def take(self, numbers: np.ndarray) -> Tensor:
        """Some rows, by ascending numbers [n]: [n, K] float32."""


def _plain_schema(schema: Any) -> Any:
    """Without notes on the file; a column that held nothing yet is one of texts."""
    import pyarrow

    kinds = [
        (f.name, pyarrow.string() if pyarrow.types.is_null(f.type) else f.type)
        for f in schema.remove_metadata()
    ]
    return pyarrow.schema(kinds)


class Shards:
    """A folder that `extract`, `map` or clip-retrieval wrote, or a table of features."""

    def __init__(self, path: Any) -> None:
        arrow(NAME)
        self._folder = open_features(NAME, path)
        self._indices = self._folder.shards()
        self._folder.check_finished()
        self._sizes: list[int] = []
        self.width = 0
        for index in self._indices:
            self._folder.check_rows(index)
            size, width = self._folder.shape(index)
            self._sizes.append(size)
            if size and width:
                self.width = width
        self.count = sum(self._sizes)

    def settings(self) -> dict[str, Any]:
        return self._folder.settings()

    @property
    def folder(self) -> Folder:
        return self._folder

    def facts(self) -> dict[str, Any]:
        return {"source": str(self._folder.path.resolve()), "source_digest": source_facts(self._folder)}

    def schema(self) -> Any:
        return _plain_schema(self._folder.table(self._indices[0]).schema)

    def parts(self, first: int, records: bool) -> Iterator[Part]:
        schema = self.schema() if records else None
        for index, size in zip(self._indices, self._sizes, strict=True):
            if first >= size:
                first -= size
                continue
            rows = self._folder.features(index)
            table = self._records(index, schema) if records else None
            for begin in range(first, size, BLOCK):
                end = min(begin + BLOCK, size)
                yield Part(rows[begin:end].float(), table and table.slice(begin, end - begin))
            first = 0

    def _records(self, index: int, schema: Any) -> Any:
        import pyarrow

        table = self._folder.table(index)
        try:
            return table.select(schema.names).cast(schema)
        except (KeyError, pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            told = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{NAME}: {self._folder.metadata_file(index)} must have the columns of the first shard, got "
                f"{told}; make the folder again, or leave the metadata out"
            ) from error

    def take(self, numbers: np.ndarray) -> Tensor:
        ends = np.cumsum(self._sizes)
        found = [torch.zeros(0, self.width)]
        for i, index in enumerate(self._indices):
            begin = int(ends[i]) - self._sizes[i]
            mine = numbers[(numbers >= begin) & (numbers < ends[i])] - begin
            if len(mine):
                found.append(self._folder.features(index)[torch.from_numpy(mine)].float())
        return torch.cat(found)


class Held:
    """Rows in memory or mapped from a file, and columns beside them."""

    def __init__(self, rows: Any, columns: Any) -> None:
        rows = _arrays.tensor(NAME, "gallery", rows)
        self._rows = _errors.check_float_tensor(NAME, "gallery", rows).detach()
        if rows.dim() != 2:
            remedy = "pass one row per item, or the path of a folder of shards"
            raise ValueError(_errors.message(NAME, "gallery", "be [G, D]", rows, remedy))
        _errors.check_values(NAME, "gallery", rows)
        self.count: int = len(rows)
        self.width: int = rows.shape[1]
        self._table = None if columns is None else self._as_table(columns)

    def _as_table(self, columns: Any) -> Any:
        arrow(NAME)
        import pyarrow

        if not isinstance(columns, (pyarrow.Table, Mapping)):
            remedy = "pass a dict of columns or a pyarrow.Table"
            contract = "be columns by name for rows in memory"
            raise TypeError(_errors.message(NAME, "metadata", contract, columns, remedy))
        table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(dict(columns))
        if table.num_rows != self.count:
            contract, remedy = f"have {self.count} records", "pass one record per row"
            raise ValueError(_errors.message(NAME, "metadata", contract, f"{table.num_rows}", remedy))
        return table.cast(_plain_schema(table.schema))

    def facts(self) -> dict[str, Any]:
        columns = None if self._table is None else str(self._table.schema)
        return {"source": [self._rows], "columns": columns}

    def schema(self) -> Any:
        return None if self._table is None else self._table.schema

    def parts(self, first: int, records: bool) -> Iterator[Part]:
        for begin in range(first, self.count, BLOCK):
            rows = self._rows[begin : begin + BLOCK].float().cpu()
            yield Part(rows, self._table.slice(begin, len(rows)) if records and self._table else None)

    def take(self, numbers: np.ndarray) -> Tensor:
        return self._rows[torch.from_numpy(numbers).to(self._rows.device)].float().cpu()
