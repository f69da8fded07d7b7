"""Features in Parquet and Lance: `map` and `retrieve` read them as they read shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli.tables import Parquet, open_features
from tests.support.feature_tables import shards
from tests.support.images import command

pa = pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
D = 6


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, D)).astype(np.float32)


def tables(rows: np.ndarray, cuts: tuple[int, ...] = (7, 12)) -> list[Any]:
    labels = np.asarray([f"class {i % 3}" for i in range(len(rows))])
    kind = pa.list_(pa.float32(), rows.shape[1])
    return [
        pa.table({"id": part, "features": pa.array(list(rows[part]), kind), "label": labels[part]})
        for part in np.split(np.arange(len(rows)), cuts)
    ]


def write(kind: str, place: Path, parts: list[Any]) -> Path:
    if kind == "file":
        pq.write_table(pa.concat_tables(parts), place / "all.parquet")
        return place / "all.parquet"
    if kind == "folder":
        (place / "tables").mkdir()
        for i, part in enumerate(parts):
            pq.write_table(part, place / "tables" / f"part-{i:03d}.parquet")
        return place / "tables"
    lance = pytest.importorskip("lance", reason="needed: pip install pylance")
    for part in parts:
        lance.write_dataset(part, str(place / "all.lance"), mode="append")
    return place / "all.lance"


@pytest.mark.parametrize("kind", ["file", "folder", "lance"])
def test_map_and_retrieve(kind: str, rows: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parts = tables(rows)
    source, same = write(kind, tmp_path, parts), shards(tmp_path / "shards", parts)
    linear = sb.LinearMap(torch.randn(D, 4, dtype=torch.float64))
    linear.save(tmp_path / "map.safetensors")
    options = ["--mapping", tmp_path / "map.safetensors", "--dtype", "float32", "--quiet"]
    assert command("map", source, tmp_path / "out", *options) == 0, capsys.readouterr()
    count = 1 if kind == "file" else 3
    found = [np.load(tmp_path / "out" / "img_emb" / f"img_emb_{i}.npy") for i in range(count)]
    want = linear(torch.from_numpy(rows)).numpy()
    assert np.array_equal(np.concatenate(found), want)
    columns = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").to_pydict()
    assert list(columns) == ["id", "label"] and columns["id"] == list(range(len(found[0])))
    assert command("map", source, tmp_path / "out", *options) == 0
    assert "finished already, 20 rows" in capsys.readouterr().out

    assert command("retrieve", source) == 0 and command("retrieve", same) == 0
    here, there = capsys.readouterr().out.split("per cent")[:2]
    assert here.splitlines()[-1].split()[1:] == there.splitlines()[-1].split()[1:]


def test_a_changed_file_is_another_source(rows: np.ndarray, tmp_path: Path, capsys) -> None:
    source = write("file", tmp_path, tables(rows))
    sb.LinearMap(torch.eye(D, dtype=torch.float64)).save(tmp_path / "map.safetensors")
    words = ["map", source, tmp_path / "out", "--mapping", tmp_path / "map.safetensors", "--quiet"]
    assert command(*words) == 0
    pq.write_table(pa.concat_tables(tables(rows[::-1].copy()))[:19], source)
    assert command(*words) == 2 and "made with other source_digest" in capsys.readouterr().err


KINDS: dict[str, Any] = {
    "float16": lambda r: pa.array(list(r.astype(np.float16)), pa.list_(pa.float16(), D)),
    "float64 lists": lambda r: pa.array(r.astype(np.float64).tolist(), pa.list_(pa.float64())),
    "large lists": lambda r: pa.array(r.tolist(), pa.large_list(pa.float32())),
    "tensors": lambda r: pa.FixedShapeTensorArray.from_numpy_ndarray(r),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["embedding", "vector"])
def test_kinds_of_vectors(kind: str, name: str, rows: np.ndarray, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(20), name: KINDS[kind](rows)}), tmp_path / "a.parquet")
    folder = open_features("map", tmp_path / "a.parquet")
    found = folder.features(0)
    assert isinstance(folder, Parquet) and found.dtype is (
        torch.float16 if kind == "float16" else torch.float32
    )
    assert torch.equal(found.float(), torch.from_numpy(rows).to(found.dtype).float())
    assert folder.record_count() == 20 and folder.table(0).column_names == ["id"]


REFUSED = {
    "no column": ({"id": [1, 2]}, r"column of vectors named features, embedding, vector, got .* with id;"),
    "a number": ({"features": [1.0, 2.0]}, "column 'features' must hold float vectors .* got double in"),
    "texts": ({"features": [["a"], ["b"]]}, "must hold float vectors"),
    "lengths": ({"features": [[1.0], [1.0, 2.0]]}, r"of lengths \[1, 2\]"),
    "a missing row": ({"features": [[1.0], None]}, "none missing"),
    "a missing number": ({"features": [[1.0], [None]]}, "none missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_are_no_vectors_is_refused(case: str, tmp_path: Path) -> None:
    columns, told = REFUSED[case]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"^map: .*{told}"):
        open_features("map", tmp_path / "a.parquet").features(0)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"^map: .*a\.parquet must be a whole Parquet file, got"):
        open_features("map", tmp_path / "a.parquet").features(0)
    pytest.importorskip("lance", reason="needed: pip install pylance")
    with pytest.raises(FileNotFoundError, match=r"^map: SHARDS must be an existing Lance data set, got"):
        open_features("map", tmp_path / "b.lance")
    (tmp_path / "b.lance").mkdir()
    with pytest.raises(ValueError, match=r"^map: .*b\.lance must be a whole Lance file, got"):
        open_features("map", tmp_path / "b.lance")
