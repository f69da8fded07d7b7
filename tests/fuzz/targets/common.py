"""A small problem, rows, and how a file is saved or left half way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.problems import make

P = make(5, 2, 12, width=7, text_width=6)
NAMES = ["a", "b", "c", "d", "e"]
LABELS = [NAMES[i] for i in P.labels.tolist()]


def rows(width: int, count: int = 3) -> Tensor:
    return torch.linspace(-1, 1.5, count * width).reshape(count, width)


def saved(made: Callable[[], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "file.safetensors"
        made().save(path)
        return path

    return write


def half_way(checkpoint: Any, run: Callable[[], Any], path: Path) -> Path:
    """What the first write of a run left at a path."""
    kept, write = [], checkpoint.write

    def keeps(self: Any, *state: Any) -> None:
        write(self, *state)
        kept.append(path.read_bytes())

    checkpoint.write = keeps
    try:
        run()
    finally:
        checkpoint.write = write
    path.write_bytes(kept[0])
    return path
