"""Damaged and crafted files for every loader, and that the campaign notices loaders that fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.fuzz.attacks import FLIPS, Case
from tests.fuzz.runner import Target, try_all
from tests.support.fresh import Program, fresh_processes
from tests.support.source_tree import ROOT


@pytest.mark.parametrize("limit", [16, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.campaign])])
def test_every_loader(limit: int):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    pytest.importorskip("onnx", reason="needed: pip install onnx")
    code = "import sys\nfrom tests.fuzz.files import main\nsys.exit(main())\n"
    done = fresh_processes("open_clip").run(Program(code, {}, ["--limit", str(limit)]), cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith(" 0 finds")


def _make(folder: Path) -> Path:
    (folder / "file").write_bytes(b"whole")
    return folder / "file"


def _use(path: Path) -> Sequence[torch.Tensor]:
    word = path.read_bytes()
    if word == b"dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"key":
        raise KeyError(word)
    if word == b"unnamed":
        raise ValueError("it must be whole, got less; write it again")
    if word == b"no path":
        raise ValueError("load: it must be whole, got less; write it again")
    if word == b"no remedy":
        raise ValueError(f"load: {path} must be whole, got less")
    if word == b"refused":
        raise ValueError(f"load: {path} must be whole, got less; write it again")
    if word == b"memory":
        torch.ones(56 << 20)
    began = time.process_time()
    while word == b"slow" and time.process_time() - began < 2.2:
        pass
    if word == b"hangs":
        time.sleep(600)
    return [torch.full((3 if word == b"shape" else 2,), float("nan") if word == b"NaN" else 1.0)]


def test_what_hangs_is_ended(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.runner.SILENCE", 2.0)
    cases = [Case("edit", "hangs", lambda: b"hangs")]
    (found,) = try_all(Target("load", "bytes", ("load",), _make, _use), _make(tmp_path), cases)
    assert found == (0, "find", "silent for 2 s")


def test_what_fails_is_found_and_named(tmp_path: Path):
    words = [
        "whole",
        "dies",
        "refused",
        "key",
        "unnamed",
        "no path",
        "no remedy",
        "NaN",
        "shape",
        "memory",
        "slow",
        "whole",
    ]
    cases = [Case("edit", word, lambda word=word: word.encode()) for word in words]
    target = Target("load", "bytes", ("load",), _make, _use)
    done = try_all(target, _make(tmp_path), cases)
    assert [o.case for o in done] == list(range(len(words)))
    good = {"whole": "accepted", "refused": "refused"}
    assert [o.what for o in done] == [good.get(word, "find") for word in words]
    told = dict(zip(words, (o.text for o in done), strict=True))
    case = Case(FLIPS[1], "bit 0", lambda: b"whole")
    (found,) = try_all(target._replace(sealed=True), _make(tmp_path), [case])
    assert found == (0, "find", "a flipped bit was taken")
    for word, text in {
        "dies": "ended with -9",
        "key": "another error: KeyError",
        "unnamed": "names no function",
        "no path": "names no file",
        "no remedy": "names no remedy",
        "NaN": "not finite",
        "shape": "shapes [[3]]",
        "memory": "MB",
        "slow": " s; ",
    }.items():
        assert text in told[word], (word, told[word])
