"""Maps of queries, folders that are there already, killed runs, what is refused, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.handover import faiss_index, milvus_parquet
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.galleries import clustered, code_of, run_lines, write_shards
from tests.support.images import command, write

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
QUERY = 4  # lines of a README up to the query, of one step


def stored(out: Path) -> Tensor:
    rows, columns = np.fromfile(out / "gallery.fbin", "<u4", 2)
    return torch.from_numpy(np.fromfile(out / "gallery.fbin", "<f4", offset=8).reshape(rows, columns))


def query(out: Path, x: Tensor, monkeypatch, lines: int = QUERY) -> Tensor:
    """By the lines of README.txt."""
    monkeypatch.chdir(out)
    return torch.from_numpy(run_lines(code_of(out / "README.txt")[:lines], x=x.numpy())["q"])


def test_a_gallery_goes_as_its_rows_with_its_ids(tmp_path: Path):
    rows = clustered(40, 8)
    gallery = sb.Gallery(rows[:30], ids=range(100, 130), normalize=True).add(rows[30:], range(200, 210))
    gallery.remove([100, 205])
    kept = [i for i in range(40) if i not in (0, 35)]
    ids = [*range(101, 130), *range(200, 205), *range(206, 210)]
    sb.export_gallery(gallery, tmp_path / "gallery", format="fbin")
    sb.export_gallery(rows[kept], tmp_path / "rows", format="fbin", ids=ids)
    assert_close(stored(tmp_path / "gallery"), stored(tmp_path / "rows").double(), "op")
    files = [{file.name for file in (tmp_path / name).iterdir()} for name in ("gallery", "rows")]
    assert files[0] == files[1]
    (named,) = [name for name in files[0] if "ids" in name]
    assert (tmp_path / "gallery" / named).read_bytes() == (tmp_path / "rows" / named).read_bytes()
    with pytest.raises(ValueError, match="ids must differ"):
        sb.export_gallery(gallery, tmp_path / "twice", format="fbin", ids=[1] * 38)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Features of 12 drawings, and what `map` makes of them."""
    home = tmp_path_factory.mktemp("export")
    write(home / "images", 4, 3)
    words = ("--quiet", "--workers", 0, "--shard-size", 5, "--dtype", "float32")
    assert command("extract", home / "images", home / "feats", *words) == 0
    model = sb.load_picto_clip()[0]
    sb.Bridge.from_clip(model).save(home / "bridge.safetensors")
    sb.LinearMap.pca(clustered(30, 192), 3).save(home / "pca.safetensors")
    for name in ("bridge", "pca"):
        given = home / f"{name}.safetensors"
        assert command("map", home / "feats", home / name, "--mapping", given, "--quiet") == 0
    return home


@pytest.mark.parametrize("name", ["bridge", "pca"])
def test_a_query_lands_where_its_row_lies(name, home, tmp_path, monkeypatch):
    """The lines of README.txt on a raw feature give the exported row, from mapped shards."""
    assert command("export", home / name, tmp_path / "out", "--format", "fbin", "--quiet") == 0
    raw = np.concatenate([np.load(home / "feats" / "img_emb" / f"img_emb_{i}.npy") for i in range(3)])
    got = query(tmp_path / "out", torch.from_numpy(raw).float(), monkeypatch)
    # The shards of map are float16 by default.
    assert_close(stored(tmp_path / "out"), got.double(), "written", dtype=torch.float16)
    readme = (tmp_path / "out" / "README.txt").read_text()
    assert ("without the matrix" in readme) == (name == "bridge")


def test_a_mapping_by_name_is_that_of_map(home, tmp_path, monkeypatch):
    sb.export_gallery(home / "feats", tmp_path / "out", format="fbin", mapping="bridge")
    model = sb.load_picto_clip()[0]
    raw = np.concatenate([np.load(home / "feats" / "img_emb" / f"img_emb_{i}.npy") for i in range(3)])
    raw = torch.from_numpy(raw).float()
    want = sb.reference.bridge(raw.double(), model.text_projection.detach().double())
    assert_close(stored(tmp_path / "out"), want, "bridge")
    assert_close(query(tmp_path / "out", raw, monkeypatch), want, "bridge")
    sb.export_gallery(
        home / "feats", tmp_path / "file", format="fbin", mapping=home / "bridge" / "mapping.safetensors"
    )
    assert_same_bits(stored(tmp_path / "file"), stored(tmp_path / "out"))


def test_a_chain_that_does_not_fold_is_written_step_by_step(tmp_path, monkeypatch):
    rows = clustered(40, 6)
    first, second = sb.LinearMap.centering(rows.mean(0)), sb.LinearMap.centering(torch.full((6,), 0.2))
    chain = sb.LinearMap.compose(first, second)
    sb.export_gallery(rows, tmp_path / "out", format="fbin", mapping=chain)
    assert (tmp_path / "out" / "query_offset_1.npy").is_file()
    norm = torch.nn.functional.normalize
    want = norm(norm(rows.double() - rows.double().mean(0), dim=1) - 0.2, dim=1)
    assert_close(query(tmp_path / "out", rows, monkeypatch, 6), want, "op")
    assert_close(stored(tmp_path / "out"), want, "op")
    assert len(sb.LinearMap.load("query_map.safetensors").steps) == 2


def test_isoclip_leaves_texts_out(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(3)
    image, text = (torch.randn(n, 8, generator=draw) for n in (12, 10))
    iso = sb.IsoCLIP(image, text, k_top=2, k_bottom=1, compress=True)
    rows = clustered(30, 12)
    sb.export_gallery(rows, tmp_path / "out", format="fbin", mapping=iso)
    assert_same_bits(stored(tmp_path / "out"), iso.image(rows))
    assert "A query of a text: cannot be compared" in (tmp_path / "out" / "README.txt").read_text()


def test_rows_without_a_map_are_normalised(tmp_path, monkeypatch):
    rows = clustered(20, 5).double()
    rows[7] = 0
    table = {"name": [f"n{i}" for i in range(20)]}
    sb.export_gallery(rows, tmp_path / "out", format="fbin", metadata=table)
    want = torch.nn.functional.normalize(rows, dim=1)
    assert_close(stored(tmp_path / "out"), want, "op")
    assert bool((stored(tmp_path / "out")[7] == 0).all())
    got = query(tmp_path / "out", rows[:5].float(), monkeypatch)
    assert_close(got, want[:5], "op")
    import pyarrow.parquet

    assert pyarrow.parquet.read_table("metadata.parquet").to_pydict() == table


# -- folders that are there --------------------------------------------------------------------------


def test_a_finished_folder_is_left_and_another_refused(tmp_path):
    rows, out = clustered(30, 4), tmp_path / "out"
    first = sb.export_gallery(rows, out, format="fbin")
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = sb.export_gallery(rows, out, format="fbin")
    assert again.pop("finished_already") and again == first
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    with pytest.raises(ValueError, match=r"must hold an export of the same settings, got .* other source"):
        sb.export_gallery(rows + 1, out, format="fbin")
    with pytest.raises(ValueError, match=r"other format \"fbin\" \(now \"f16bin\"\)"):
        sb.export_gallery(rows, out, format="f16bin")
    with pytest.raises(ValueError, match="must be new or an unfinished export"):
        sb.export_gallery(rows, tmp_path, format="fbin")


@pytest.mark.parametrize("change", ["cut", "gone"])
def test_a_file_that_was_cut_is_made_again(change, tmp_path):
    rows, out = clustered(30, 4), tmp_path / "out"
    sb.export_gallery(rows, out, format="fbin")
    whole = (out / "gallery.fbin").read_bytes()
    (out / "gallery.fbin").unlink()
    if change == "cut":
        (out / "gallery.fbin").write_bytes(whole[:-4])
    assert "finished_already" not in sb.export_gallery(rows, out, format="fbin")
    assert (out / "gallery.fbin").read_bytes() == whole


def test_whole_parquet_files_of_a_killed_run_stay(tmp_path, monkeypatch):
    rows, out = clustered(50, 4), tmp_path / "out"
    plain, opened = milvus_parquet.table_file, []

    def killed(path: Path, schema: Any) -> Any:
        opened.append(path.name)
        if path.name == "part_00002.parquet":
            raise KeyboardInterrupt
        return plain(path, schema)

    monkeypatch.setattr(milvus_parquet, "table_file", killed)
    words = {"format": "milvus-parquet", "file_rows": 16}
    with pytest.raises(KeyboardInterrupt):
        sb.export_gallery(rows, out, **words)
    assert not (out / "summary.json").exists() and opened[-1] == "part_00002.parquet"
    monkeypatch.setattr(milvus_parquet, "table_file", plain)
    kept = (out / "part_00001.parquet").stat().st_mtime_ns
    assert sb.export_gallery(rows, out, **words)["rows"] == 50
    assert (out / "part_00001.parquet").stat().st_mtime_ns == kept
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(out / f"part_{i:05d}.parquet") for i in range(4)]
    assert [t.num_rows for t in tables] == [16, 16, 16, 2]
    assert pyarrow.concat_tables(tables).column("id").to_pylist() == list(range(50))
    vectors = [v for t in tables for v in t.column("vector").to_pylist()]
    assert_close(torch.tensor(vectors), torch.nn.functional.normalize(rows.double(), dim=1), "op")


def test_nothing_of_a_failed_file_stays(tmp_path):
    rows = clustered(40_000, 4)
    rows[30_000, 2] = torch.nan  # behind the first blocks
    with pytest.raises(ValueError, match="gallery must be finite, got NaN or infinity in row 30000"):
        sb.export_gallery(rows, tmp_path / "out", format="fbin")
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"settings.json", "query_map.safetensors", "query_matrix.npy"}


def test_a_full_disk_ends_faiss_with_its_own_error(tmp_path, monkeypatch, capfd):
    faiss = pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device", "index.faiss")

    class Replaced:
        def __enter__(self) -> Full:
            return Full()

        def __exit__(self, *error: object) -> None:
            return None

    monkeypatch.setattr(faiss_index._files, "replaced", lambda path: Replaced())
    with pytest.raises(OSError, match=r"No space left on device: 'index.faiss'"):
        faiss_index._store(faiss, faiss.IndexFlatIP(4), tmp_path / "index.faiss")
    assert "Traceback" not in "".join(capfd.readouterr())


# -- refusals ----------------------------------------------------------------------------------------

ROWS = clustered(20, 4)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "hnsw"}, "format must be one of faiss, faiss:FACTORY, fbin, .* got str 'hnsw'"),
    "factory of another": ({"format": "fbin:Flat"}, "format must be one of"),
    "no factory": ({"format": "faiss:"}, "format must be one of"),
    "bad factory": ({"format": "faiss:IVFx"}, "format must name an index of width 4 for FAISS"),
    "many lists": ({"format": "faiss:IVF64,Flat"}, "at most a list for each row, got 64 lists for 20"),
    "no rows": ({"gallery": ROWS[:0]}, "gallery must hold rows, got none"),
    "one row": ({"gallery": ROWS[0]}, r"gallery must be \[G, D\]"),
    "other width": ({"mapping": sb.LinearMap(torch.eye(5))}, "gallery must have width 5"),
    "name for rows": ({"mapping": "bridge"}, "mapping must be no name for rows in memory"),
    "no such mapping": ({"mapping": "nothing"}, "export_gallery: mapping must be .* got 'nothing'"),
    "isoclip by name": ({"mapping": "isoclip"}, "mapping must be bridge or pca by name"),
    "short ids": ({"ids": [1, 2]}, "ids must be 20 whole numbers"),
    "float ids": ({"ids": ROWS[:, 0]}, "ids must be 20 whole numbers"),
    "equal ids": ({"ids": [3] * 20}, "ids must differ, got 1 different ones for 20 rows"),
    "no column": ({"ids": "number"}, "ids must be a column of the metadata, got 'number'"),
    "short metadata": ({"metadata": {"a": [1]}}, "metadata must have 20 records, got 1"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0 up"),
    "train": ({"train": 0}, "train must be a whole number from 1 up"),
    "lists in milvus": (
        {"format": "milvus-parquet", "metadata": {"a": [[1]] * 20}},
        "metadata must hold texts, numbers or flags for Milvus, got list<.*> in the column 'a'",
    ),
    "like names in milvus": (
        {"format": "milvus-parquet", "metadata": {"a b": [1] * 20, "a_b": [2] * 20}},
        "metadata must have columns of different names for Milvus, got 'a_b' twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case, tmp_path):
    given, told = WRONG[case]
    if given.get("format", "").startswith("faiss:I"):
        pytest.importorskip("faiss", reason="needed: pip install faiss-cpu")
    given = {"format": "fbin", "gallery": ROWS, **given}
    with pytest.raises(ValueError, match=told):
        sb.export_gallery(given.pop("gallery"), tmp_path / "out", **given)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("given", [{"mapping": 3}, {"metadata": 3}, {"gallery": "text"}], ids=str)
def test_other_kinds_are_type_errors(given, tmp_path):
    kinds = (TypeError, FileNotFoundError)
    with pytest.raises(kinds, match=r"export_gallery: \w+ must"):
        sb.export_gallery(given.pop("gallery", ROWS), tmp_path / "out", format="fbin", **given)


@pytest.mark.parametrize("kind, module", [("faiss", "faiss"), ("lance", "lance")])
def test_a_missing_library_names_the_extra(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} must be installed .* pip install 'semobridge-ext\[exp"):
        sb.export_gallery(ROWS, tmp_path / "out", format=kind)


def test_shards_that_do_not_fit_are_refused(home, tmp_path):
    with pytest.raises(ValueError, match="mapping must be None, got bridge for rows that are mapped already"):
        sb.export_gallery(home / "pca", tmp_path / "out", format="fbin", mapping="bridge")
    iso = sb.IsoCLIP(torch.randn(192, 8), torch.randn(10, 8), k_top=1, k_bottom=1)
    with pytest.raises(ValueError, match="mapping must fit the gallery, got IsoCLIP, which needs rows of"):
        sb.export_gallery(home / "feats", tmp_path / "out", format="fbin", mapping=iso)
    mixed = write_shards(tmp_path / "mixed", ROWS, 10)
    np.save(mixed / "img_emb" / "img_emb_1.npy", np.ones((10, 3), np.float32))
    with pytest.raises(ValueError, match=r"of one width, got 4 in .*img_emb_0.npy and 3 in .*img_emb_1.npy"):
        sb.export_gallery(mixed, tmp_path / "out", format="fbin")
    words = write_shards(tmp_path / "words", ROWS, 10, {"number": ["1", "x"] * 10})
    with pytest.raises(ValueError, match="ids must be whole numbers in the column 'number', got str 'x'"):
        sb.export_gallery(words, tmp_path / "out", format="fbin", ids="number")


# -- the command -------------------------------------------------------------------------------------


def test_the_command(home, tmp_path, capsys):
    words = [
        "export",
        home / "feats",
        tmp_path / "out",
        "--format",
        "fbin",
        "--mapping",
        "bridge",
        "--metadata",
    ]
    assert command(*words, "--quiet") == 0
    told = capsys.readouterr().out
    assert "12 rows of 192 as fbin" in told and "README.txt" in told
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["files"]) >= {"gallery.fbin", "metadata.parquet", "query_matrix.npy"}
    assert command(*words, "--quiet") == 0 and "finished already, 12 rows" in capsys.readouterr().out
    assert command("export", home / "feats", tmp_path / "out", "--format", "lance") == 2
    assert "must hold an export of the same settings" in capsys.readouterr().err
    assert command("export", home / "none", tmp_path / "new", "--format", "fbin") == 2
    assert "SHARDS must be a folder with img_emb" in capsys.readouterr().err
