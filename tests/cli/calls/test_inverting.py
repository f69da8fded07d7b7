"""invert_shards: the command's file to the byte, after an interruption too."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from tests.cli.calls.folders import files
from tests.support.images import command

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def inverted(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def test_invert_shards_writes_the_commands_file(home: Path, tmp_path: Path, capsys) -> None:
    words = ["--steps", 3, "--tokens", 2, "--record-steps", 1, 2, "--seed", 4, "--limit", 7, "--quiet"]
    assert command("invert", home / "feats", tmp_path / "c.safetensors", *words) == 0
    capsys.readouterr()
    given = {"model": "picto", "steps": 3, "tokens": 2, "record_steps": (1, 2), "seed": 4, "limit": 7}
    found = sb.invert_shards(home / "feats", tmp_path / "p.safetensors", **given)
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert found.path == tmp_path / "p.safetensors" and found.records == 7
    kept = inverted(found.path)
    for name in ("tokens", "features", "steps_done"):
        assert torch.equal(getattr(found.inversion, name), kept[name])
    assert kept["tokens"].shape == (7, 2, 192) and list(found.inversion.recorded) == [1, 2]
    again = sb.invert_shards(str(home / "feats"), str(tmp_path / "p.safetensors"), **given)
    assert torch.equal(again.inversion.tokens, kept["tokens"])
    assert capsys.readouterr() == ("", "")


def test_invert_shards_fits_a_map_and_writes_a_table(
    home: Path, tmp_path: Path, capsys, caplog, monkeypatch
) -> None:
    # What both leave to the library, so that both train as long.
    monkeypatch.setitem(sb.InversionMap.fit.__func__.__wrapped__.__kwdefaults__, "train_steps", 30)
    given = {"model": "picto", "steps": 1, "pilots": 4, "format": "parquet"}
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.invert_shards(home / "feats", tmp_path / "p", start=tmp_path / "p.map", **given)
    assert capsys.readouterr() == ("", "")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{tmp_path / 'p.map'}: InversionMap(")
    words = ["--steps", 1, "--pilots", 4, "--format", "parquet", "--start", tmp_path / "c.map", "--quiet"]
    assert command("invert", home / "feats", tmp_path / "c", *words) == 0
    assert (tmp_path / "p.map").read_bytes() == (tmp_path / "c.map").read_bytes()
    assert files(tmp_path / "p") == files(tmp_path / "c")
    rows = sb.read_shards(found.path)
    assert torch.equal(rows.features, found.inversion.features)
    assert rows.columns["label"] == sb.read_shards(home / "feats").columns["label"]


def test_an_interrupted_inversion_goes_on(home: Path, tmp_path: Path, monkeypatch) -> None:
    from semobridge_ext.inversion import invert

    given = {"model": "picto", "steps": 2, "batch_size": 4}
    whole = sb.invert_shards(home / "feats", tmp_path / "whole.safetensors", **given)
    plain, calls = invert.run_chunk, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(invert, "run_chunk", interrupted)
        with pytest.raises(KeyboardInterrupt, match="finished chunks are in"):
            sb.invert_shards(home / "feats", tmp_path / "out.safetensors", **given)
    assert not (tmp_path / "out.safetensors").exists()
    sb.invert_shards(home / "feats", tmp_path / "out.safetensors", **given)
    assert (tmp_path / "out.safetensors").read_bytes() == whole.path.read_bytes()
