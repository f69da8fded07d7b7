"""Tables of other programs in the commands that take shards: the results of the same rows in shards."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli import discovery_problem, fewshot_problems, parquet_rows, serve_session, tables
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.ray import jobs
from tests.support.assertions import assert_close
from tests.support.feature_tables import shards
from tests.support.images import command, write

pa = pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
KINDS = ["parquet", "lance"]
ONE_QUICK = ["parquet", pytest.param("lance", marks=pytest.mark.slow)]
CLASSES, EACH = 3, 4


@pytest.fixture(scope="module")
def feats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("feats")
    write(home / "images", CLASSES, EACH)
    words = ["--quiet", "--workers", 0, "--shard-size", 5, "--dtype", "float32"]
    assert command("extract", home / "images", home / "feats", *words) == 0
    return home / "feats"


@pytest.fixture(scope="module")
def rows(feats: Path) -> Any:
    """All of the shards as one Arrow table, by NumPy and pyarrow alone."""
    parts = [np.load(feats / "img_emb" / f"img_emb_{i}.npy") for i in range(3)]
    found = pa.concat_tables(pq.read_table(feats / "metadata" / f"metadata_{i}.parquet") for i in range(3))
    vectors = pa.array(list(np.concatenate(parts)), pa.list_(pa.float32(), 192))
    return found.replace_schema_metadata(None).append_column("embedding", vectors)


def table(kind: str, place: Path, rows: Any) -> Path:
    path = place / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path, row_group_size=5)
    else:
        pytest.importorskip("lance", reason="needed: pip install pylance").write_dataset(rows, str(path))
    return path


# -- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_a_long_table(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups, batches and shards that end at other rows; forward, backward and by column."""
    monkeypatch.setattr(tables, "ROWS", 6)
    monkeypatch.setattr(parquet_rows, "_BATCH", 4)
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    vectors = pa.array(list(values), pa.list_(pa.float32(), 3))
    path = table(
        kind, tmp_path, pa.table({"id": range(20), "vector": vectors, "name": list("abcdefghijklmnopqrst")})
    )
    folder = tables.open_features("map", path)
    assert folder.shards() == [0, 1, 2, 3] and folder.record_count() == 20
    assert [folder.shape(i) for i in range(4)] == [(6, 3)] * 3 + [(2, 3)]
    for order in ([0, 1, 2, 3], [3, 1, 2, 0], [2, 2, 3, 1]):
        for i in order:
            part = slice(6 * i, 6 * i + 6)
            assert np.array_equal(folder.features(i).numpy(), values[part])
            assert folder.table(i).to_pydict() == {
                "id": list(range(20))[part], "name": list("abcdefghijklmnopqrst")[part]
            }  # fmt: skip
    assert folder.column("id") == list(range(20))
    assert np.array_equal(torch.cat(list(folder.blocks())).numpy(), values)
    assert folder.records(1, [0, 5]) == [{"id": 6, "name": "g"}, {"id": 11, "name": "l"}]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_an_actor(kind: str, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node of a cluster reads by shard, first row and end, in whatever order."""
    monkeypatch.setattr(tables, "ROWS", 5)
    monkeypatch.setattr("semobridge_ext.cli.shards._ROWS", 2)
    path = table(kind, tmp_path, rows)
    folder, values = tables.open_features("map", path), np.stack(rows["embedding"].to_numpy())
    parts = [part for index in folder.shards() for part in folder.parts(index)]
    assert parts == [(0, 0, 2), (0, 2, 4), (0, 4, 5), (1, 0, 2), (1, 2, 4), (1, 4, 5), (2, 0, 2)]
    actor = jobs._Shards("map", path)
    for part in parts[::-2] + parts[1::2]:
        index, first, end = part
        assert np.array_equal(actor.rows(part).numpy(), values[5 * index + first : 5 * index + end])


def test_a_large_file_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row group of 20 000 rows; what Arrow holds stays near a shard and a batch of it."""
    monkeypatch.setattr(tables, "ROWS", 500)
    monkeypatch.setattr(parquet_rows, "_BATCH", 500)
    values = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64)
    pq.write_table(pa.table({"features": vectors}), tmp_path / "a.parquet", use_dictionary=False)
    del vectors
    folder, before, held = tables.open_features("map", tmp_path / "a.parquet"), pa.total_allocated_bytes(), []
    for i in folder.shards():
        assert np.array_equal(folder.features(i).numpy(), values[500 * i : 500 * i + 500])
        held.append(pa.total_allocated_bytes() - before)
    assert max(held) < values.nbytes * 0.6, held  # 5.1 MB; a page and the buffer are 1 MB each


def test_rows_without_metadata_have_their_numbers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    pq.write_table(pa.table({"features": list(values)}), tmp_path / "bare.parquet")
    sb.LinearMap(torch.eye(3, dtype=torch.float64)).save(tmp_path / "map.safetensors")
    out = tmp_path / "out"
    assert (
        command("map", tmp_path / "bare.parquet", out, "--mapping", tmp_path / "map.safetensors", "--quiet")
        == 0
    )
    assert pq.read_table(out / "metadata" / "metadata_0.parquet").to_pydict() == {"row": [0, 1, 2, 3, 4]}


# -- commands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ONE_QUICK)
def test_search(kind: str, feats: Path, rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, words = table(kind, tmp_path, rows), ["--text", "alarm clock", "-k", 7, "--json"]
    assert command("search", feats, *words, tmp_path / "want.json") == 0
    assert command("search", path, "--model", "picto", *words, tmp_path / "got.json") == 0
    want, got = (json.loads((tmp_path / name).read_text()) for name in ("want.json", "got.json"))
    assert got == want and len(got[0]["hits"]) == 7
    capsys.readouterr()
    assert command("search", path, *words, tmp_path / "no.json") == 2
    assert "SHARDS must name their model" in (told := capsys.readouterr().err) and "--model" in told
    assert command("search", feats, "--model", "picto", *words, tmp_path / "no.json") == 2
    assert "--model must stand with features that name no model, got picto" in capsys.readouterr().err
    narrow = rows.drop_columns(["embedding"]).append_column("vector", pa.array([[1.0, 2.0]] * len(rows)))
    pq.write_table(narrow, tmp_path / "narrow.parquet")
    assert (
        command("search", tmp_path / "narrow.parquet", "--model", "picto", *words, tmp_path / "no.json") == 2
    )
    assert "as wide as the queries of --model picto, 192, got 2 in" in capsys.readouterr().err


def test_serve(feats: Path, rows: Any, tmp_path: Path) -> None:
    want = serve_session.Session(feats)
    got = serve_session.Session(table("parquet", tmp_path, rows), maker=("picto", None))
    assert torch.equal(got._rows, want._rows) and got.info()["columns"] == want.info()["columns"]
    assert [got.metadata(i) for i in range(12)] == [want.metadata(i) for i in range(12)]


@pytest.mark.slow
def test_report(feats: Path, rows: Any, tmp_path: Path) -> None:
    path = table("parquet", tmp_path, rows)
    words = ["--no-text", "--no-images", "--shots", 1, "--seeds", 1, "--out"]
    assert command("report", feats, *words, tmp_path / "want.html") == 0
    assert command("report", path, *words, tmp_path / "got.html") == 0
    want, got = (json.loads((tmp_path / name).read_text()) for name in ("want.json", "got.json"))
    for found in (want["folders"]["feats"], got["folders"]["rows.parquet"]):
        del found["run"], found["retrieval"]["seconds"]
    assert got["folders"]["rows.parquet"] == want["folders"]["feats"]
    assert got["class_names"] == want["class_names"] and got["corrupt"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind: str, rows: Any, tmp_path: Path) -> None:
    path = table(kind, tmp_path, rows)
    assert command("export", path, tmp_path / "out", "--format", "fbin", "--metadata", "--quiet") == 0
    found = np.fromfile(tmp_path / "out" / "gallery.fbin", np.float32, offset=8).reshape(12, 192)
    values = np.stack(rows["embedding"].to_numpy()).astype(np.float64)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    assert_close(torch.from_numpy(found), torch.from_numpy(unit), "written", dtype=torch.float32)
    names = pq.read_table(tmp_path / "out" / "metadata.parquet")["image_path"]
    assert names.to_pylist() == rows["image_path"].to_pylist()


def test_discover(feats: Path, rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = table("parquet", tmp_path, rows)
    args = Namespace(
        input=str(path), out=tmp_path / "out", labels=None, old=["class_01"], model="picto", pretrained=None
    )
    plain = Namespace(**{**vars(args), "input": str(feats), "model": None})
    want = discovery_problem.of_arguments(plain, print)
    got = discovery_problem.of_arguments(args, print)
    assert got.paths == want.paths and got.labels == want.labels
    assert torch.equal(got.features, want.features) and got.shards.maker == ("picto", None)
    _, teacher = discovery_problem.teacher_features(path, got.paths[::-1])
    assert torch.equal(teacher, want.features.flip(0))
    args.model = None
    with pytest.raises(ValueError, match=r"^discover: SHARDS must name their model"):
        discovery_problem.of_arguments(args, print)


def test_fewshot(feats: Path, rows: Any, tmp_path: Path) -> None:
    path = table("parquet", tmp_path, rows)
    values = torch.from_numpy(np.stack(rows["embedding"].to_numpy()))
    plain = fewshot_problems.of_files(path, path, path)
    assert torch.equal(plain.train[0], values) and plain.text is None
    assert plain.train[1].tolist() == plain.test[1].tolist() == [0] * EACH + [1] * EACH + [2] * EACH
    args = Namespace(device="cpu", template=["a drawing of {}"], prompts=None)
    named = fewshot_problems.of_files(feats, feats, path, args)
    model, _, tokenizer = sb.load_picto_clip()
    names = [f"class {i:02d}" for i in range(CLASSES)]
    want = class_text_features(model, names, ["a drawing of {}"], tokenizer=tokenizer)
    assert named.text is not None and torch.equal(named.text, want.projected)
    assert named.text_length == float(np.float32(want.length)) and named.hidden is not None
    numbers = rows.drop_columns(["label"]).append_column("label", pa.array([7, None, *([2] * 10)]))
    pq.write_table(numbers, tmp_path / "numbers.parquet")
    found = fewshot_problems.of_files(*[tmp_path / "numbers.parquet"] * 3)
    assert found.train[1].tolist() == [7] + [2] * 10 and torch.equal(found.train[0][1], values[2])
    other = rows.drop_columns(["label"]).append_column("label", pa.array(["dog"] * 12))
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet must have labels of the training rows, got 'dog'"):
        fewshot_problems.of_files(path, None, tmp_path / "other.parquet")


@pytest.mark.slow
def test_invert_takes_and_writes_tables(rows: Any, tmp_path: Path) -> None:
    path = table("parquet", tmp_path, rows)
    np.save(tmp_path / "rows.npy", np.stack(rows["embedding"].to_numpy())[:7])
    words = ["--steps", 2, "--tokens", 2, "--quiet", "--limit", 7]
    assert command("invert", tmp_path / "rows.npy", tmp_path / "want.safetensors", *words) == 0
    for _ in range(2):  # the second one finds it finished
        assert command("invert", path, tmp_path / "out", *words, "--format", "parquet") == 0
    got = (tmp_path / "out" / "inversion.safetensors").read_bytes()
    assert got == (tmp_path / "want.safetensors").read_bytes()
    from safetensors.torch import load_file

    want, found = load_file(tmp_path / "want.safetensors"), pq.read_table(tmp_path / "out" / "features")
    assert np.array_equal(np.stack(found["features"].to_numpy()), want["features"].numpy())
    assert np.array_equal(np.stack(found["tokens"].to_numpy()), want["tokens"].numpy().reshape(7, -1))
    assert found["steps_done"].to_pylist() == [2] * 7
    assert found["image_path"].to_pylist() == rows["image_path"].to_pylist()[:7]
    assert command("search", tmp_path / "out", "--text", "alarm clock", "-k", 2) == 0


def test_a_missing_library_is_named(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = table("lance", tmp_path, rows)
    plain = shards(tmp_path / "s", [rows.rename_columns(["image_path", "label", "features"])])
    monkeypatch.setitem(sys.modules, "lance", None)
    for words in (
        ("search", path, "--model", "picto", "--text", "x"),
        ("invert", "picto:flags", tmp_path / "out", "--format", "lance"),
        ("map", plain, tmp_path / "m", "--mapping", _identity(tmp_path), "--format", "lance"),
    ):
        assert command(*words) == 2
        told = capsys.readouterr().err
        assert "pylance must be installed to" in told and "pip install 'semobridge-ext[lance]'" in told


def _identity(home: Path) -> Path:
    sb.LinearMap(torch.eye(192, dtype=torch.float64)).save(home / "map.safetensors")
    return home / "map.safetensors"
