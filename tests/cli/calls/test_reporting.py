"""report_shards: the command's page and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import semobridge_ext as sb
from tests.cli.calls.folders import CLASSES
from tests.support.images import command

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


@pytest.mark.slow
def test_report_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    given, words = [home / "feats", home / "bridged"], ["--shots", 1, "--seeds", 2, "--no-text"]
    assert command("report", *given, *words, "--out", tmp_path / "c" / "r.html") == 0
    capsys.readouterr()
    found = sb.report_shards(given, out=tmp_path / "p" / "r.html", shots=[1], seeds=2, text=False)
    assert capsys.readouterr() == ("", "")
    assert list(found["folders"]) == ["feats", "bridged"] and found["images"] == 11
    made = [json.loads((tmp_path / name / "r.json").read_text()) for name in "cp"]
    for one in made:
        one.pop("made")  # the minute
        one.pop("environment")
        for figures in one["folders"].values():
            figures["retrieval"].pop("seconds")
    assert made[0] == made[1]
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "p").iterdir()) and len(names) > 4
    for name in (name for name in names if name.endswith(".csv") and name != "r_timings.csv"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    shown = [(tmp_path / name / "r.html").read_text().count("data:image/") for name in "cp"]
    assert shown[0] == shown[1] >= CLASSES
