"""What the commands hold does not grow with the inputs, and features are held once."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semobridge_ext.cli import models, sorted_entries
from semobridge_ext.cli.galleries import _joined
from semobridge_ext.cli.open_shard import OpenShard
from semobridge_ext.cli.pairs import keys_finder, read_pairs
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.sources import open_source
from semobridge_ext.diagnostics.resampling import modality_gap
from semobridge_ext.fewshot.held_out import nearest_mean_accuracy
from tests.support import peaks, tars
from tests.support.galleries import write_shards
from tests.support.images import command

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
MIB = 1 << 20


class TinyEncoder:
    """Means of the channels: what is asked is how much the command keeps, not what a model makes."""

    model = torch.nn.Linear(1, 1)

    @staticmethod
    def preprocess(image: Any) -> Tensor:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()

    @staticmethod
    def images(pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))


def write_tar(path: Path, count: int) -> None:
    """`count` pictures of four kinds, every tenth of them damaged."""
    from PIL import Image

    kinds = []
    for i in range(4):
        data = io.BytesIO()
        Image.new("RGB", (4, 4), (60 * i, 10, 200)).save(data, "PNG")
        kinds.append(data.getvalue())
    with open(path, "wb") as file:
        for i in range(count):
            data = kinds[i % 4][:40] if i % 10 == 9 else kinds[i % 4]
            file.write(tars.member(f"{i:07d}.png", data))
        file.write(tars.END)


@pytest.mark.slow
def test_extract_keeps_nothing_of_an_image(tmp_path: Path, monkeypatch) -> None:
    """10 000 inputs and 40 000: the peak grows by less than 2 MiB, Python's blocks by 0.01 an input."""
    write_tar(tmp_path / "tiny.tar", 40_000)
    monkeypatch.setattr(models, "load", lambda *_: TinyEncoder())
    seen: list[tuple[int, int, int]] = []  # inputs, Python's blocks, the peak until then
    plain = OpenShard.flush

    def flush(shard: Any) -> None:
        plain(shard)
        seen.append((1000 * shard.index, sys.getallocatedblocks(), peaks.status_bytes("VmHWM")))

    monkeypatch.setattr(OpenShard, "flush", flush)
    words = ("--quiet", "--workers", 0, "--shard-size", 1000)
    assert command("extract", tmp_path / "tiny.tar", tmp_path / "out", *words) == 0
    at = {inputs: (blocks, peak) for inputs, blocks, peak in seen}
    assert sorted(at) == list(range(1000, 40_001, 1000))
    assert at[40_000][1] - at[10_000][1] < 2 * MIB
    assert at[40_000][0] - at[10_000][0] < 0.01 * 30_000
    assert Folder("test", tmp_path / "out").record_count() == 36_000


@pytest.mark.slow
def test_features_are_held_once(tmp_path: Path) -> None:
    """64 MiB of rows, from float16: loaded whole, without a fifth of them, and joined."""
    rows = torch.randn(65_536, 256).half()
    labels = [None if i % 5 == 0 else f"c{i % 49}" for i in range(len(rows))]
    write_shards(tmp_path / "few", rows[:100], 50, {"label": labels[:100]})
    write_shards(tmp_path / "some", rows, 1024, {"label": labels})
    write_shards(tmp_path / "all", rows, 1024, {"label": [f"c{i % 49}" for i in range(len(rows))]})
    want = torch.nn.functional.normalize(rows.float(), dim=1)
    size = want.numel() * want.element_size()
    read = {"all": torch.ones(len(want), dtype=torch.bool), "some": torch.arange(len(want)) % 5 != 0}
    Folder("test", tmp_path / "few").labelled("label", {})  # the readers' own scratch
    for name, kept in read.items():
        codes: dict[str, int] = {}
        folder = Folder("test", tmp_path / name)
        more, found = peaks.added(partial(folder.labelled, "label", codes))
        assert torch.equal(found[0], want[kept]) and len(found[1]) == int(kept.sum()) and len(codes) == 49
        # The rows, the pages of one mapped file, and a block.
        assert more < 1.8 * size, f"{name}: {more / size:.2f} times the rows"
        del found
    one = [want]
    assert peaks.added(partial(_joined, one))[0] < MIB


def test_shards_of_two_widths_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "mixed", torch.ones(8, 4), 4, {"label": ["a"] * 8})
    np.save(folder / "img_emb" / "img_emb_1.npy", np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"SHARDS must be of one width, got 4 in .*_0.npy and 3 in .*_1.npy"):
        Folder("test", folder).labelled("label", {})


def test_parts_are_joined_in_order() -> None:
    parts = [torch.full((n, 2), float(n)) for n in (2, 3, 1)]
    assert torch.equal(_joined(list(parts)), torch.cat(parts))


@pytest.mark.slow
def test_reports_make_nothing_of_the_features_size() -> None:
    """195 MiB of rows and 100 classes: the means, the neighbours and the gap take blocks."""
    x = torch.nn.functional.normalize(torch.randn(200_000, 256), dim=1)
    y = torch.arange(200_000) % 100
    nearest_mean_accuracy(x[:5000], y[:5000], [1, 2], 1)
    for call in (partial(nearest_mean_accuracy, x, y, [1, 4], 1), partial(modality_gap, x, x[:100])):
        assert max(peaks.added(call)[0] for _ in range(3)) < 60 * MIB


def test_large_folders_are_sorted_on_disk(tmp_path: Path, monkeypatch) -> None:
    """Runs of 5 names, undecodable ones among them: the listing is that of one sort."""
    monkeypatch.setattr(sorted_entries, "RUN", 5)
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{i * 37 % 101:03d} é.png".encode() for i in range(23)] + [
        b"\xff.png",
        b"\xee\x80\x80.png",
        b"a\n.png",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    (folder / "050 folder").mkdir()
    for i in range(3):
        (folder / "050 folder" / f"{i}.png").write_bytes(b"")
    found = list(sorted_entries.sorted_entries(folder))
    assert isinstance(found[0], sorted_entries.Entry) and [e.name for e in found] == sorted(
        os.listdir(folder)
    )
    assert [e.name for e in found if e.is_dir()] == ["050 folder"]
    listed = open_source("test", str(folder), tmp_path / "few.jsonl", label="parent", column=None)
    monkeypatch.setattr(sorted_entries, "RUN", 1000)
    plain = open_source("test", str(folder), tmp_path / "one.jsonl", label="parent", column=None)
    assert listed.total == plain.total == len(names) + 3
    assert (tmp_path / "few.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert listed.facts == plain.facts


def test_a_listing_keeps_a_run_of_names(tmp_path: Path, monkeypatch) -> None:
    """8000 files in one folder, runs of 500: less than 50 bytes a file at the peak."""
    monkeypatch.setattr(sorted_entries, "RUN", 500)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8000):
        os.mknod(folder / f"a picture with a name of some length {i}.png")
    tracemalloc.start()
    try:
        last = ""
        for entry in sorted_entries.sorted_entries(folder):
            assert last < entry.name
            last = entry.name
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert last.endswith(" 999.png") and peak < 50 * 8000  # a list of entries takes 300 for each


def test_pairs_by_keys_of_one_and_of_many_rows(tmp_path: Path) -> None:
    find = keys_finder(["a", "b", None, "a", "c", "a"])
    assert [find(word) for word in ("a", "b", "c", "x", "None")] == [[0, 3, 5], [1], [4], [], []]
    (tmp_path / "p.csv").write_text("query,gallery\n1,b\n0,a\n")
    pairs = read_pairs(tmp_path / "p.csv", lambda word: [int(word)], find, ("a row", "a key"))
    assert pairs.tolist() == [[1, 1], [0, 0], [0, 3], [0, 5]]


def test_a_pair_takes_no_object(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("query,gallery\n" + "7,9\n" * 20_000)
    rows = {str(i): [i] for i in range(10)}
    tracemalloc.start()
    try:
        found = read_pairs(tmp_path / "p.csv", rows.__getitem__, rows.__getitem__, ("a row", "a row"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 20_000 and peak < 40 * 20_000  # 16 bytes a pair and room to grow; a tuple has 64
