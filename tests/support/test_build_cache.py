"""The cache of builds: what names an entry, who makes it, and what an interrupted build leaves."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import build_cache
from tests.support.build_cache import digest, kept, remove_stale


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(build_cache, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_content_names_an_entry(tmp_path: Path):
    source = tmp_path / "a.cpp"
    source.write_text("one")
    before = digest(source, "-O1")
    assert digest(source, "-O1") == before
    assert digest(source, "-O2") != before
    assert digest("ab", "c") != digest("a", "bc")
    source.write_text("two")
    assert digest(source, "-O1") != before


def test_an_entry_is_made_once(own_cache: Path):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        (folder / "out").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: kept("thing", ["x"], make), range(4)))
    assert len(made) == 1 and len(set(folders)) == 1
    assert (folders[0] / "out").read_text() == "whole"
    assert kept("thing", ["y"], make) != folders[0] and len(made) == 2


def test_an_interrupted_build_is_made_again(own_cache: Path):
    def fail(folder: Path) -> None:
        (folder / "out").write_text("half")
        raise RuntimeError("the compiler died")

    with pytest.raises(RuntimeError, match="died"):
        kept("thing", ["x"], fail)
    again = kept("thing", ["x"], lambda folder: (folder / "new").write_text("whole"))
    assert [p.name for p in again.iterdir()] == ["new"]


def test_stale_entries_are_removed(own_cache: Path):
    old, new = (kept("thing", [x], lambda folder: None) for x in "xy")
    os.utime(old, (0, 0))
    remove_stale()
    assert not old.exists() and new.exists()
