"""The result of `invert` as a table: `features`, `tokens`, `steps_done` beside the columns of the input."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from semobridge_ext._errors import message
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.shards import Folder
from semobridge_ext.inversion.spec import Inversion

RESULT = "inversion.safetensors"  # in OUT: what an interrupted command goes on with
_ROWS = 1 << 14


def _records(folder: Folder | None, rows: int) -> Iterator[Any]:
    """The metadata of the first rows, a shard at a time; their numbers where there is none."""
    import pyarrow

    if folder is None:
        for first in range(0, rows, _ROWS):
            yield pyarrow.table({"row": range(first, min(first + _ROWS, rows))})
        return
    for index in folder.shards():
        table = folder.table(index)[:rows]
        rows -= len(table)
        if len(table):
            yield table


def _lists(values: Tensor) -> Any:  # [n, ..] -> n lists of one length
    import pyarrow

    flat = np.ascontiguousarray(values.float().cpu().numpy()).reshape(len(values), -1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.reshape(-1)), flat.shape[1])


def write(out: Writer, inv: Inversion, folder: Folder | None, settings: dict[str, Any]) -> None:
    """Writes the table in the folder `out`, or goes on with it."""
    import pyarrow

    with out.claim():
        done, first = out.begin(settings), 0
        if done:
            out.reopen()
        for index, table in enumerate(_records(folder, len(inv.tokens))):
            rows, end = slice(first, first + len(table)), first + len(table)
            if index >= done:
                for name in {"tokens", "steps_done"} & set(table.column_names):
                    got, remedy = f"'{name}' among {', '.join(table.column_names)}", "rename it"
                    raise ValueError(message("invert", "input", "have no such column", got, remedy))
                table = table.append_column("tokens", _lists(inv.tokens[rows]))
                table = table.append_column("steps_done", pyarrow.array(inv.steps_done[rows].cpu().numpy()))
                file, found = io.BytesIO(), inv.features[rows].float().cpu().numpy()
                arrow("invert").write_table(table.replace_schema_metadata(None), file)
                out.add(index, len(found), [found], np.dtype("float32"), file.getvalue())
            first = end
        out.finish({"rows": first})
