"""`semobridge-ext demo` as it is asked: options, errors before the work, what is missing, what interrupts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from semobridge_ext import cli
from semobridge_ext.cli.commands import demo


def test_defaults_take_a_part_of_the_largest_set(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "DEFAULT", {"things": 1, "flags": 2})
    figures = tmp_path / "f.json"
    assert cli.main(["demo", "--no-plot", "--seeds", "1", "--shots", "1", "--json", str(figures)]) == 0
    record = json.loads(figures.read_text())
    assert record["sets"]["things"]["classes"] == 12 and record["sets"]["flags"]["classes"] == 6
    out = " ".join(capsys.readouterr().out.split())
    assert "flags (patterns with noise; one class in 2): 6 classes" in out
    assert "things (patterns with noise): 12 classes" in out


def test_all_sets_and_options(small, tmp_path, capsys):
    figures, picture = tmp_path / "f.json", tmp_path / "p.png"
    code = cli.main(
        ["demo", "--set", "all", "--shots", "4", "1", "--seeds", "1", "--prompt", "a {}",
         "--json", str(figures), "--out", str(picture)]
    )  # fmt: skip
    assert code == 0
    out, record = capsys.readouterr().out, json.loads(figures.read_text())
    assert list(record["sets"]) == ["things", "flags"]
    assert record["sets"]["things"]["shots"] == [1, 4]
    assert record["templates"] == ["a {}"]
    assert picture.stat().st_size > 10_000
    assert " ± " not in out


def test_one_set_stands_for_itself(small, tmp_path, capsys):
    assert cli.main(["demo", "--set", "things", "--no-plot", "--seeds", "1", "--shots", "2"]) == 0
    out = capsys.readouterr().out
    assert "accuracy, %" in out and "mean of" not in out


def test_shots_that_no_class_has_are_left_out(small, tmp_path, capsys):
    figures = tmp_path / "f.json"
    words = ["--set", "things", "--no-plot", "--shots", "8", "16", "--seeds", "1", "--json", str(figures)]
    assert cli.main(["demo", *words]) == 0
    record = json.loads(figures.read_text())
    assert record["mean"]["shots"] == [8] and record["sets"]["things"]["shots_left_out"] == [16]
    assert "with at most 8 shots a class" in " ".join(capsys.readouterr().out.split())


def test_small_classes_are_mentioned(small, capsys):
    _, dataset = small
    dataset.train &= ~((dataset.labels == 3) & (torch.arange(len(dataset.labels)) % 2 == 0))
    assert cli.main(["demo", "--set", "things", "--no-plot", "--shots", "8", "--seeds", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of the classes have fewer than 8 shots and give all they have" in out


def test_without_matplotlib_and_optuna(small, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(demo, "has_matplotlib", lambda: False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    picture = tmp_path / "p.png"
    assert cli.main(["demo", "--set", "things", "--seeds", "1", "--shots", "1", "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "SeMoBridge-T" in out and "pip install 'semobridge-ext[plots]'" in out
    assert not picture.exists()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--set", "thing"], ["--set must be one of things, flags or all, got 'thing'", "'things'"]),
        (["--set", "things", "--prompt", "a photo"], ["must contain {}", "a photo"]),
        (["--json", "/no/such/folder/f.json"], ["--json", "/no/such/folder/f.json"]),
        (["--out", "/"], ["--out", "is a folder"]),
        (["--set", "things", "--shots", "10"], ["--shots must be at most 9 for the set 'things'", "got 10"]),
    ],
)
def test_errors_are_one_line(fake_picto, capsys, monkeypatch, argv, parts):
    """And come before the work."""
    monkeypatch.setattr(demo, "load_clip", lambda: pytest.fail("the work began"))
    assert cli.main(["demo", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("semobridge-ext demo: ")
    for part in parts:
        assert part in err


def test_targets_behind_links_and_devices(tmp_path, monkeypatch):
    """A FIFO needs no right to its folder; a link is as good as the folder that it leads to."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "lost").symlink_to(tmp_path / "gone" / "f.json")
    (tmp_path / "found").symlink_to(tmp_path / "f.json")
    demo._check_target("--json", tmp_path / "found")
    with pytest.raises(ValueError, match="which lies in no folder that can be written"):
        demo._check_target("--json", tmp_path / "lost")
    monkeypatch.setattr(os, "access", lambda *_: False)
    demo._check_target("--json", tmp_path / "fifo")
    demo._check_target("--json", Path("/dev/null"))
    with pytest.raises(ValueError, match="which lies in no folder that can be written"):
        demo._check_target("--json", tmp_path / "f.json")


def test_interrupted_picture_leaves_nothing_behind(small, tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    picture = tmp_path / "p.png"
    picture.write_bytes(b"an older picture")

    def interrupt(self, file, **_):
        file.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupt)
    words = ["--set", "things", "--seeds", "1", "--shots", "1", "--out", str(picture)]
    assert cli.main(["demo", *words]) == 130
    assert picture.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [picture]
