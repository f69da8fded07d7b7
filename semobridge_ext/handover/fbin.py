"""cuVS and its benchmarks: .fbin and .f16bin, two numbers and then the rows.

uint32 rows, uint32 columns, then the values row by row, little-endian.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack

import numpy as np

from semobridge_ext import _errors, _files
from semobridge_ext.cli.shard_writer import write_header
from semobridge_ext.handover.sources import NAME
from semobridge_ext.handover.task import Task, Written, table_file

KINDS = {"fbin": "<f4", "f16bin": "<f2"}


def write(task: Task, kind: str) -> Written:
    """gallery.fbin or gallery.f16bin; ids.npy where there are ids, metadata.parquet where records go."""
    rows, file = task.rows, f"gallery.{kind}"
    if rows.count >= 1 << 32:
        remedy = "export parts of the gallery"
        raise ValueError(_errors.message(NAME, "gallery", "have less than 2³² rows", f"{rows.count}", remedy))
    written = Written([file], [], {})
    with ExitStack() as stack:
        target = stack.enter_context(_files.replaced(task.out / file))
        target.write(struct.pack("<II", rows.count, rows.width))
        ids = records = None
        if rows.ids is not None:
            written.files.append("ids.npy")
            ids = stack.enter_context(_files.replaced(task.out / "ids.npy"))
            write_header(ids, (rows.count,), np.int64)
        if rows.records:
            written.files.append("metadata.parquet")
            records = stack.enter_context(table_file(task.out / "metadata.parquet", rows.schema()))
        for part in rows.parts():
            target.write(part.rows.numpy().astype(KINDS[kind]).tobytes())
            if ids is not None:
                ids.write(part.ids.tobytes())
            if records is not None:
                records(part.table)
            task.advance(len(part.rows))
    written.lines = _lines(file, kind, rows.ids is not None)
    return written


def _lines(file: str, kind: str, ids: bool) -> list[str]:
    name = "float32" if kind == "fbin" else "float16"
    return [
        f"{file}: uint32 rows, uint32 columns, then {name} unit rows, little-endian: what cuVS Bench reads.",
        f'    rows, columns = numpy.fromfile("{file}", "<u4", 2)',
        f'    gallery = numpy.memmap("{file}", "{KINDS[kind]}", "r", 8, (int(rows), int(columns)))',
        "    # on a GPU: import cupy; from cuvs.neighbors import brute_force",
        '    # index = brute_force.build(cupy.asarray(gallery), metric="inner_product")',
        "    # scores, found = brute_force.search(index, cupy.asarray(q, dtype=gallery.dtype), 10)",
        "ids.npy: the id of each row." if ids else "What is found are row numbers.",
    ]
