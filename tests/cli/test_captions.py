"""`extract --captions`: rows of texts in step with those of images, by every kind of input; what has none."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli.shard_writer import Writer
from tests.support.assertions import assert_figures, assert_row_relative
from tests.support.images import command, write

pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
CAPTIONS = [
    "a red flag",
    "a flag of two colours",
    "eine Flagge, grün",
    "a star",
    "a star\nin a ring",
    "a moon",
]
WORDS = ["--captions", "--quiet", "--workers", 0, "--shard-size", 2, "--batch-size", 2]


def extract(*words: object) -> int:
    return command("extract", *words)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, list]]:
    """All shards by NumPy and pyarrow alone: images, texts, metadata, of one length each."""
    count = len(list((folder / "metadata").iterdir()))
    images = [np.load(folder / "img_emb" / f"img_emb_{i}.npy") for i in range(count)]
    texts = [np.load(folder / "text_emb" / f"text_emb_{i}.npy") for i in range(count)]
    tables = [pq.read_table(folder / "metadata" / f"metadata_{i}.parquet").to_pydict() for i in range(count)]
    for image, text, table in zip(images, texts, tables, strict=True):
        assert {len(image), len(text)} == {len(column) for column in table.values()}
    joined = {name: [value for t in tables for value in t[name]] for name in tables[0]}
    return np.concatenate(images), np.concatenate(texts), joined


def oracle(captions: list[str]) -> torch.Tensor:
    """The model's own pass, a text at a time."""
    model, _, tokenizer = sb.load_picto_clip()
    with torch.inference_mode():
        return torch.cat([model.encode_text(tokenizer([text])) for text in captions]).double()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawings in two classes, each with a caption beside it."""
    home = tmp_path_factory.mktemp("captions")
    for path, caption in zip(write(home / "images", 2, 3), CAPTIONS, strict=True):
        path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The shards of the folder, float32, from one run."""
    assert extract(home / "images", home / "whole", *WORDS, "--dtype", "float32") == 0
    return home / "whole"


def paths(home: Path) -> list[Path]:
    return sorted((home / "images").rglob("*.png"))


def test_rows_are_those_of_the_text_tower(home: Path, whole: Path):
    images, texts, table = read(whole)
    assert table["caption"] == CAPTIONS and table["image_path"] == [str(p) for p in paths(home)]
    assert table["label"] == ["class_00"] * 3 + ["class_01"] * 3
    assert texts.dtype == np.float32 and images.shape == texts.shape == (6, 192)
    assert_row_relative(torch.from_numpy(texts), oracle(CAPTIONS), "features")
    assert extract(home / "images", home / "plain", *WORDS[1:], "--dtype", "float32") == 0
    plain = [np.load(home / "plain" / "img_emb" / f"img_emb_{i}.npy") for i in range(3)]
    np.testing.assert_array_equal(images, np.concatenate(plain))
    assert not (home / "plain" / "text_emb").exists()


@pytest.mark.slow
def test_list_csv_and_tar_say_the_same(home: Path, whole: Path):
    names = [str(p.relative_to(home)) for p in paths(home)]
    (home / "list.txt").write_text("\n".join(names))
    lines = [f'{name},"{caption}"' for name, caption in zip(names, CAPTIONS, strict=True)]
    (home / "table.csv").write_text("\n".join(["path,TEXT", *lines]) + "\n", encoding="utf-8")
    with tarfile.open(home / "all.tar", "w") as tar:
        for i, (path, caption) in enumerate(zip(paths(home), CAPTIONS, strict=True)):
            for ext, data in (("png", path.read_bytes()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{i}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    want = read(whole)
    for name, more in (("list.txt", ()), ("table.csv", ("--caption-column", "TEXT")), ("all.tar", ())):
        out = home / f"out-{name}"
        assert extract(home / name, out, *WORDS, "--dtype", "float32", *more) == 0
        images, texts, table = read(out)
        np.testing.assert_array_equal(texts, want[1])
        np.testing.assert_array_equal(images, want[0])
        assert table["caption"] == CAPTIONS
    assert read(home / "out-table.csv")[2]["TEXT"] == CAPTIONS


@pytest.mark.parametrize("layout", ["parquet", pytest.param("lance", marks=pytest.mark.slow)])
def test_a_table_holds_the_rows_of_the_shards(home: Path, whole: Path, tmp_path: Path, layout: str):
    """The texts are a column, a missing caption is counted as in shards, and the run goes on."""
    lance = pytest.importorskip("lance") if layout == "lance" else None
    images = tmp_path / "images"
    shutil.copytree(home / "images", images)
    bare = sorted(images.rglob("*.txt"))[0]  # its shard keeps one of two images
    bare.unlink()
    out, words = tmp_path / "out", [*WORDS, "--dtype", "float32"]
    assert extract(images, out, *words, "--format", layout) == 0
    assert extract(images, tmp_path / "shards", *words) == 0
    want_images, want_texts, records = read(tmp_path / "shards")
    place = out / "features.lance" if lance else out / "features"
    table = lance.dataset(place).to_table() if lance else pq.read_table(place)
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy(zero_copy_only=False)), want_images)
    np.testing.assert_array_equal(np.stack(table["text_features"].to_numpy(zero_copy_only=False)), want_texts)
    assert table["caption"].to_pylist() == records["caption"] == CAPTIONS[1:]
    told = [json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "shards")]
    for name in ("inputs", "rows", "corrupt", "without_caption"):
        assert told[0][name] == told[1][name] == {"inputs": 6, "rows": 5}.get(name, 1), name
    assert extract(images, out, *WORDS[1:], "--dtype", "float32", "--format", layout) == 2, "without captions"


@pytest.mark.slow
def test_unit_rows_of_half_precision(home: Path, tmp_path: Path):
    assert extract(home / "images", tmp_path / "unit", *WORDS, "--normalize") == 0
    texts = read(tmp_path / "unit")[1]
    assert texts.dtype == np.float16
    want = torch.nn.functional.normalize(oracle(CAPTIONS), dim=1)
    assert_row_relative(torch.from_numpy(texts), want, "features")


def test_an_image_without_a_caption_is_left_out_and_told(home: Path, tmp_path: Path, capsys):
    shutil.copytree(home / "images", tmp_path / "images")
    found = paths(tmp_path)
    found[1].with_suffix(".txt").unlink()
    found[2].with_suffix(".txt").write_text(" \n")
    found[3].with_suffix(".txt").write_text("long " * 14000)
    found[4].write_bytes(b"no image")
    (found[0].parent / "notes.txt").write_text("of no image")
    assert extract(tmp_path / "images", tmp_path / "out", *WORDS) == 0
    told = capsys.readouterr().out
    assert "2 features of 6 images, 4 corrupt, 2 of them without a caption (listed" in told
    assert "ignored" not in told
    images, texts, table = read(tmp_path / "out")
    assert table["caption"] == [CAPTIONS[0], CAPTIONS[5]] and len(images) == len(texts) == 2
    assert_row_relative(torch.from_numpy(texts), oracle(table["caption"]), "features")
    lines = [line.split("\t") for line in (tmp_path / "out" / "corrupt.tsv").read_text().splitlines()]
    assert [line[0] for line in lines] == [str(p) for p in found[1:5]]
    assert [line[1] for line in lines[:2]] == ["it has no caption"] * 2
    assert lines[2][1] == "its caption has more than 65536 characters" and "Error" in lines[3][1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["rows"], summary["corrupt"], summary["without_caption"]) == (2, 4, 2)


def contents(folder: Path) -> dict[str, bytes]:
    names = ("img_emb", "text_emb", "metadata", "corrupt.tsv")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(q): p.read_bytes() for p in files if (q := p.relative_to(folder)).parts[0] in names}


def test_a_killed_run_goes_on_byte_for_byte(home: Path, whole: Path, tmp_path: Path, monkeypatch):
    write_shard = Writer.write

    def dies(self, index, *given):
        if index == 2:
            raise KeyboardInterrupt
        write_shard(self, index, *given)

    words = [home / "images", tmp_path / "out", *WORDS, "--dtype", "float32"]
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", dies)
        assert extract(*words) == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    assert extract(*words) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["resumed_at"] == 4
    assert contents(tmp_path / "out") == contents(whole)


@pytest.fixture
def finished(home: Path, whole: Path) -> Path:
    """The finished folder, to be changed."""
    shutil.rmtree(home / "changed", ignore_errors=True)
    shutil.copytree(whole, home / "changed")
    return home / "changed"


def test_what_changed_is_refused(home: Path, finished: Path, capsys):
    words = [home / "images", finished, *WORDS, "--dtype", "float32"]
    caption = paths(home)[3].with_suffix(".txt")
    try:
        caption.write_text("a planet")
        assert extract(*words) == 2
        assert re.search(
            r"inputs_digest; the first input that differs is .*a planet", capsys.readouterr().err
        )
    finally:
        caption.write_text(f"{CAPTIONS[3]}\n")
    assert extract(*words[:2], *words[3:]) == 2
    assert "with other captions" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_shard_of_texts_is_refused_and_made_again(home: Path, finished: Path, capsys):
    words = [home / "images", finished, *WORDS, "--dtype", "float32"]
    before, path = contents(finished), finished / "text_emb" / "text_emb_1.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert extract(*words) == 2
    assert "text_emb_1.npy must hold what was written, got other bytes; delete it" in capsys.readouterr().err
    path.unlink()
    assert extract(*words) == 0
    assert contents(finished) == before


def test_texts_find_images_in_one_folder(whole: Path, tmp_path: Path):
    """`retrieve` by what the command line says: each caption asks for its own image."""
    words = (whole, "--queries", whole / "text_emb", "--label", "image_path", "--json", tmp_path / "r.json")
    assert command("retrieve", *words) == 0
    found = json.loads((tmp_path / "r.json").read_text())[str(whole)]
    images, texts, _ = read(whole)
    unit = [rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in (texts, images)]
    scores = unit[0] @ unit[1].T
    ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(scores)]
    assert found["queries"] == found["gallery"] == 6
    assert_figures(found["mAP"], sum(1 / rank for rank in ranks) / 6, "metric", dtype=torch.float32)
    assert_figures(found["Recall@1"], sum(rank == 1 for rank in ranks) / 6, "metric", dtype=torch.float32)


@pytest.mark.slow
def test_a_caption_whose_feature_is_not_finite_loses_its_pair(home: Path, tmp_path: Path, monkeypatch):
    from semobridge_ext.cli.models import Encoder

    texts_of = Encoder.texts

    def overflowing(self, texts):
        rows = texts_of(self, texts).clone()
        rows[[text == CAPTIONS[2] for text in texts]] *= 1e9
        return rows

    monkeypatch.setattr(Encoder, "texts", overflowing)
    assert extract(home / "images", tmp_path / "out", *WORDS) == 0
    images, texts, table = read(tmp_path / "out")
    kept = [text for text in CAPTIONS if text != CAPTIONS[2]]
    assert table["caption"] == kept and len(images) == 5
    assert_row_relative(torch.from_numpy(texts), oracle(kept), "features")
    told = "the feature of its caption is not finite in float16"
    assert (tmp_path / "out" / "corrupt.tsv").read_text() == f"{paths(home)[2]}\t{told}\n"


BAD: dict[str, tuple[list[object], str]] = {
    "a column alone": (["images", "--caption-column", "TEXT"], "must stand beside --captions, got TEXT"),
    "hidden rows": (["images", "--captions", "--before-projection"], "must stand with projected features"),
    "no such column": (["bare.csv", "--captions"], r"got no column 'caption' in .*bare.csv \(note\); name"),
    "two columns": (["two.csv", "--captions", "--caption-column", "note"], "must be 'caption' where INPUT"),
    "a folder's column": (["images", "--captions", "--caption-column", "alt"], "got no column 'alt'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors(home: Path, tmp_path: Path, capsys, case: str):
    (home / "bare.csv").write_text("path,note\nimages/class_00/000.png,x\n")
    (home / "two.csv").write_text("path,note,caption\nimages/class_00/000.png,x,y\n")
    (given, *words), told = BAD[case]
    assert extract(home / str(given), tmp_path / "out", "--quiet", "--workers", 0, *words) == 2
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1, error
    assert not (tmp_path / "out" / "settings.json").exists()
