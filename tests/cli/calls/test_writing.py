"""extract and map_shards: the command's files to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.cli import models
from tests.cli.calls.folders import FEW, SHARD, files, stored
from tests.support.assertions import assert_close
from tests.support.images import command

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def test_extract_writes_the_commands_files_and_is_silent(home: Path, tmp_path: Path, capsys) -> None:
    found = sb.extract(home / "images", str(tmp_path / "feats"), **FEW)
    assert files(tmp_path / "feats") == files(home / "feats")
    assert found.path == tmp_path / "feats" and not found.finished_already
    assert (found.inputs, found.records, found.corrupt, found.ignored) == (12, 11, 1, 0)
    again = sb.extract(home / "images", tmp_path / "feats", **FEW)
    assert again == found._replace(finished_already=True)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_call_goes_on(home: Path, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    calls, plain = [], models.rows_of

    def interrupted(*args: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(models, "rows_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sb.extract(home / "images", tmp_path / "feats", **FEW)
    assert not (tmp_path / "feats" / "summary.json").exists()
    with pytest.raises(ValueError, match=r"^read_shards: shards must be finished, got"):
        sb.read_shards(tmp_path / "feats")
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.extract(home / "images", tmp_path / "feats", **FEW, progress=True)
    assert caplog.messages == [f"{tmp_path / 'feats'}: {SHARD} inputs are done, going on"]
    assert found.resumed_at == SHARD and found.records == 11
    told = capsys.readouterr()
    assert told.out == "" and "extract:" in told.err and "12/12" in told.err  # the bar, and nothing else
    want = files(home / "feats")
    want["summary.json"] |= {"resumed_at": SHARD}
    assert files(tmp_path / "feats") == want


def test_map_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    """By name, from a file, and from the object that the file was saved from."""
    named = sb.map_shards(home / "feats", tmp_path / "named", mapping="bridge")
    assert files(tmp_path / "named") == files(home / "bridged")
    assert (named.records, named.mapping, named.options["rank"]) == (11, "bridge", 150)
    fitted = sb.LinearMap.centering(torch.linspace(0, 1, 192))
    fitted.save(tmp_path / "linear map.safetensors")
    words = ["--mapping", tmp_path / "linear map.safetensors", "--dtype", "float32", "--quiet"]
    assert command("map", home / "feats", tmp_path / "by-command", *words) == 0
    capsys.readouterr()
    for name, mapping in (("file", tmp_path / "linear map.safetensors"), ("object", fitted)):
        found = sb.map_shards(home / "feats", tmp_path / name, mapping=mapping, dtype="float32")
        assert files(tmp_path / name) == files(tmp_path / "by-command")
        assert found.mapping == "linear map" and not found.finished_already
    assert sb.map_shards(
        home / "feats", tmp_path / "object", mapping=fitted, dtype="float32"
    ).finished_already
    assert capsys.readouterr() == ("", "")
    rows = torch.from_numpy(stored(home / "feats")).double() - torch.linspace(0, 1, 192).double()
    got = torch.from_numpy(stored(tmp_path / "object"))
    assert_close(got, normalize(rows, dim=1), "written", dtype=torch.float32)


def test_a_table_is_the_commands_table(home: Path, tmp_path: Path) -> None:
    words = ["--mapping", "bridge", "--format", "parquet", "--quiet"]
    assert command("map", home / "feats", tmp_path / "by-command", *words) == 0
    sb.map_shards(home / "feats", tmp_path / "table", mapping="bridge", format="parquet")
    assert files(tmp_path / "table") == files(tmp_path / "by-command")
    found, plain = sb.read_shards(tmp_path / "table"), sb.read_shards(home / "bridged")
    assert torch.equal(found.features, plain.features) and found.columns == plain.columns
    hits = [sb.search(place, plain.features[:2], k=3) for place in (tmp_path / "table", home / "bridged")]
    assert torch.equal(hits[0].indices, hits[1].indices) and hits[0].records == hits[1].records


@pytest.mark.slow
def test_texts_as_a_list_are_those_of_a_file(home: Path, tmp_path: Path) -> None:
    texts = [f"a drawing of {i}" for i in range(6)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    words = ["--mapping", "pca", "--texts", tmp_path / "texts.txt", "--components", 4, "--quiet"]
    assert command("map", home / "feats", tmp_path / "file", *words) == 0
    sb.map_shards(home / "feats", tmp_path / "list", mapping="pca", texts=texts, components=4)
    assert files(tmp_path / "list") == files(tmp_path / "file")
