"""read_shards, retrieve and search: the rows that are stored, the command's figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.cli.calls.folders import stored
from tests.support.assertions import assert_close, assert_figures
from tests.support.images import command

pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def test_read_shards(home: Path) -> None:
    found = sb.read_shards(home / "feats")
    want = stored(home / "feats")
    assert found.features.dtype is torch.float16
    np.testing.assert_array_equal(found.features.numpy(), want)
    tables = [pq.read_table(p).to_pylist() for p in sorted((home / "feats" / "metadata").iterdir())]
    assert found.records == [record for table in tables for record in table]
    assert found.columns["label"] == [record["label"] for record in found.records]
    unit = sb.read_shards(str(home / "feats"), normalize=True).features
    assert_close(unit, normalize(torch.from_numpy(want).double(), dim=1), "written", dtype=torch.float32)


def test_read_shards_of_another_program(tmp_path: Path) -> None:
    """Texts, of two dtypes, with columns that some shards lack, and a shard without rows."""
    import pyarrow as pa

    parts = [np.eye(3, 4, dtype=np.float16), np.empty((0, 0), np.float16), np.full((2, 4), 0.1, np.float32)]
    columns = [
        {"caption": list("abc"), "m": [7, 8, 9]},
        {"caption": []},
        {"caption": list("de"), "n": [1, 2]},
    ]
    for name in ("text_emb", "metadata"):
        (tmp_path / name).mkdir()
    for i, (rows, table) in enumerate(zip(parts, columns, strict=True)):
        np.save(tmp_path / "text_emb" / f"text_emb_{i}.npy", rows)
        pq.write_table(pa.table(table), tmp_path / "metadata" / f"metadata_{i}.parquet")
    for place in (tmp_path, tmp_path / "text_emb"):
        found = sb.read_shards(place)
        assert found.features.dtype is torch.float32
        np.testing.assert_array_equal(found.features[:3].numpy(), parts[0])
        np.testing.assert_array_equal(found.features[3:].numpy(), parts[2])
        assert found.columns["caption"] == list("abcde")
        assert found.columns["m"] == [7, 8, 9, None, None] and found.columns["n"] == [None, None, None, 1, 2]
    np.save(tmp_path / "text_emb" / "text_emb_2.npy", np.ones((2, 5), np.float32))
    with pytest.raises(
        ValueError, match=r"^read_shards: shards must be of one width, got 4 in .*_0.npy and 5"
    ):
        sb.read_shards(tmp_path)


def test_retrieve_gives_the_commands_figures(home: Path, tmp_path: Path, capsys) -> None:
    words = ["--recall-at", 1, 3, "--json", tmp_path / "r.json"]
    assert command("retrieve", home / "feats", home / "bridged", *words) == 0
    capsys.readouterr()
    want = json.loads((tmp_path / "r.json").read_text())
    found = sb.retrieve([home / "feats", home / "bridged"], recall_at=(1, 3))
    assert capsys.readouterr() == ("", "")
    alone = sb.retrieve(home / "feats", recall_at=[1, 3])
    for one in (*want.values(), *found.values(), alone):
        one.pop("seconds")
    assert found == want and alone == want[str(home / "feats")]
    rows = normalize(torch.from_numpy(stored(home / "feats")).double(), dim=1)
    codes = sb.read_shards(home / "feats").columns["label"]
    scores = (rows @ rows.T).fill_diagonal_(-torch.inf)
    hits = [codes[i] == codes[int(j)] for i, j in enumerate(scores.argmax(dim=1))]
    assert_figures(alone["Recall@1"], sum(hits) / len(hits), "metric", dtype=torch.float32)
    both = sb.retrieve([home / "feats", home / "bridged"], together=True, queries=home / "feats")
    assert both["gallery"] == 22 and set(both["shares"]) == {str(home / "feats"), str(home / "bridged")}


def test_search_finds_what_the_command_finds(home: Path, tmp_path: Path, capsys) -> None:
    image = home / "images" / "class_01" / "001.png"
    words = ["--text", "a flag", "a star", "--image", image, "-k", 4, "--json", tmp_path / "hits.json"]
    assert command("search", home / "bridged", *words) == 0
    capsys.readouterr()
    found = sb.search(home / "bridged", text=["a flag", "a star"], image=image, k=4)
    assert capsys.readouterr() == ("", "")
    for scores, records, row in zip(
        found.scores, found.records, json.loads((tmp_path / "hits.json").read_text()), strict=True
    ):
        assert [hit["path"] for hit in row["hits"]] == [record["image_path"] for record in records]
        assert [hit["score"] for hit in row["hits"]] == scores.tolist()
    assert found.records[2][0] == {"image_path": str(image), "label": "class_01"}


def test_search_by_features(home: Path) -> None:
    rows = sb.read_shards(home / "feats").features
    unit = normalize(rows.double(), dim=1)
    want = (unit[:3] @ unit.T).topk(5, dim=1)
    for given in (rows[:3], 7 * rows[:3].float().numpy()):  # lengths mean nothing
        found = sb.search(home / "feats", given, k=5)
        assert_close(found.scores, want.values, "written", dtype=torch.float32)
        assert torch.equal(found.indices, want.indices)
    paths = sb.read_shards(home / "feats").columns["image_path"]
    got = [[record["image_path"] for record in records] for records in found.records]
    assert got == [[paths[i] for i in row] for row in want.indices.tolist()]
    assert sb.search(home / "feats", rows[:1], k=99).scores.shape == (1, 11)
