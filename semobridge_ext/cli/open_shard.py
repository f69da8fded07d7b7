"""The shard that `extract` is filling: rows, metadata and what was lost, until it goes to disk."""

from __future__ import annotations

import argparse
import io
import json

import numpy as np

from semobridge_ext.cli.captions import Captions
from semobridge_ext.cli.listing import CAPTION
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.cli.shard_writer import Writer


def _utf8(text: str) -> str:
    """File names may hold bytes that are no text; Parquet takes text only."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class OpenShard:
    """The shard that is being filled: at most `size` inputs."""

    def __init__(
        self,
        folder: Writer,
        index: int,
        args: argparse.Namespace,
        columns: tuple[str, ...],
        captions: Captions | None,
    ) -> None:
        self.folder, self.index, self.columns, self.captions = folder, index, columns, captions
        self.size, self.dtype, self.unit = args.shard_size, np.dtype(args.dtype), args.normalize
        self.rows: np.ndarray | None = None
        self.width = folder.width_before(index)  # of a shard without rows, too
        self._clear()

    def _clear(self) -> None:
        self.inputs, self.filled = 0, 0
        self.records: dict[str, list[str | None]] = {name: [] for name in ("image_path", *self.columns)}
        self.corrupt: list[tuple[str, str]] = []

    def add(self, path: str, fields: dict[str, str | None], row: np.ndarray | None, reason: str) -> None:
        """One input; a full shard goes to disk."""
        if row is not None and self.captions is not None:
            fields, reason = self.captions.taken(fields)
            row = None if reason else row
        if row is not None:
            with np.errstate(over="ignore"):  # reported as not finite
                stored = (row / max(float(np.linalg.norm(row)), 1e-12) if self.unit else row).astype(
                    self.dtype
                )
            if not np.isfinite(stored).all():
                row, reason = None, f"its feature is not finite in {self.dtype}"
        if row is None:
            self.corrupt.append((_utf8(path), reason))
        else:
            if self.rows is None:
                self.rows = np.empty((self.size, len(row)), self.dtype)
            self.rows[self.filled] = stored
            self.filled += 1
            for name, values in self.records.items():
                value = path if name == "image_path" else fields.get(name)
                values.append(None if value is None else _utf8(value))
        self.inputs += 1
        if self.inputs == self.size:
            self.flush()

    def flush(self) -> None:
        import pyarrow

        rows = np.empty((0, self.width), self.dtype) if self.rows is None else self.rows[: self.filled]
        rows, texts = self._captioned(rows)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in self.records])
        table = pyarrow.table(self.records, schema=schema)
        # In the Parquet file, so that one rename makes rows and losses of a shard true together.
        losses = json.dumps(self.corrupt)
        table = table.replace_schema_metadata({"inputs": str(self.inputs), "corrupt": losses})
        parquet = io.BytesIO()
        arrow("extract").write_table(table, parquet)
        self.folder.add(self.index, len(rows), [rows], self.dtype, parquet.getvalue(), texts)
        self.index += 1
        self._clear()

    def _captioned(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:  # [n, D]
        """The rows with those of their captions; pairs without a finite caption are lost."""
        if self.captions is None:
            return rows, None
        if not len(rows):
            return rows, rows
        texts, finite = self.captions.rows([text or "" for text in self.records[CAPTION]])
        if not finite.all():
            reason = f"the feature of its caption is not finite in {self.dtype}"
            lost = [path for path, kept in zip(self.records["image_path"], finite, strict=True) if not kept]
            self.corrupt += [(path or "", reason) for path in lost]
            for name, values in self.records.items():
                self.records[name] = [v for v, kept in zip(values, finite, strict=True) if kept]
        return rows[finite], texts[finite]
