"""Drawings as the calls read them, and what they leave behind, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, EACH, SHARD = 4, 3, 5
TIMES = ("seconds", "images_per_second", "rows_per_second")
FEW = {"model": "picto", "shard_size": SHARD, "batch_size": 2}


def files(folder: Path) -> dict[str, Any]:
    """Every file's bytes; of the summary all but its times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    summary = json.loads(found.pop("summary.json"))
    return {**found, "summary.json": {k: v for k, v in summary.items() if k not in TIMES}}


def stored(folder: Path) -> np.ndarray:
    """All rows, by NumPy alone."""
    return np.concatenate([np.load(p) for p in sorted((folder / "img_emb").iterdir())])
