"""What `map` fits mappings on: rows of shards, streamed or drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.cli.shards import Folder

ROWS = 1 << 16  # of two models, for one matrix of D×M numbers: 64 a column at width 1024


def _projected(folder: Folder) -> None:
    folder.shards()
    folder.check_finished()


def unit_mean(folder: Folder) -> Tensor:  # [D] float64
    """Mean of all unit rows, one block in memory."""
    _projected(folder)
    total, rows = None, 0
    for block in folder.blocks():
        if not bool(torch.isfinite(block).all()):
            raise ValueError(
                f"map: {folder.path} must hold finite rows to be fitted on, got NaN or inf; extract again, "
                "or pass --fit another folder"
            )
        part = normalize(block.double(), dim=1).sum(dim=0)
        total, rows = part if total is None else total + part, rows + len(block)
    if total is None:
        raise ValueError(f"map: {folder.path} must hold rows to be fitted on, got none; extract again")
    return total / rows


def _drawn(folder: Folder, step: int) -> Tensor:  # [n, D] float32 unit rows
    """Every `step`-th row."""
    parts, start = [], 0
    for block in folder.blocks():
        parts.append(normalize(block[-start % step :: step], dim=1))
        start += len(block)
    return torch.cat(parts) if parts else torch.empty(0, 0)


def matched(folder: Folder, onto: Folder) -> tuple[Tensor, Tensor]:  # [n, D], [n, M] float32 unit rows
    """Rows of the same images under two models: all of them up to `ROWS`, else evenly spaced ones."""
    for one in (folder, onto):
        _projected(one)
    paths, others = folder.column("image_path"), onto.column("image_path")
    if paths != others:
        first = next(
            (i for i, pair in enumerate(zip(paths, others, strict=False)) if pair[0] != pair[1]),
            min(len(paths), len(others)),
        )
        got = [names[first] if first < len(names) else "no row" for names in (paths, others)]
        raise ValueError(
            f"map: --onto must hold the same images in the same order as {folder.path}, got row {first} of "
            f"{got[0]} there and of {got[1]} in {onto.path}; extract both from the same input, or name the "
            "matching folder with --fit"
        )
    step = max(1, -(-len(paths) // ROWS))
    return _drawn(folder, step), _drawn(onto, step)
