"""Folders of shards in clip-retrieval's layout: features as .npy, what they belong to as Parquet.

    FOLDER/img_emb/img_emb_0.npy         [n, D] float16 or float32
    FOLDER/metadata/metadata_0.parquet   n rows: image_path, and label, caption, .. where known
    FOLDER/settings.json                 what made them; a run with other settings is refused
    FOLDER/summary.json                  counts and times, written last: its absence is an unfinished run

A shard exists when its Parquet file does, which is renamed into place after its features.
shard_writer.py writes them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEATURES, METADATA = "img_emb", "metadata"
_ROWS = 1 << 14  # read at once: 16384 float32 rows of width 512 are 32 MiB


def read_json(function: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{function}: {path} must be JSON, got {error}; make the folder again") from error


def arrow(function: str) -> Any:
    """pyarrow.parquet, or the command that installs it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{function}: pyarrow must be installed to read and write Parquet, got none; "
            "pip install 'semobridge-ext[cli]'"
        ) from error
    return pyarrow.parquet


class Folder:
    """One folder of shards; reads what this package and clip-retrieval write."""

    def __init__(self, function: str, path: str | Path) -> None:
        self.function, self.path = function, Path(path)

    def features_path(self, index: int) -> Path:
        return self.path / FEATURES / f"{FEATURES}_{index}.npy"

    def metadata_path(self, index: int) -> Path:
        return self.path / METADATA / f"{METADATA}_{index}.parquet"

    def shards(self) -> list[int]:
        """Shard numbers in order; both files of each are there."""
        found = _numbers(self.path / FEATURES, rf"{FEATURES}_(\d+)\.npy")
        if not found:
            raise FileNotFoundError(
                f"{self.function}: SHARDS must be a folder with {FEATURES}/{FEATURES}_0.npy, got "
                f"{self.path}; "
                "make one with: semobridge-ext extract IMAGES FOLDER"
            )
        lacking = sorted(set(found) - set(_numbers(self.path / METADATA, rf"{METADATA}_(\d+)\.parquet")))
        if lacking:
            raise FileNotFoundError(
                f"{self.function}: every shard must have its metadata, got none for shard {lacking[0]} in "
                f"{self.path}; run the interrupted command again"
            )
        self._names = found  # clip-retrieval pads the numbers where it has many shards
        return sorted(found)

    def settings(self) -> dict[str, Any]:
        """What made the folder; empty for one of another program."""
        path = self.path / "settings.json"
        return read_json(self.function, path) if path.is_file() else {}

    def summary(self) -> dict[str, Any]:
        path = self.path / "summary.json"
        return read_json(self.function, path) if path.is_file() else {}

    def check_finished(self) -> None:
        if self.settings() and not self.summary():
            raise ValueError(
                f"{self.function}: SHARDS must be finished, got {self.path}, whose run was interrupted; "
                "the command that began it goes on where it stopped"
            )

    def features(self, index: int) -> Tensor:
        """[n, D] float16 or float32 of one shard, memory-mapped."""
        path = self.features_file(index)
        try:
            # Copy-on-write: torch warns about arrays that it may not write to.
            # Empty arrays, where a whole shard was corrupt, cannot be mapped.
            small = path.stat().st_size < 4096
            rows = np.load(path, mmap_mode=None if small else "c", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{self.function}: {path} must be a whole .npy file, got {error}") from error
        if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{self.function}: {path} must be [n, D] float16 or float32, got {rows.dtype} "
                f"{list(rows.shape)}"
            )
        return torch.from_numpy(rows)

    def blocks(self, rows: int = _ROWS) -> Iterator[Tensor]:
        """Every row once, in order, float32, at most `rows` at a time."""
        for index in self.shards():
            for part in self.features(index).split(rows):
                if part.numel():
                    yield part.float()

    def load(self) -> Tensor:
        """[N, D] float32 unit rows: all of them in memory."""
        normal = [torch.nn.functional.normalize(block, dim=1) for block in self.blocks()]
        return torch.cat(normal)

    def labelled(self, column: str, codes: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Unit rows [N, D] and label codes [N] of the rows that have a label; `codes` grows."""
        self.shards()
        self.check_finished()
        values = self.column(column)
        kept = torch.tensor([i for i, value in enumerate(values) if value is not None], dtype=torch.int64)
        if not len(kept):
            raise ValueError(
                f"{self.function}: SHARDS must have labels, got {self.path} with none in '{column}'; "
                "extract a folder with one sub-folder per class, or name another column with --label"
            )
        rows = self.load()
        if len(rows) != len(values):
            raise ValueError(
                f"{self.function}: SHARDS must have one record per row, got {len(rows)} rows and "
                f"{len(values)} records in {self.path}"
            )
        labels = torch.tensor([codes.setdefault(str(values[i]), len(codes)) for i in kept.tolist()])
        return (rows if len(kept) == len(rows) else rows[kept]), labels

    def class_names(self) -> list[str]:
        """The labels, sorted."""
        return sorted({str(label) for label in self.column("label") if label is not None})

    def features_file(self, index: int) -> Path:
        """Of an existing shard; after `shards`."""
        return self.path / FEATURES / self._names[index]

    def metadata_file(self, index: int) -> Path:
        """Of an existing shard, whatever way its number is written."""
        return self.path / METADATA / _numbers(self.path / METADATA, rf"{METADATA}_(\d+)\.parquet")[index]

    def table(self, index: int) -> Any:
        return arrow(self.function).read_table(self.metadata_file(index))

    def column(self, name: str) -> list[Any]:
        """One column of all shards."""
        values: list[Any] = []
        for index in self.shards():
            table = self.table(index)
            if name not in table.column_names:
                raise ValueError(
                    f"{self.function}: --label must be a column of the metadata, got '{name}'; "
                    f"{self.path} has "
                    f"{', '.join(table.column_names)}"
                )
            values += table.column(name).to_pylist()
        return values


def _numbers(folder: Path, pattern: str) -> dict[int, str]:
    """File names by shard number."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(match[1]): match[0] for name in names if (match := re.fullmatch(pattern, name))}
