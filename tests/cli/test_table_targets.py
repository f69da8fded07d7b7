"""`--format parquet` and `lance`: the rows of the shards, by the formats' own libraries; broken runs too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import _files
from semobridge_ext.cli.commands import report
from semobridge_ext.cli.galleries import open_folder
from semobridge_ext.cli.table_seals import read_seals
from semobridge_ext.cli.tables import open_features
from tests.support.feature_tables import shards
from tests.support.images import command, write

pa = pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
lance = pytest.importorskip("lance", reason="needed: pip install pylance")
KINDS = ["parquet", "lance"]
N, D, M = 20, 6, 4


def stored(kind: str, out: Path) -> Any:
    """The whole table, read without this package."""
    if kind == "parquet":
        return pq.read_table(out / "features")
    return lance.dataset(str(out / "features.lance")).to_table()


def vectors(table: Any) -> np.ndarray:
    return np.stack(table["features"].to_numpy())


# -- extract -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, and shards/ of them: three shards, of which the second is short and the third empty."""
    home = tmp_path_factory.mktemp("extracted")
    paths = write(home / "images", 3, 4)
    for i in (5, 8, 9, 10, 11):
        paths[i].write_bytes(b"no picture")
    assert command("extract", home / "images", home / "shards", *EXTRACT) == 0
    return home


EXTRACT = ["--quiet", "--workers", 0, "--shard-size", 4, "--dtype", "float16"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_extract(kind: str, extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, plain = tmp_path / "out", extracted / "shards"
    words = ["extract", extracted / "images", out, *EXTRACT, "--format", kind]
    assert command(*words) == 0
    want = np.concatenate([np.load(plain / "img_emb" / f"img_emb_{i}.npy") for i in range(3)])
    found = stored(kind, out)
    assert vectors(found).dtype == np.float16 and np.array_equal(vectors(found), want) and len(want) == 7
    assert found.schema.field("features").type.list_size == 192
    records = pa.concat_tables(pq.read_table(plain / "metadata" / f"metadata_{i}.parquet") for i in range(3))
    assert found.drop_columns(["features"]).to_pydict() == records.to_pydict()
    assert (out / "corrupt.tsv").read_bytes() == (plain / "corrupt.tsv").read_bytes()
    assert sorted(open_features("report", out).losses()) == sorted(open_features("report", plain).losses())
    capsys.readouterr()
    assert command(*words) == 0 and "finished already, 7 features" in capsys.readouterr().out
    # Its name leads to what made it, also where the table itself is named.
    place = next(out.glob("features*"))
    assert (
        open_features("search", place).settings()["model"] == "picto"
        and report._run_of(open_features("report", out))[1] == 7
    )
    for other in {"shards", *KINDS} - {kind}:
        assert command(*words[:-1], other) == 2
        assert "made with other layout" in capsys.readouterr().err


# -- map ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Shards of 7, 5 and 8 rows by NumPy, and a map of them in float64."""
    rng = np.random.default_rng(0)
    rows, kind = rng.standard_normal((N, D)).astype(np.float32), pa.list_(pa.float32(), D)
    parts = [
        pa.table({"id": part, "features": pa.array(list(rows[part]), kind), "name": [f"n{i}" for i in part]})
        for part in np.split(np.arange(N), (7, 12))
    ]
    sb.LinearMap(torch.from_numpy(rng.standard_normal((D, M)))).save(tmp_path / "map.safetensors")
    return shards(tmp_path / "shards", parts)


def mapped(source: Path, kind: str, name: str = "out") -> int:
    words = ["--mapping", source.parent / "map.safetensors", "--dtype", "float32", "--quiet"]
    return command("map", source, source.parent / name, *words, "--format", kind)


def wanted(source: Path) -> np.ndarray:
    assert mapped(source, "shards", "plain") == 0
    return np.concatenate(
        [np.load(source.parent / "plain" / "img_emb" / f"img_emb_{i}.npy") for i in range(3)]
    )


def check(kind: str, source: Path) -> None:
    found = stored(kind, source.parent / "out")
    assert np.array_equal(vectors(found), wanted(source))
    assert found["id"].to_pylist() == list(range(N)) and found["name"].to_pylist() == [
        f"n{i}" for i in range(N)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_map_of_blocks(kind: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard is a file or fragment; what is mapped again comes out of the table."""
    monkeypatch.setattr("semobridge_ext.cli.shards._ROWS", 3)
    assert mapped(source, kind) == 0
    check(kind, source)
    out = source.parent / "out"
    if kind == "parquet":
        parts = [f"part-{i:05d}.parquet" for i in range(3)]
        assert sorted(path.name for path in (out / "features").iterdir()) == parts
        assert [pq.read_metadata(out / "features" / name).num_rows for name in parts] == [7, 5, 8]
        assert pq.read_metadata(out / "features" / parts[0]).num_row_groups == 3
    else:
        assert [f.count_rows() for f in lance.dataset(str(out / "features.lance")).get_fragments()] == [
            7,
            5,
            8,
        ]
    assert sum(1 for _ in open_features("map", out).blocks()) == 3
    again = open_features("map", out)
    assert again.summary()["rows"] == N and again.column("name") == [f"n{i}" for i in range(N)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_go_along_through_their_own_side(
    kind: str, source: Path, capsys: pytest.CaptureFixture
) -> None:
    """As the column text_features, which retrieve reads as texts."""
    rng, linear = np.random.default_rng(1), sb.LinearMap.load(source.parent / "map.safetensors")
    texts = rng.standard_normal((N, D)).astype(np.float32)
    (source / "text_emb").mkdir()
    for i, part in enumerate(np.split(texts, (7, 12))):
        np.save(source / "text_emb" / f"text_emb_{i}.npy", part)
    assert mapped(source, kind) == 0
    check(kind, source)
    out = source.parent / "out"
    found = np.stack(stored(kind, out)["text_features"].to_numpy())
    want = linear(torch.from_numpy(texts)).numpy()
    assert found.dtype == np.float32 and np.array_equal(found, want)
    side = open_folder(out / "text_emb")
    assert side.part == "text_emb" and np.array_equal(torch.cat(list(side.blocks())).numpy(), want)
    assert side.table(0).column_names == open_features("map", out).table(0).column_names == ["id", "name"]
    np.save(source / "text_emb" / "text_emb_1.npy", texts[:3])
    assert mapped(source, kind, "short") == 2
    assert "must have a text for each of 5 rows of a shard, got 3" in capsys.readouterr().err


class _Broken(Exception):
    pass


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The line of the second shard is not written: its rows may be there already, and do not count."""
    plain, lines = _files.append_line, []

    def breaks(path: Any, text: str) -> None:
        lines.append(text)
        if len(lines) == 2:
            raise _Broken
        plain(path, text)

    monkeypatch.setattr(_files, "append_line", breaks)
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_run_goes_on(kind: str, source: Path, broken: list, capsys: pytest.CaptureFixture) -> None:
    out = source.parent / "out"
    assert mapped(source, kind) == 2 and "_Broken" in capsys.readouterr().err
    assert not (out / "summary.json").exists()
    if kind == "parquet":
        assert [path.name for path in (out / "features").glob("[!.]*")] == ["part-00000.parquet"]
    else:
        assert lance.dataset(str(out / "features.lance")).count_rows() == 12  # a whole commit too many
    assert command("retrieve", out, "--label", "name") == 2 and "interrupted" in capsys.readouterr().err
    assert mapped(source, kind) == 0 and "1 shards are done, going on" in capsys.readouterr().err
    check(kind, source)
    assert not list(out.rglob("*.tmp"))
    if kind == "parquet":  # and the same bytes
        assert mapped(source, kind, "whole") == 0
        for path in (source.parent / "whole" / "features").iterdir():
            assert (out / "features" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_and_what_went_is_made_again(kind: str, source: Path, capsys) -> None:
    assert mapped(source, kind) == 0
    place = next((source.parent / "out").glob("features*"))
    file = sorted(place.rglob("*.parquet" if kind == "parquet" else "data/*.lance"))[1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert mapped(source, kind) == 2
    told = capsys.readouterr().err
    assert f"{file} must hold what was written, got other bytes; delete" in told and told.count("\n") == 1
    if kind == "parquet":
        file.unlink()
    else:
        assert f"delete {place}, and" in told
        shutil.rmtree(place)
    assert mapped(source, kind) == 0
    check(kind, source)


def test_what_a_table_cannot_hold(source: Path, capsys: pytest.CaptureFixture) -> None:
    """Another ending of the name, a column of the same name, other columns half-way."""
    for ending in (".parquet", ".lance"):
        assert mapped(source, "parquet", f"out{ending}") == 2
        told = capsys.readouterr().err
        assert f"OUT must be the name of a folder, got {source.parent}/out{ending}" in told
        assert f"pass --format {ending[1:]}" in told and not (source.parent / f"out{ending}").exists()
    (source.parent / "other" / "features").mkdir(parents=True)
    (source.parent / "other" / "features" / "x.parquet").touch()
    assert mapped(source, "parquet", "other") == 2
    assert "OUT must be new or an unfinished run" in capsys.readouterr().err
    path = source / "metadata" / "metadata_1.parquet"
    plain = pq.read_table(path)
    pq.write_table(plain.rename_columns(["id", "title"]), path)
    assert mapped(source, "parquet") == 2
    assert "must meet shards of the same columns, got others than in the first" in capsys.readouterr().err
    pq.write_table(plain.rename_columns(["id", "features"]), path)
    assert mapped(source, "lance", "third") == 2
    assert "must meet metadata without a column features" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["[0]", "null", "[0, 1, -1, 2, []]", '[0, "x", 7, 7, [[1, 2]]]', "[" * 9999, "{"]
)
def test_seals_that_are_none(line: str, source: Path, capsys: pytest.CaptureFixture) -> None:
    """A line of another kind counts for nothing: its shard is made again."""
    assert mapped(source, "parquet") == 0
    seals = source.parent / "out" / "shards.jsonl"
    lines = seals.read_text().splitlines()
    seals.write_text("\n".join([line, *lines[1:]]) + "\n")
    assert sorted(read_seals(source.parent / "out")) == [1, 2]
    assert mapped(source, "parquet") == 0 and json.loads(seals.read_text().splitlines()[-1])[0] == 2
    check("parquet", source)
