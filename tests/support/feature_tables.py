"""Shards of features made of Arrow tables, without the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def shards(folder: Path, parts: list[Any]) -> Path:
    """Tables with a column of vectors `features` in clip-retrieval's layout, by NumPy and pyarrow alone."""
    import pyarrow.parquet as pq

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for i, part in enumerate(parts):
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", np.stack(part["features"].to_numpy()))
        pq.write_table(part.drop_columns(["features"]), folder / "metadata" / f"metadata_{i}.parquet")
    return folder
