"""Milvus: Parquet files as its bulk import takes them, each whole before the next is begun.

An import takes up to 1024 files of 16 GB each (milvus-io/milvus#31542); ours have a gibibyte of vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from semobridge_ext import _errors
from semobridge_ext.handover.sources import NAME
from semobridge_ext.handover.task import Task, Written, table_file

FILE_BYTES = 1 << 30
_GROUP_BYTES = 32 << 20  # a reader holds a group of rows at once


def _kind(name: str, given: Any) -> tuple[Any, str]:
    """A column's type in Parquet, and its field in Milvus."""
    import pyarrow

    types = pyarrow.types
    if types.is_string(given) or types.is_large_string(given):
        return pyarrow.string(), "VARCHAR, max_length=65535, nullable=True"
    if types.is_boolean(given):
        return pyarrow.bool_(), "BOOL, nullable=True"
    if types.is_integer(given):
        return pyarrow.int64(), "INT64, nullable=True"
    if types.is_floating(given):
        return pyarrow.float64(), "DOUBLE, nullable=True"
    contract = "hold texts, numbers or flags for Milvus"
    remedy = "leave the metadata out, or export to lance"
    raise ValueError(_errors.message(NAME, "metadata", contract, f"{given} in the column '{name}'", remedy))


def _fields(task: Task) -> list[tuple[str, Any, str]]:
    """Name, type and Milvus's field of every column of the metadata."""
    found = []
    for field in task.rows.schema():
        name = re.sub(r"\W", "_", field.name, flags=re.ASCII)  # letters, digits and underscores
        name = f"_{name}" if name[:1].isdigit() or not name else name
        found.append((name, *_kind(field.name, field.type)))
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        contract, remedy = "have columns of different names for Milvus", "rename one of them"
        raise ValueError(_errors.message(NAME, "metadata", contract, f"'{twice}' twice", remedy))
    return found


def _named(i: int) -> str:
    return f"part_{i:05d}.parquet"


def _whole(task: Task, each: int) -> int:
    """The files that an interrupted run has finished: whole, as each was renamed into place."""
    import pyarrow.parquet

    done = 0
    while (path := task.out / _named(done)).is_file():
        expected = min(each, task.rows.count - done * each)
        if expected <= 0 or pyarrow.parquet.read_metadata(path).num_rows != expected:
            break
        done += 1
    return done


def write(task: Task) -> Written:
    """part_00000.parquet and so on: id int64, vector list<float>, and the columns of the metadata."""
    import pyarrow

    fields, rows = _fields(task), task.rows
    own = [("id", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32()))]
    schema = pyarrow.schema([*own, *((name, kind) for name, kind, _ in fields)])
    each = task.file_rows or max(1, FILE_BYTES // (4 * rows.width))
    group = max(1, _GROUP_BYTES // (4 * rows.width))
    done = _whole(task, each)
    task.advance(min(done * each, rows.count))
    parts = _tables(task, schema, done * each)
    table = None
    for number in range(done, -(-rows.count // each)):
        with table_file(task.out / _named(number), schema) as add:
            left = min(each, rows.count - number * each)
            while left:
                if table is None or not table.num_rows:
                    table = next(parts)
                taken = min(left, group, table.num_rows)
                add(table.slice(0, taken))
                table, left = table.slice(taken), left - taken
                task.advance(taken)
    files = [_named(i) for i in range(-(-rows.count // each))]
    return Written(files, _lines(rows.width, fields, len(files)))


def _tables(task: Task, schema: Any, first: int) -> Iterator[Any]:
    import pyarrow

    for part in task.rows.parts(first):
        flat = pyarrow.array(part.rows.numpy().reshape(-1))
        ends = pyarrow.array(np.arange(len(part.rows) + 1, dtype=np.int32) * task.rows.width)
        vectors = pyarrow.ListArray.from_arrays(ends, flat)
        columns = [] if part.table is None else part.table.columns
        arrays = [pyarrow.array(part.ids), vectors, *columns]
        names = schema.names
        yield pyarrow.table(arrays, names=names).cast(schema)


def _lines(width: int, fields: list[tuple[str, Any, str]], files: int) -> list[str]:
    return [
        f"{files} Parquet files for Milvus's bulk import: id, vector (float32 unit rows), metadata.",
        "    from pymilvus import DataType, MilvusClient",
        "    schema = MilvusClient.create_schema()",
        '    schema.add_field("id", DataType.INT64, is_primary=True)',
        f'    schema.add_field("vector", DataType.FLOAT_VECTOR, dim={width})',
        *(f'    schema.add_field("{name}", DataType.{kind})' for name, _, kind in fields),
        "    index = MilvusClient.prepare_index_params()",
        '    index.add_index("vector", index_type="FLAT", metric_type="IP")',
        "    client = MilvusClient(uri=URI)  # of your server",
        '    client.create_collection("gallery", schema=schema, index_params=index)',
        "Upload the files to the server's bucket, pymilvus.bulk_writer.bulk_import them, each a list, then",
        '    client.load_collection("gallery")',
        '    hits = client.search("gallery", data=q.tolist(), anns_field="vector", limit=10)',
        "FLAT is exact; on a GPU GPU_BRUTE_FORCE is.",
    ]
