"""Folders of shards as clip-retrieval writes them, and a README's lines as a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_shards(folder: Path, rows: Tensor, each: int, columns: dict[str, list[Any]] | None = None) -> Path:
    """Shards of `each` rows in float32, with a path for every row and the columns."""
    import pyarrow
    import pyarrow.parquet

    given = {"image_path": [f"{i}.png" for i in range(len(rows))], **(columns or {})}
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for i, begin in enumerate(range(0, len(rows), each)):
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", rows[begin : begin + each].numpy())
        part = {name: values[begin : begin + each] for name, values in given.items()}
        pyarrow.parquet.write_table(pyarrow.table(part), folder / "metadata" / f"metadata_{i}.parquet")
    return folder


def clustered(count: int, width: int, seed: int = 0, centres: int = 12) -> Tensor:
    """Rows of any length around some directions, as features lie."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, width, generator=draw)
    rows = middle[torch.randint(centres, (count,), generator=draw)]
    return 3 * (rows + 0.7 * torch.randn(count, width, generator=draw))


def code_of(readme: Path) -> list[str]:
    """The indented lines."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    return [line[4:] for line in lines if line.startswith("    ")]


def run_lines(lines: list[str], **given: Any) -> dict[str, Any]:
    exec("\n".join(lines), given)
    return given
