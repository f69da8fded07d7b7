"""Shards and tables whose files are of several widths: both files are named, whichever command reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from tests.support.galleries import write_shards

pa = pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def of_shards(home: Path) -> tuple[Path, Path, Path]:
    folder = write_shards(home / "mixed", torch.eye(8, 4) + 1, 4, {"label": ["a", "b"] * 4})
    first, second = (folder / "img_emb" / f"img_emb_{i}.npy" for i in range(2))
    np.save(second, np.ones((4, 3), np.float32))
    return folder, first, second


def of_files(fixed: bool) -> Callable[[Path], tuple[Path, Path, Path]]:
    def made(home: Path) -> tuple[Path, Path, Path]:
        folder = home / "mixed"
        folder.mkdir()
        for name, width in (("a", 4), ("b", 3)):
            kind = pa.list_(pa.float32(), width) if fixed else pa.list_(pa.float32())
            vectors = pa.array(np.ones((4, width), np.float32).tolist(), kind)
            pq.write_table(pa.table({"features": vectors, "label": list("abab")}), folder / f"{name}.parquet")
        return folder, folder / "a.parquet", folder / "b.parquet"

    return made


@pytest.mark.parametrize(
    "call",
    [
        lambda folder, out: sb.search(folder, torch.ones(1, 4)),
        lambda folder, out: sb.read_shards(folder),
        lambda folder, out: sb.retrieve(folder),
        lambda folder, out: sb.map_shards(folder, out, mapping=sb.LinearMap(torch.eye(4))),
        lambda folder, out: sb.invert_shards(folder, f"{out}.safetensors", model="picto", steps=1),
        lambda folder, out: sb.export_gallery(folder, out, format="fbin"),
    ],
    ids=["search", "read_shards", "retrieve", "map_shards", "invert_shards", "export_gallery"],
)
@pytest.mark.parametrize(
    "make", [of_shards, of_files(True), of_files(False)], ids=["shards", "fixed", "lists"]
)
def test_both_files_and_widths_are_named(
    make: Callable[[Path], tuple[Path, Path, Path]], call: Callable[[Path, Path], Any], tmp_path: Path
) -> None:
    folder, first, second = make(tmp_path)
    told = re.escape(f"must be of one width, got 4 in {first} and 3 in {second};")
    with pytest.raises(ValueError, match=told):
        call(folder, tmp_path / "out")
