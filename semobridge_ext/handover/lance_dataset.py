"""Lance: one data set with a fixed-size-list column of vectors, which LanceDB opens as a table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from semobridge_ext._errors import naming
from semobridge_ext.handover.sources import NAME
from semobridge_ext.handover.task import Task, Written

NAME_OF_TABLE = "gallery"


def _library() -> Any:
    try:
        return import_module("lance")
    except ImportError as error:
        raise ImportError(
            f"{NAME}: lance must be installed to write its data set, got none ({error}); "
            "pip install 'semobridge-ext[export]'"
        ) from error


def _schema(task: Task) -> Any:
    import pyarrow

    own = [("id", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), task.rows.width))]
    return pyarrow.schema([*own, *((f.name, f.type) for f in task.rows.schema())])


def _batches(task: Task, schema: Any, failed: list[BaseException]) -> Iterator[Any]:
    import pyarrow

    try:
        for part in task.rows.parts():
            flat = pyarrow.array(part.rows.numpy().reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, task.rows.width)
            columns = [] if part.table is None else part.table.combine_chunks().columns
            arrays = [pyarrow.array(part.ids), vectors, *(c.combine_chunks() for c in columns)]
            yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
            task.advance(len(part.rows))
    except BaseException as error:  # Lance would tell it as one of its own
        failed.append(error)
        raise


def write(task: Task) -> Written:
    """gallery.lance: written under another name, renamed when it is whole."""
    lance = _library()
    import pyarrow

    target, staged = task.out / f"{NAME_OF_TABLE}.lance", task.out / f".{NAME_OF_TABLE}.lance.tmp"
    for old in (staged, target):  # of a killed run, or of one whose files have changed
        if old.exists():
            shutil.rmtree(old)
    schema, failed = _schema(task), []  # type: Any, list[BaseException]
    reader = pyarrow.RecordBatchReader.from_batches(schema, _batches(task, schema, failed))
    try:
        lance.write_dataset(reader, str(staged), schema=schema, mode="create")
        with naming(target):
            os.rename(staged, target)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if failed and failed[0] is not error:
            raise failed[0] from None
        raise
    return Written([f"{NAME_OF_TABLE}.lance"], _LINES)


_LINES = [
    "A Lance data set with the columns id, vector (float32 unit rows) and the metadata.",
    "    import lancedb",
    f'    table = lancedb.connect(".").open_table("{NAME_OF_TABLE}")',
    "    hits = [",
    '        table.search(row).distance_type("dot").bypass_vector_index().limit(10).to_arrow() for row in q',
    "    ]  # exact; _distance is 1 - cosine",
    'For an index: table.create_index(metric="dot", vector_column_name="vector").',
]
