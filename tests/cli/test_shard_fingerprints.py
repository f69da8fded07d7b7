"""Shards of the right size and the wrong content: swapped, or from another folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli.fingerprints import fingerprint
from tests.support.images import command, write

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 20, 20 and 8 rows, and their maps as shards and tables."""
    home = tmp_path_factory.mktemp("fingerprints")
    write(home / "images", 8, 6)
    words = ["--quiet", "--workers", 0, "--shard-size", 20]
    assert command("extract", home / "images", home / "shards", *words) == 0
    for layout in ("parquet", "lance"):
        if layout == "lance":
            pytest.importorskip("lance", reason="needed: pip install pylance")
        words = ["--mapping", "bridge", "--quiet", "--format", layout]
        assert command("map", home / "shards", home / layout, *words) == 0
    return home


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "shards", tmp_path / "folder")
    return tmp_path / "folder"


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


def test_metadata_may_be_added_to(folder: Path) -> None:
    """Columns of the user's own, which become the records of a search."""
    import pyarrow
    import pyarrow.parquet as parquet

    for file in (folder / "metadata").iterdir():
        table = parquet.read_table(file)
        parquet.write_table(table.append_column("mine", pyarrow.array(["x"] * len(table))), file)
    assert sb.read_shards(folder).columns["mine"] == ["x"] * 48


def test_swapped_shards_are_refused(folder: Path, tmp_path: Path, capsys) -> None:
    assert len(sb.read_shards(folder)[0]) == 48
    name = "img_emb_0.npy"
    swap(folder / "img_emb" / name, folder / "img_emb" / "img_emb_1.npy")
    told = rf"{name} must hold what was written, got other bytes; .*delete shards.jsonl"
    with pytest.raises(ValueError, match=told):
        sb.read_shards(folder)
    with pytest.raises(ValueError, match=told):
        sb.retrieve(folder)
    for words in (
        ["search", folder, "--text", "a star"],
        ["map", folder, tmp_path / "out", "--mapping", "bridge"],
        ["invert", folder, tmp_path / "out.safetensors", "--steps", 1],
    ):
        capsys.readouterr()
        assert command(*words) == 2, words
        assert f"{name} must hold what was written" in capsys.readouterr().err, words
    (folder / "shards.jsonl").unlink()  # the remedy of who changed the folder himself
    assert len(sb.read_shards(folder)[0]) == 48


def test_the_shard_of_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """Rows of the same images, number and width by another mapping."""
    assert command("map", folder, tmp_path / "bridged", "--mapping", "bridge", "--quiet") == 0
    assert command("map", folder, tmp_path / "centred", "--mapping", "centering", "--quiet") == 0
    mine, other = (tmp_path / name / "img_emb" / "img_emb_2.npy" for name in ("bridged", "centred"))
    assert mine.stat().st_size == other.stat().st_size
    mine.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"img_emb_2.npy must hold what was written"):
        sb.read_shards(tmp_path / "bridged")


@pytest.mark.parametrize("layout", ["parquet", "lance"])
def test_swapped_parts_of_a_table_are_refused(home: Path, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    shutil.copytree(home / layout, folder)
    assert len(sb.read_shards(folder)[0]) == 48
    line = json.loads((folder / "shards.jsonl").read_text().splitlines()[0])
    if layout == "parquet":
        first, second = sorted((folder / "features").iterdir())[:2]
    else:  # two fragments of 20 rows, by the names that their lines give
        names = [json.loads(text)[1]["files"] for text in (folder / "shards.jsonl").read_text().splitlines()]
        first, second = (folder / "features.lance" / "data" / next(iter(found)) for found in names[:2])
    assert isinstance(line[-1], dict)
    swap(first, second)
    with pytest.raises(ValueError, match=rf"{first.name} must hold what was written"):
        sb.read_shards(folder)


@pytest.mark.parametrize("layout", ["shards", "parquet", "lance"])
def test_folders_without_fingerprints_are_read_and_gone_on_with(
    home: Path, tmp_path: Path, layout: str, capsys
) -> None:
    """Lines as they were before: the digests alone."""
    source = tmp_path / "source"
    shutil.copytree(home / "shards", source)
    lines = [json.loads(text) for text in (source / "shards.jsonl").read_text().splitlines()]
    old = "".join(json.dumps([part for part in line if not isinstance(part, dict)]) + "\n" for line in lines)
    (source / "shards.jsonl").write_text(old)
    words = ["map", source, tmp_path / "out", "--mapping", "bridge", "--quiet", "--format", layout]
    assert command(*words) == 0
    seals = tmp_path / "out" / "shards.jsonl"
    lines = [json.loads(text) for text in seals.read_text().splitlines()]
    assert all(isinstance(line.pop(), dict) for line in lines)
    seals.write_text("".join(json.dumps(line) + "\n" for line in lines))
    want = sb.read_shards(tmp_path / "out")[0]
    (tmp_path / "out" / "summary.json").unlink()
    capsys.readouterr()
    assert command(*words) == 0 and "3 shards are done" in capsys.readouterr().err
    assert torch.equal(sb.read_shards(tmp_path / "out")[0], want)


def test_a_shard_that_is_made_again_has_the_later_fingerprint(
    home: Path, folder: Path, tmp_path: Path
) -> None:
    words = ["map", folder, tmp_path / "out", "--mapping", "bridge", "--quiet"]
    assert command(*words) == 0
    seals = tmp_path / "out" / "shards.jsonl"
    lines = [json.loads(text) for text in seals.read_text().splitlines()]
    lines[2][1], lines[2][-1] = "0" * 64, dict.fromkeys(lines[2][-1], "0")  # as if of other bytes
    seals.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out" / "img_emb" / "img_emb_2.npy").unlink()
    (tmp_path / "out" / "summary.json").unlink()
    assert command(*words) == 0
    assert len(sb.read_shards(tmp_path / "out")[0]) == 48


def test_a_fingerprint_sees_both_ends_and_the_middle(tmp_path: Path) -> None:
    path, size = tmp_path / "rows", 1 << 20
    path.write_bytes(bytes(size))
    found = {fingerprint(path)}
    for at in (0, 4000, size // 2, size - 4000, size - 1):
        data = bytearray(size)
        data[at] = 1
        path.write_bytes(data)
        found.add(fingerprint(path))
    path.write_bytes(bytes(size + 1))
    found.add(fingerprint(path))
    assert len(found) == 7
    path.write_bytes(b"")
    assert fingerprint(path) == fingerprint(path)
