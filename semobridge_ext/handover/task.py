"""What every writer of a format gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semobridge_ext import _files
from semobridge_ext.handover.rows import Rows


@dataclass(frozen=True)
class Task:
    """One export."""

    out: Path
    rows: Rows
    factory: str  # FAISS's; "" for other formats
    train: int | None
    seed: int
    file_rows: int | None
    advance: Callable[[int], object]  # by a number of rows


@dataclass
class Written:
    """What stands in the folder now."""

    files: list[str]  # files, and folders that are one data set
    lines: list[str]  # of README.txt: how to search
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def table_file(path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    """A Parquet file that is whole or absent; what it gives takes a table or batch at a time."""
    import pyarrow.parquet

    with _files.replaced(path) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        yield writer.write_table
