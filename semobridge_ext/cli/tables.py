"""Features in Parquet files or a Lance data set, read as a folder of shards is.

    FILE.parquet, or a folder of such files, by name     what Ray Data and others write
    NAME.lance                                           needs pylance
    FOLDER/features/part-00000.parquet, FOLDER/features.lance
                                                         what --format writes, beside its settings.json

A row has a vector in the first of the columns `features`, `embedding` and `vector` that there is, and may
have one of its text in `text_features`; the other columns are its metadata. At most ROWS rows of a file or
fragment are a shard: more are never in memory.
"""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.cli.parquet_rows import Cursor
from semobridge_ext.cli.shard_files import FEATURES, SEALS, TEXTS, arrow, reading
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.table_seals import read_seals
from semobridge_ext.cli.vector_columns import vectors_of

COLUMNS, TEXT_COLUMN = ("features", "embedding", "vector"), "text_features"
PARQUET, LANCE = "features", "features.lance"  # in a folder that this package writes
ROWS = 1 << 16  # of a shard: 128 MiB of float32 rows of width 512


def _files_in(folder: Path) -> list[Path]:
    """The Parquet files by name; others' hidden files begin as theirs do."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith((".", "_")))


def _table_at(path: Path, part: str) -> tuple[type[Tables], Path, Path] | None:
    """The kind of table at a path, the folder with its settings, and where the rows lie."""
    if path.name in (PARQUET, LANCE) and (path.parent / SEALS).is_file():
        path = path.parent
    if (path / SEALS).is_file():
        for kind, name in ((Parquet, PARQUET), (Lance, LANCE)):
            if (path / name).is_dir():
                return kind, path, path / name
    if path.suffix == ".lance":
        return Lance, path, path
    if path.is_file() and path.suffix == ".parquet":
        return Parquet, path, path
    if path.is_dir() and not (path / part).is_dir() and _files_in(path):
        return Parquet, path, path
    return None


def open_features(function: str, path: str | Path, part: str = FEATURES) -> Folder:
    """The folder of shards, or the tables, at a path."""
    found = _table_at(Path(path), part)
    if found is None:
        return Folder(function, path, part)
    kind, home, data = found
    return kind(function, home, data, part)


def holds_features(path: str | Path) -> bool:
    """Whether a path leads to shards or tables of features, and not to images."""
    return (Path(path) / FEATURES).is_dir() or _table_at(Path(path), FEATURES) is not None


def texts_beside(folder: Folder) -> Folder | None:
    """The texts of the same rows; None where there are none."""
    if isinstance(folder, Tables):
        found = folder.shards() and folder.has_texts()
        return type(folder)(folder.function, folder.path, folder.data, TEXTS) if found else None
    return Folder(folder.function, folder.path, TEXTS) if (folder.path / TEXTS).is_dir() else None


def lance_library(function: str, task: str) -> Any:
    try:
        import lance
    except ImportError as error:
        raise ImportError(
            f"{function}: pylance must be installed to {task}, got none; pip install 'semobridge-ext[lance]'"
        ) from error
    return lance


class Place(NamedTuple):
    """Where the rows of a shard lie."""

    source: int  # number of the file or fragment
    first: int
    rows: int


class Tables(Folder):
    """Tables whose rows are features and their metadata; a subclass says where each lies."""

    _kind: str

    def __init__(self, function: str, path: Path, data: Path, part: str = FEATURES) -> None:
        super().__init__(function, path, part)
        self.data = data
        self._kept: tuple[int, Tensor] | None = None  # the shard that was read last

    # -- what a subclass says of its files or fragments, by number ---------------------------------------

    def _sizes(self) -> list[int]:
        raise NotImplementedError

    def _schema(self, source: int) -> Any:
        raise NotImplementedError

    def _files_of(self, source: int) -> tuple[Path, ...]:
        raise NotImplementedError

    def _read(self, columns: list[str], place: Place) -> Any:
        raise NotImplementedError

    # -- shards ------------------------------------------------------------------------------------------

    @cached_property
    def _places(self) -> list[Place]:
        found = [
            Place(source, first, min(ROWS, size - first))
            for source, size in enumerate(self._sizes())
            for first in range(0, max(size, 1), ROWS)
        ]
        if not found:
            raise ValueError(f"{self.function}: SHARDS must hold rows, got none in {self.path}; write some")
        return found

    def shards(self) -> list[int]:
        return list(range(len(self._places)))

    def _column(self, source: int) -> str:
        """The name of the vectors' column."""
        names = self._schema(source).names
        wanted = (TEXT_COLUMN,) if self.part == TEXTS else COLUMNS
        found = next((name for name in wanted if name in names), None)
        if found is None:
            raise ValueError(
                f"{self.function}: SHARDS must have a column of vectors named {', '.join(wanted)}, got "
                f"{self.path} with {', '.join(names) or 'none'}; rename the one that holds them"
            )
        return found

    def _others(self, source: int) -> list[str]:
        """The names of the metadata."""
        vectors = [self._column(source), *([TEXT_COLUMN] if self.has_texts(source) else [])]
        if self.data != self.path:  # its texts are asked for: the images are no metadata either
            vectors.append(COLUMNS[0])
        return [name for name in self._schema(source).names if name not in vectors]

    def has_texts(self, source: int = 0) -> bool:
        """Whether there is a column of the texts' vectors."""
        import pyarrow

        at = self._schema(source).get_field_index(TEXT_COLUMN)
        kind = None if at < 0 else self._schema(source).field(at).type
        return kind is not None and pyarrow.types.is_nested(getattr(kind, "storage_type", kind))

    def _taken(self, columns: list[str], index: int) -> Any:
        place = self._places[index]
        with reading(self.function, self._files_of(place.source)[0], self._kind):
            found = self._read(columns, place)
            if len(found) != place.rows:
                raise ValueError(f"{len(found)} rows where it says {place.rows}")
        for path in self._files_of(place.source):
            self.check_written(path)
        return found

    def features(self, index: int) -> Tensor:
        """[n, D] float16 or float32 of one shard, in memory; float64 is rounded."""
        if self._kept is None or self._kept[0] != index:
            source = self._places[index].source
            name, path = self._column(source), self._files_of(source)[0]
            found = self._taken([name], index)
            with reading(self.function, path, self._kind):
                column = found.column(name)
            rows = vectors_of(self.function, path, name, column)
            if rows.numel():
                self.check_width(path, rows.shape[1])
            self._kept = index, rows.float() if rows.dtype is torch.float64 else rows
        return self._kept[1]

    @cached_property
    def _width(self) -> int:
        index = next((i for i, place in enumerate(self._places) if place.rows), None)
        if index is None:
            return 0
        return self._told_width(self._places[index].source) or self.features(index).shape[1]

    def _told_width(self, source: int) -> int | None:
        """What the column's type says of its length."""
        import pyarrow

        kind = self._schema(source).field(self._column(source)).type
        kind = getattr(kind, "storage_type", kind)
        return kind.list_size if pyarrow.types.is_fixed_size_list(kind) else None

    def shape(self, index: int) -> tuple[int, int]:
        """Without reading the rows where the column's type says their length."""
        return self._places[index].rows, self._width

    def table(self, index: int) -> Any:
        """The metadata of one shard; `row`, the numbers of the rows, where there is none."""
        import pyarrow

        place = self._places[index]
        if others := self._others(place.source):
            return self._taken(others, index)
        first = sum(before.rows for before in self._places[:index])
        return pyarrow.table({"row": range(first, first + place.rows)})

    def columns(self, name: str, option: str = "--label") -> Any:
        for index, place in enumerate(self._places):
            self._check_column(name, option, self._others(place.source))
            found = self._taken([name], index)
            with reading(self.function, self._files_of(place.source)[0], self._kind):
                values = found.column(name).to_pylist()
            yield values

    def metadata_bytes(self, index: int) -> bytes:
        file = io.BytesIO()
        arrow(self.function).write_table(self.table(index), file)
        return file.getvalue()

    def metadata_file(self, index: int) -> Path:
        return self._files_of(self._places[index].source)[0]

    def source_files(self, index: int) -> tuple[Path, ...]:
        return self._files_of(self._places[index].source)

    def check_rows(self, index: int) -> None:
        """Refuses rows of another width, as far as the column's type tells; `features` looks at the rest."""
        place = self._places[index]
        if place.rows and (width := self._told_width(place.source)):
            self.check_width(self._files_of(place.source)[0], width)

    def losses(self) -> list[tuple[str, str]]:
        return [pair for seal in read_seals(self.path).values() for pair in seal.lost]

    def _lacking(self) -> str | None:
        rows, found = sum(seal.rows for seal in read_seals(self.path).values()), self.record_count()
        return f"{found} of {rows} rows" if found < rows else None

    def record_count(self) -> int:
        return sum(place.rows for place in self._places)


class Parquet(Tables):
    _kind = "Parquet"

    def __init__(self, function: str, path: Path, data: Path, part: str = FEATURES) -> None:
        super().__init__(function, path, data, part)
        self._schemas: list[Any] = []
        self._cursors: dict[tuple[str, ...], Cursor] = {}

    @cached_property
    def _paths(self) -> list[Path]:
        return _files_in(self.data) if self.data.is_dir() else [self.data]

    def _sizes(self) -> list[int]:
        sizes = []
        for path in self._paths:
            # One file, and no data set: folders named like key=value add no columns.
            with reading(self.function, path, self._kind), arrow(self.function).ParquetFile(path) as file:
                self._schemas.append(file.schema_arrow)
                sizes.append(file.metadata.num_rows)
        return sizes

    def _schema(self, source: int) -> Any:
        return self._schemas[source]

    def _files_of(self, source: int) -> tuple[Path, ...]:
        return (self._paths[source],)

    def _read(self, columns: list[str], place: Place) -> Any:
        cursor = self._cursors.setdefault(tuple(columns), Cursor(columns))
        return cursor.take(self._paths[place.source], place.first, place.rows)


class Lance(Tables):
    _kind = "Lance"

    def __init__(self, function: str, path: Path, data: Path, part: str = FEATURES) -> None:
        super().__init__(function, path, data, part)
        lance = lance_library(function, f"read {data}")
        if not data.is_dir():
            raise FileNotFoundError(
                f"{function}: SHARDS must be an existing Lance data set, got {data}; check the name"
            )
        with reading(function, data, "Lance"):
            self._set = lance.dataset(str(data))
            self._fragments = self._set.get_fragments()

    def _sizes(self) -> list[int]:
        with reading(self.function, self.data, self._kind):
            return [fragment.count_rows() for fragment in self._fragments]

    def _schema(self, source: int) -> Any:
        return self._set.schema

    def _files_of(self, source: int) -> tuple[Path, ...]:
        return tuple(self.data / "data" / file.path for file in self._fragments[source].data_files())

    def _read(self, columns: list[str], place: Place) -> Any:
        fragment = self._fragments[place.source]
        if not place.rows:
            return fragment.schema.empty_table().select(columns)
        return fragment.to_table(columns=columns, offset=place.first, limit=place.rows)
