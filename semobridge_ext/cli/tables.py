"""Features in Parquet files or a Lance data set, read as a folder of shards is.

    FILE.parquet, or a folder of such files, by name: a shard each; what Ray Data and others write
    NAME.lance                                        a shard a fragment; needs pylance

A row has a vector in the first of the columns `features`, `embedding` and `vector` that there is; the other
columns are its metadata.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext.cli.shards import FEATURES, Folder, arrow, reading

COLUMNS = ("features", "embedding", "vector")


def open_features(function: str, path: Path, part: str = FEATURES) -> Folder:
    """The folder of shards, or the tables, at a path."""
    if path.suffix == ".lance":
        return Lance(function, path)
    if path.is_file() and path.suffix == ".parquet":
        return Parquet(function, path)
    if path.is_dir() and not (path / part).is_dir() and any(path.glob("*.parquet")):
        return Parquet(function, path)
    return Folder(function, path, part)


class Tables(Folder):
    """Tables whose rows are features and their metadata; a subclass says where each lies."""

    _kind: str

    def __init__(self, function: str, path: Path) -> None:
        super().__init__(function, path)
        self._read: tuple[int, Any] | None = None  # the table that was read last

    def _table(self, index: int) -> Any:
        raise NotImplementedError

    def _whole(self, index: int) -> Any:
        if self._read is None or self._read[0] != index:
            with reading(self.function, self.path, self._kind):
                self._read = index, self._table(index)
        return self._read[1]

    def _column(self, index: int) -> str:
        names = self._whole(index).column_names
        found = next((name for name in COLUMNS if name in names), None)
        if found is None:
            raise ValueError(
                f"{self.function}: SHARDS must have a column of vectors named {', '.join(COLUMNS)}, got "
                f"{self.path} with {', '.join(names) or 'none'}; rename the one that holds them"
            )
        return found

    def features(self, index: int) -> Tensor:
        """[n, D] float16 or float32 of one table, in memory; float64 is rounded."""
        name = self._column(index)
        rows = _vectors(self.function, self.path, name, self._whole(index).column(name))
        return rows.float() if rows.dtype is torch.float64 else rows

    def table(self, index: int) -> Any:
        return self._whole(index).drop_columns([self._column(index)])

    def metadata_bytes(self, index: int) -> bytes:
        file = io.BytesIO()
        arrow(self.function).write_table(self.table(index), file)
        return file.getvalue()

    def metadata_file(self, index: int) -> Path:
        return self.path

    def check_rows(self, index: int) -> None:
        """A table's rows are of one length."""

    def record_count(self) -> int:
        return sum(len(self._whole(index)) for index in self.shards())


class Parquet(Tables):
    _kind = "Parquet"

    def _paths(self) -> list[Path]:
        return sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]

    def shards(self) -> list[int]:
        return list(range(len(self._paths())))

    def source_files(self, index: int) -> tuple[Path, ...]:
        return (self._paths()[index],)

    def _table(self, index: int) -> Any:
        # One file, and no data set: folders named like key=value add no columns.
        return arrow(self.function).ParquetFile(self._paths()[index]).read()


class Lance(Tables):
    _kind = "Lance"

    def __init__(self, function: str, path: Path) -> None:
        super().__init__(function, path)
        try:
            import lance
        except ImportError as error:
            raise ImportError(
                f"{function}: pylance must be installed to read {path}, got none; "
                "pip install 'semobridge-ext[lance]'"
            ) from error
        if not path.is_dir():
            raise FileNotFoundError(
                f"{function}: SHARDS must be an existing Lance data set, got {path}; check the name"
            )
        with reading(function, path, "Lance"):
            self._fragments = lance.dataset(str(path)).get_fragments()

    def shards(self) -> list[int]:
        return list(range(len(self._fragments)))

    def source_files(self, index: int) -> tuple[Path, ...]:
        return tuple(self.path / "data" / file.path for file in self._fragments[index].data_files())

    def _table(self, index: int) -> Any:
        return self._fragments[index].to_table()


def _vectors(function: str, path: Path, name: str, column: Any) -> Tensor:  # [n, D]
    """The vectors of a list column; Ray's tensors keep theirs in a list too."""
    import pyarrow

    parts = []
    for chunk in column.chunks:
        lists = chunk.storage if isinstance(chunk, pyarrow.ExtensionArray) else chunk
        if not len(lists):
            continue
        kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        whole = any(kind(lists.type) for kind in kinds) and not lists.null_count
        lengths = set(lists.value_lengths().to_pylist()) if whole else set()
        flat = lists.flatten() if whole else None
        if flat is None or len(lengths) != 1 or flat.null_count or not pyarrow.types.is_floating(flat.type):
            got = f"{column.type}" + (f" of lengths {sorted(lengths)[:3]}" if len(lengths) > 1 else "")
            raise ValueError(
                f"{function}: column '{name}' must hold float vectors of one length and none missing, got "
                f"{got} in {path}; drop the other rows"
            )
        parts.append(flat.to_numpy(zero_copy_only=False).reshape(len(lists), lengths.pop()))
    if len({part.shape[1] for part in parts}) > 1:
        got = _errors.describe(sorted({part.shape[1] for part in parts}))
        raise ValueError(
            f"{function}: column '{name}' must hold vectors of one length, got {got} in {path}; drop others"
        )
    return _arrays.shared(np.concatenate(parts) if parts else np.empty((0, 0), np.float32))
