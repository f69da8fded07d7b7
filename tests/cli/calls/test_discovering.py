"""discover_shards: the command's files to the byte."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import semobridge_ext as sb
from tests.support.images import command

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def test_discover_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    names = ["star", "flag", "house", "sun", "tree", "moon"]
    (tmp_path / "words.txt").write_text("\n".join(names))
    words = ["--classes", 4, "--epochs", 2, "--old", "class_00", "class_01", "--quiet"]
    words += ["--concepts", tmp_path / "words.txt"]
    assert command("discover", home / "feats", "--out", tmp_path / "c", *words) == 0
    capsys.readouterr()
    given = {"classes": 4, "epochs": 2, "concepts": names}
    found = sb.discover_shards(home / "feats", tmp_path / "p", old=["class_00", "class_01"], **given)
    assert capsys.readouterr() == ("", "")
    paths = {str(p.relative_to(tmp_path / "c")) for p in (tmp_path / "c").rglob("*") if p.is_file()}
    assert paths == {str(p.relative_to(tmp_path / "p")) for p in (tmp_path / "p").rglob("*") if p.is_file()}
    assert len(paths) > 4
    for name in paths:
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    with open(tmp_path / "c" / "assignments.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for row, record in zip(table, found.assignments, strict=True):
        told = f"{record['probability']:.4f}"
        assert row == {**record, "cluster": str(record["cluster"]), "label": record["label"] or "",
                       "probability": told}  # fmt: skip
    assert sum(len(one.images) for one in found.classes) == len(table) == 11
    assert all(one.old is (one.cluster < 2) for one in found.classes) and found.num_classes == 4
    assert set(found.written) <= paths and found.estimate is None and found.accuracy is None
    # The same labels by path, as a table of the caller.
    labels = {row["image"]: row["label"] for row in table if row["label"]}
    again = sb.discover_shards(home / "feats", tmp_path / "labels", labels=labels, **given)
    assert again.assignments == found.assignments


@pytest.mark.slow
def test_discover_shards_extracts_images(home: Path, tmp_path: Path, capsys, caplog) -> None:
    given = {
        "classes": "auto",
        "max_classes": 4,
        "epochs": 1,
        "model": "picto",
        "old": ["class_00", "class_01"],
    }
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.discover_shards(home / "images", tmp_path / "out", html=True, **given)
    assert capsys.readouterr() == ("", "")
    assert any(
        line.startswith(f"{tmp_path / 'out' / 'features'}: 11 features of 12") for line in caplog.messages
    )
    assert found.num_classes == found.estimate.num_classes
    assert sb.read_shards(tmp_path / "out" / "features").features.shape == (11, 192)
