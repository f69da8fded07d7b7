"""The rows that an engine gets: mapped, of unit length, each with its id and its record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _arrays, _errors
from semobridge_ext.handover.sources import NAME, Source
from semobridge_ext.linear_maps import LinearMap

OWN = ("id", "vector")  # columns that every table of rows has


class Part(NamedTuple):
    """Consecutive rows of the export."""

    rows: Tensor  # [n, M] float32 unit rows
    ids: np.ndarray  # [n] int64
    table: Any  # pyarrow.Table of n records, or None


class Rows:
    """A source behind its map.

    Args:
        source: the gallery.
        mapping: applied to its rows, with a norm at its end; None: they are only normalised.
        ids: a column of the records that holds whole numbers, or [G] of them; None: row numbers.
        records: whether the records go along.
    """

    def __init__(self, source: Source, mapping: LinearMap | None, ids: Any, records: bool) -> None:
        self._source, self._mapping = source, mapping
        self.count = source.count
        self.width = source.width if mapping is None else mapping.out_features
        self.records = records
        self._dropped = ids if isinstance(ids, str) else None
        self.ids = self._gathered(ids)

    def _gathered(self, ids: Any) -> Tensor | None:  # [G] int64
        if ids is None:
            return None
        found = self._column(ids) if isinstance(ids, str) else _arrays.whole(ids)
        whole = _errors.is_dense(found) and found.dtype is torch.int64
        if not whole or found.shape != (self.count,):
            contract, remedy = f"be {self.count} whole numbers", "pass one for each row, or a column's name"
            raise ValueError(_errors.message(NAME, "ids", contract, ids, remedy))
        _errors.check_values(NAME, "ids", found)
        distinct = len(torch.unique(found))
        if distinct != len(found):
            got = f"{distinct} different ones for {len(found)} rows"
            raise ValueError(_errors.message(NAME, "ids", "differ", got, "leave them out for row numbers"))
        return found.cpu()

    def _column(self, name: str) -> Tensor:  # [G] int64
        schema = self._source.schema()
        names = [] if schema is None else schema.names
        if name not in names:
            got = f"'{name}'; there are {', '.join(names) or 'none'}"
            raise ValueError(_errors.message(NAME, "ids", "be a column of the metadata", got, "name another"))
        found = []
        for part in self._source.parts(0, True):
            for value in part.table.column(name).to_pylist():
                word = str(value)
                if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", word, re.ASCII):
                    contract = f"be whole numbers in the column '{name}'"
                    raise ValueError(
                        _errors.message(NAME, "ids", contract, _errors.describe(value), "name another column")
                    )
                found.append(int(word))
        return torch.tensor(found, dtype=torch.int64)

    def schema(self) -> Any:
        """pyarrow.Schema of the records as they are written, without the column of ids."""
        import pyarrow

        given = self._source.schema()
        if given is None or not self.records:
            return pyarrow.schema([])
        fields = [field for field in given if field.name != self._dropped]
        return pyarrow.schema([(_own(field.name), field.type) for field in fields])

    def parts(self, first: int = 0, *, records: bool | None = None) -> Iterator[Part]:
        """The rows from number `first` on; ValueError names a row that has no direction to be found by."""
        wanted = self.records if records is None else records
        at = first
        for block, table in self._source.parts(first, wanted):
            rows = self._mapped(block, at)
            end = at + len(rows)
            ids = np.arange(at, end, dtype=np.int64) if self.ids is None else self.ids[at:end].numpy()
            yield Part(rows, ids, self._renamed(table))
            at = end

    def _renamed(self, table: Any) -> Any:
        if table is None:
            return None
        kept = table.drop_columns([self._dropped]) if self._dropped in table.column_names else table
        return kept.rename_columns([_own(name) for name in kept.column_names])

    def _mapped(self, block: Tensor, at: int) -> Tensor:  # [n, K] -> [n, M]
        bad = _errors.rows_with(block, lambda part: ~torch.isfinite(part))
        if len(bad):
            got, remedy = f"NaN or infinity in row {at + int(bad[0])}", "drop such rows: no search finds them"
            raise ValueError(_errors.message(NAME, "gallery", "be finite", got, remedy))
        rows = normalize(block, dim=1) if self._mapping is None else self._mapping(block)
        return rows.contiguous()

    def take(self, numbers: np.ndarray) -> Tensor:
        """Rows by ascending numbers [n]: [n, M] float32 unit rows."""
        return self._mapped(self._source.take(numbers), int(numbers[0]) if len(numbers) else 0)


def _own(name: str) -> str:
    """A name that leaves ours to us."""
    return f"metadata_{name}" if name in OWN else name
