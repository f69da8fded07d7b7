"""Every format is read by its own library with the lines of its README: the ten nearest are those of topk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.galleries import clustered, code_of, run_lines, write_shards

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
G, D, M, N = 700, 24, 16, 5  # rows, columns before and after the map, queries


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return clustered(G, D)


@pytest.fixture(scope="module")
def linear() -> sb.LinearMap:
    """Affine, and not square."""
    draw = torch.Generator().manual_seed(5)
    return sb.LinearMap(torch.randn(D, M, generator=draw), torch.randn(M, generator=draw))


@pytest.fixture(scope="module")
def shards(rows, tmp_path_factory) -> Path:
    numbers = [10_000 - 3 * i for i in range(G)]
    names = [None if i % 9 == 0 else f"class {i % 7}" for i in range(G)]
    columns = {"label": names, "number": numbers, "id": [f"x{i}" for i in range(G)]}
    return write_shards(tmp_path_factory.mktemp("shards") / "feats", rows, 300, columns)


@pytest.fixture(scope="module")
def wanted(rows, linear) -> tuple[Tensor, np.ndarray]:
    """Queries, and their ten nearest rows by float64 alone."""
    x = rows[torch.arange(0, G, G // N)[:N]] + 0.1
    unit = [
        torch.nn.functional.normalize(r.double() @ linear.matrix + linear.offset, dim=1) for r in (x, rows)
    ]
    return x, (unit[0] @ unit[1].T).topk(10).indices.numpy()


def export(shards: Path, out: Path, linear, kind: str, **options) -> dict:
    return sb.export_gallery(shards, out, format=kind, mapping=linear, **options)


def follow(out: Path, x: Tensor, monkeypatch, **given) -> dict:
    monkeypatch.chdir(out)
    return run_lines(code_of(out / "README.txt"), x=x.numpy(), **given)


def test_the_oracle_is_topk(rows, linear, wanted):
    found = sb.topk(linear(wanted[0]), linear(rows), 10)
    assert np.array_equal(found.indices.numpy(), wanted[1])


def test_flat_faiss(shards, linear, wanted, tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")
    summary = export(shards, tmp_path / "out", linear, "faiss", metadata=True)
    found = follow(tmp_path / "out", wanted[0], monkeypatch)
    assert np.array_equal(found["found"], wanted[1])
    assert isinstance(faiss.downcast_index(found["index"]), faiss.IndexFlatIP)
    assert summary["rows"] == G and summary["width"] == M
    import pyarrow.parquet

    table = pyarrow.parquet.read_table("metadata.parquet")
    assert table.column("image_path").to_pylist() == [f"{i}.png" for i in range(G)]
    assert table.column_names == ["image_path", "label", "number", "metadata_id"]


def test_ids_of_a_column(shards, linear, wanted, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")
    export(shards, tmp_path / "out", linear, "faiss", metadata=True, ids="number")
    found = follow(tmp_path / "out", wanted[0], monkeypatch)
    assert np.array_equal(found["found"], 10_000 - 3 * wanted[1])
    import pyarrow.parquet

    assert "number" not in pyarrow.parquet.read_table("metadata.parquet").column_names


def test_trained_faiss_tells_its_recall(shards, rows, linear, tmp_path):
    faiss = pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")
    summary = export(shards, tmp_path / "out", linear, "faiss:IVF16,Flat", train=G, ids="number")
    index = faiss.read_index(str(tmp_path / "out" / "index.faiss"))
    ivf = faiss.extract_index_ivf(index)
    assert (ivf.nlist, ivf.nprobe) == (16, summary["nprobe"]) and summary["trained_on"] == G
    recall = summary["recall"]
    assert list(recall) == [str(2**i) for i in range(len(recall))]
    assert recall[str(summary["nprobe"])] >= 0.95 > max([*recall.values()][:-1], default=0)
    # Over all rows, by products in float64, each row without itself.
    unit = torch.nn.functional.normalize(rows.double() @ linear.matrix + linear.offset, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-2)
    near = 10_000 - 3 * scores.topk(10).indices.numpy()
    found = index.search(unit.float().numpy(), 11)[1]
    own = 10_000 - 3 * np.arange(G)
    hits = sum(len(({*f} - {o}) & {*w}) for f, o, w in zip(found, own, near, strict=True))
    assert abs(hits / near.size - recall[str(summary["nprobe"])]) < 0.03  # 200 rows stand for all
    assert "nprobe" in (tmp_path / "out" / "README.txt").read_text()


def test_codes_of_faiss_have_one_recall(shards, linear, tmp_path):
    faiss = pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")
    summary = export(shards, tmp_path / "out", linear, "faiss:SQ4")
    assert list(summary["recall"]) == [""] and 0.3 < summary["recall"][""] < 1 and "nprobe" not in summary
    assert faiss.read_index(str(tmp_path / "out" / "index.faiss")).ntotal == G


@pytest.mark.parametrize("kind", ["fbin", "f16bin"])
def test_fbin(kind, shards, rows, linear, wanted, tmp_path, monkeypatch):
    export(shards, tmp_path / "out", linear, kind, ids=torch.arange(G) + 7)
    found = follow(tmp_path / "out", wanted[0], monkeypatch)
    gallery = torch.from_numpy(np.array(found["gallery"]))
    assert (found["rows"], found["columns"]) == (G, M)
    assert_same_bits(gallery, linear(rows).to(gallery.dtype))
    if kind == "fbin":
        scores = found["q"] @ found["gallery"].T
        assert np.array_equal(np.argsort(-scores, axis=1)[:, :10], wanted[1])
    assert np.array_equal(np.load("ids.npy"), np.arange(G) + 7)
    assert Path(f"gallery.{kind}").stat().st_size == 8 + G * M * gallery.element_size()


@pytest.mark.slow
def test_lance(shards, linear, wanted, tmp_path, monkeypatch):
    lance = pytest.importorskip("lance", reason="needed: pip install pylance")
    pytest.importorskip("lancedb", reason="needed: pip install lancedb")
    export(shards, tmp_path / "out", linear, "lance", metadata=True)
    found = follow(tmp_path / "out", wanted[0], monkeypatch)
    assert [hit.column("id").to_pylist() for hit in found["hits"]] == wanted[1].tolist()
    assert found["hits"][0].column("image_path")[0].as_py() == f"{wanted[1][0, 0]}.png"
    data = lance.dataset("gallery.lance")
    assert data.count_rows() == G and data.schema.field("vector").type.list_size == M
    assert data.schema.names == ["id", "vector", "image_path", "label", "number", "metadata_id"]


@pytest.mark.slow
def test_milvus(shards, rows, linear, wanted, tmp_path, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus", reason="needed: pip install pymilvus")
    pytest.importorskip("milvus_lite", reason="needed: pip install milvus-lite")
    import pyarrow.parquet

    out = tmp_path / "out"
    summary = export(shards, out, linear, "milvus-parquet", metadata=True, file_rows=256)
    names = [f"part_{i:05d}.parquet" for i in range(3)]
    assert [n for n in summary["files"] if n.endswith("parquet")] == names
    tables = [pyarrow.parquet.read_table(out / name) for name in names]
    assert [t.num_rows for t in tables] == [256, 256, 188]
    stored = pyarrow.concat_tables(tables)
    assert stored.column("id").to_pylist() == list(range(G))
    vectors = torch.tensor(np.stack(stored.column("vector").to_numpy()))
    assert_same_bits(vectors, linear(rows))
    lines = code_of(out / "README.txt")
    loading = lines.index('client.load_collection("gallery")')
    monkeypatch.chdir(out)
    made = run_lines(lines[:loading], x=wanted[0].numpy(), URI=str(tmp_path / "milvus.db"))
    client = made["client"]
    assert isinstance(client, pymilvus.MilvusClient)
    client.insert("gallery", stored.to_pylist())
    hits = run_lines(lines[loading:], client=client, q=made["q"])["hits"]
    assert [[hit["id"] for hit in row] for row in hits] == wanted[1].tolist()
    client.close()


def test_rows_are_of_unit_length(shards, rows, linear, tmp_path):
    export(shards, tmp_path / "out", linear, "fbin")
    stored = np.fromfile(tmp_path / "out" / "gallery.fbin", "<f4", offset=8).reshape(G, M)
    want = torch.nn.functional.normalize(rows.double() @ linear.matrix + linear.offset, dim=1)
    assert_close(torch.from_numpy(stored), want, "op")
