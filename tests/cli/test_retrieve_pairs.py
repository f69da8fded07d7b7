"""retrieve with pairs and mixed galleries, on shards of a few rows of both modalities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.assertions import assert_figures
from tests.support.images import command

parquet = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")

IMAGES, TEXTS, QUERIES = 8, 12, 5
RNG = np.random.default_rng(0)
ROWS = {
    "images": RNG.normal(size=(IMAGES, 6)), "texts": RNG.normal(size=(TEXTS, 6)) + 1.5,
    "asked": RNG.normal(size=(QUERIES, 6)) + 1.5,
}  # fmt: skip
# Query 0 is answered by an image and two texts, 1 by a text, 2 by an image, 4 by an image; 3 by nothing.
IMAGE_PAIRS, TEXT_PAIRS = [(0, 3), (2, 7), (4, 0)], [(0, 1), (0, 11), (1, 5)]


def shards(folder: Path, name: str, part: str, size: int = 5, **columns: list[Any]) -> Path:
    """A folder as clip-retrieval writes it, some rows a shard."""
    import pyarrow as pa

    rows = ROWS[name].astype(np.float32)
    for home in (part, "metadata"):
        (folder / name / home).mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(range(0, len(rows), size)):
        np.save(folder / name / part / f"{part}_{i}.npy", rows[start : start + size])
        table = pa.table({k: v[start : start + size] for k, v in columns.items()})
        parquet.write_table(table, folder / name / "metadata" / f"metadata_{i}.parquet")
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    labels = ["a", "b", "c", "d"]
    shards(
        folder, "images", "img_emb", key=[f"i{n}" for n in range(IMAGES)], label=[*labels, *labels[:3], "a"]
    )
    shards(folder, "texts", "text_emb", key=[f"t{n}" for n in range(TEXTS)], label=(labels * 3))
    shards(folder, "asked", "text_emb", key=[f"q{n}" for n in range(QUERIES)], label=[*labels, "e"])
    return folder


def write(path: Path, pairs: list[tuple[Any, Any]], header: str = "query,gallery") -> Path:
    path.write_text("\n".join([header, *(f"{q},{g}" for q, g in pairs)]) + "\n", encoding="utf-8")
    return path


def wanted(
    gallery: np.ndarray, pairs: list[tuple[int, int]], asked: np.ndarray = ROWS["asked"]
) -> dict[str, Any]:
    """Means of AP and Recall@3 by sorting, and the queries that have an answer."""

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32).astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    order = np.argsort(-(unit(asked) @ unit(gallery).T), axis=1)
    ap, recall = [], []
    for q, ranked in enumerate(order):
        if asked is gallery:
            ranked = ranked[ranked != q]
        hits = np.array([(q, g) in pairs for g in ranked], dtype=float)
        if hits.any():
            ap.append((hits * np.cumsum(hits) / np.arange(1, len(hits) + 1)).sum() / hits.sum())
            recall.append(float(hits[:3].any()))
    return {"mAP": np.mean(ap), "Recall@3": np.mean(recall), "queries": len(ap), "order": order}


def retrieve(tmp_path: Path, *words: Any) -> dict[str, Any]:
    assert command("retrieve", *words, "--recall-at", 1, 3, "--json", tmp_path / "r.json") == 0
    return json.loads((tmp_path / "r.json").read_text())


def assert_found(found: dict[str, Any], want: dict[str, Any]) -> None:
    names = ("mAP", "Recall@3")
    assert_figures([found[n] for n in names], [want[n] for n in names], "metric", dtype=torch.float32)
    assert found["queries"] == want["queries"]


@pytest.mark.parametrize("by", ["row", "key"])
def test_texts_find_images(home: Path, tmp_path: Path, capsys, by: str):
    named = IMAGE_PAIRS if by == "row" else [(f"q{q}", f"i{g}") for q, g in IMAGE_PAIRS]
    pairs = write(tmp_path / "pairs.csv", [*named, named[0]])
    words = ["--queries", home / "asked", "--pairs", pairs, *(("--key", "key") if by == "key" else ())]
    found = retrieve(tmp_path, home / "images", *words)[str(home / "images")]
    assert_found(found, wanted(ROWS["images"], IMAGE_PAIRS))
    assert found["pairs"] == 3 and found["without_relevant"] == 2 and found["gallery"] == IMAGES
    told = capsys.readouterr().out
    assert "per cent; 3 queries, 8 items, 3 pairs, 2 without a relevant item left out" in told


def test_images_find_texts_and_columns_may_stand_anyhow(home: Path, tmp_path: Path):
    lines = [f" x ,{g},{q}" for q, g in [(3, 1), (7, 11), (7, 4)]]
    text = "note, gallery ,query\r\n" + "\r\n\r\n".join(lines)
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8-sig")
    words = ["--queries", home / "images", "--pairs", tmp_path / "pairs.csv"]
    found = retrieve(tmp_path, home / "texts", *words)[str(home / "texts")]
    assert_found(found, wanted(ROWS["texts"], [(3, 1), (7, 11), (7, 4)], ROWS["images"]))


def test_a_mixed_gallery_and_its_shares(home: Path, tmp_path: Path, capsys):
    pairs = [*IMAGE_PAIRS, *((q, IMAGES + g) for q, g in TEXT_PAIRS)]
    mixed = np.concatenate([ROWS["images"], ROWS["texts"]])
    words = [home / "images", home / "texts", "--together", "--queries", home / "asked"]
    name = f"{home / 'images'} + {home / 'texts'}"
    found = retrieve(tmp_path, *words, "--pairs", write(tmp_path / "p.csv", pairs))[name]
    want = wanted(mixed, pairs)
    assert_found(found, want)
    assert found["gallery"] == 20 and found["pairs"] == 6
    first = (want["order"][:, :3] < IMAGES).mean()
    got = found["shares"]
    assert list(got) == ["image", "text"] and list(got["image"]) == [
        "gallery",
        "relevant",
        "first 1",
        "first 3",
    ]
    assert_figures(
        [got["image"][n] for n in ("gallery", "relevant", "first 3")], [0.4, 0.5, first], "multilabel"
    )
    assert_figures([sum(got[kind][n] for kind in got) for n in got["image"]], [1.0] * 4, "multilabel")
    told = capsys.readouterr().out
    assert "share" in told and f"{100 * first:.2f}" in told
    keyed = [*((f"q{q}", f"i{g}") for q, g in IMAGE_PAIRS), *((f"q{q}", f"t{g}") for q, g in TEXT_PAIRS)]
    again = retrieve(tmp_path, *words, "--pairs", write(tmp_path / "k.csv", keyed), "--key", "key")[name]
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_labels_serve_a_mixed_gallery_too(home: Path, tmp_path: Path):
    """Every item is a query; the relevant ones of both kinds are those of its label."""
    words = [home / "images", home / "texts", "--together"]
    (found,) = retrieve(tmp_path, *words).values()
    labels = [0, 1, 2, 3, 0, 1, 2, 0] + [n % 4 for n in range(TEXTS)]
    pairs = [(q, g) for q in range(20) for g in range(20) if labels[q] == labels[g]]
    mixed = np.concatenate([ROWS["images"], ROWS["texts"]])
    assert_found(found, wanted(mixed, pairs, mixed))
    # Labels have 6, 5, 5 and 4 items, of which 3, 2, 2 and 1 are images; nobody asks for itself.
    relevant = 3 * 5 + 2 * 4 + 2 * 4 + 1 * 3, 3 * (5 + 4 + 4 + 3)
    assert_figures(found["shares"]["image"]["relevant"], relevant[0] / sum(relevant), "multilabel")
    same = write(tmp_path / "p.csv", pairs)  # itself among them, which counts for nothing
    (again,) = retrieve(tmp_path, *words, "--pairs", same).values()
    for figure in ("mAP", "mAP@R", "R-Precision", "Recall@1", "shares", "queries"):
        assert again[figure] == found[figure], figure


def test_a_key_of_several_rows_stands_for_all(home: Path, tmp_path: Path):
    pairs = write(tmp_path / "p.csv", [("a", "b")])
    words = [home / "images", "--queries", home / "asked", "--pairs", pairs, "--key", "label"]
    found = retrieve(tmp_path, *words)[str(home / "images")]
    assert found["pairs"] == 2 and found["queries"] == 1
    assert_found(found, wanted(ROWS["images"], [(0, 1), (0, 5)]))


def test_a_part_of_a_folder_is_named(home: Path, tmp_path: Path):
    """One folder with both kinds, as clip-retrieval makes it."""
    import shutil

    both = tmp_path / "both"
    shutil.copytree(home / "images", both)
    (both / "text_emb").mkdir()
    for i, start in enumerate((0, 5)):
        rows = ROWS["texts"][start : min(start + 5, IMAGES)].astype(np.float32)
        np.save(both / "text_emb" / f"text_emb_{i}.npy", rows)
    pairs = write(tmp_path / "p.csv", [(n, n) for n in range(IMAGES)])
    found = retrieve(tmp_path, both, "--queries", both / "text_emb", "--pairs", pairs)[str(both)]
    assert found["queries"] == IMAGES
    other = retrieve(tmp_path, both / "text_emb", "--queries", both / "img_emb", "--pairs", pairs)
    assert other[str(both / "text_emb")]["mAP"] != found["mAP"]


LINES: dict[str, tuple[str, str]] = {
    "header": ("image,text\n0,1\n", "line 1, must be a header with query and gallery, once each, got image"),
    "twice": ("query,gallery,query\n0,1,2\n", "line 1, must be a header with query and gallery, once each"),
    "empty": ("", "line 1, must be a header with query and gallery, once each, got an empty line"),
    "no pair": ("query,gallery\n", "line 2, must be a pair, got the end of the file"),
    "fields": ("query,gallery\n0,1\n0\n", "line 3, must have 2 fields, got 1"),
    "word": ("query,gallery\n0,1\n\nx,1\n", "line 4, must have a row from 0 to 4 as query, got 'x'"),
    "range": ("query,gallery\n0,8\n", "line 2, must have a row from 0 to 7 as gallery, got '8'"),
    "negative": ("query,gallery\n0,-1\n", "line 2, must have a row from 0 to 7 as gallery, got '-1'"),
    "huge": (f"query,gallery\n0,{'9' * 30}\n", "line 2, must have a row from 0 to 7 as gallery, got '9999"),
    "digit": ("query,gallery\n٣,0\n", "line 2, must have a row from 0 to 4 as query, got '٣'"),
    "quotes": ('query,gallery\n0,"1\n', "line 2, must be CSV, got unexpected end of data"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_a_wrong_line_is_named(case: str, home: Path, tmp_path: Path, capsys):
    text, told = LINES[case]
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert (
        command("retrieve", home / "images", "--queries", home / "asked", "--pairs", tmp_path / "p.csv") == 2
    )
    said = capsys.readouterr().err
    assert f"{tmp_path / 'p.csv'}, {told}" in said and said.rstrip().endswith("; mend the file")


def test_what_else_is_refused(home: Path, tmp_path: Path, capsys):
    pairs = write(tmp_path / "p.csv", [("q0", "i9")])
    words = ["retrieve", home / "images", "--queries", home / "asked"]
    ROWS["narrow"] = RNG.normal(size=(3, 4))
    narrow = shards(tmp_path, "narrow", "text_emb", key=["a", "b", "c"])
    short = shards(tmp_path, "texts", "text_emb", key=["a"] * 12)
    np.save(short / "text_emb" / "text_emb_0.npy", np.zeros((4, 6), dtype=np.float32))
    (tmp_path / "latin.csv").write_bytes("query,gallery\n0,1\né,1\n".encode("latin-1"))
    for given, told in (
        ((*words, "--pairs", pairs, "--key", "key"), "have a value of the column 'key' as gallery, got 'i9'"),
        ((*words, "--pairs", pairs, "--key", "name"), "--key must be a column of the metadata, got 'name'"),
        ((*words, "--key", "key"), "--key must stand beside --pairs, got key alone; pass --pairs FILE"),
        ((*words, "--pairs", tmp_path / "none.csv"), "--pairs must be an existing file, got"),
        ((*words, "--pairs", tmp_path / "latin.csv"), "must be UTF-8 text, got"),
        (
            ("retrieve", home / "texts", narrow, "--together", "--pairs", pairs),
            "must be of one width to be ranked together, got 6",
        ),
        ((words[0], short, "--pairs", pairs), "must have one record per row, got 11 rows and 12 records"),
        ((words[0], tmp_path, "--pairs", pairs), "SHARDS must be a folder with img_emb/img_emb_0.npy"),
        ((words[0], home / "images" / "text_emb", "--pairs", pairs), "with text_emb/text_emb_0.npy"),
    ):  # fmt: skip
        assert command(*given) == 2, told
        assert told in capsys.readouterr().err, told
