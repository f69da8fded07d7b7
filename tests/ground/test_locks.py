"""A lock is held by one run, names it, and ends with it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from semobridge_ext import _locks
from tests.support.fresh import Program, Started, start_fresh

CHILD = """
import sys
from semobridge_ext import _locks
with _locks.held("run", "OUT", "thing", sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Another process that holds the lock until its stdin ends."""
    folder = tmp_path_factory.mktemp("other") / "pipes"
    child = start_fresh(Program(CHILD, {}, [str(tmp_path / "lock")]), folder)
    assert child.stdout.readline() == "held\n"
    yield child
    child.end(kill=True)


def test_a_refusal_names_the_other(tmp_path: Path, other: Started):
    host = re.escape(socket.gethostname())
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    words = rf"^run: OUT must belong to one run, got thing, which process {other.pid} on {host} has been "
    with (
        pytest.raises(ValueError, match=words + f"writing since {since}; wait for it or"),
        _locks.held("run", "OUT", "thing", tmp_path / "lock"),
    ):
        pass
    assert json.loads((tmp_path / "lock").read_text())["pid"] == other.pid  # the refused one changed nothing
    assert other.end() == 0 and not (tmp_path / "lock").exists()
    with _locks.held("run", "OUT", "thing", tmp_path / "lock"):
        pass


def test_waiting(tmp_path: Path, other: Started, monkeypatch):
    """For a short block: it has its turn when the other ends, and a refusal when that takes too long."""
    waited: list[float] = []

    def ends(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            other.end()

    monkeypatch.setattr(_locks.time, "sleep", ends)
    with (
        pytest.raises(ValueError, match="thing, which process"),
        _locks.held("run", "OUT", "thing", tmp_path / "lock"),
    ):
        pass
    assert not waited
    with _locks.held("run", "OUT", "thing", tmp_path / "lock", wait=60.0):
        assert len(waited) == 3 and json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_waiting_ends(tmp_path: Path, other: Started):
    with (
        pytest.raises(ValueError, match="thing, which process"),
        _locks.held("run", "OUT", "thing", tmp_path / "lock", wait=0.05),
    ):
        pass


def test_a_lock_that_is_not_needed(tmp_path: Path, monkeypatch):
    """On a file system without locks."""
    monkeypatch.setattr(_locks, "try_lock", lambda handle: None)
    with _locks.held("run", "OUT", "thing", tmp_path / "lock", needed=False):
        pass
    with (
        pytest.raises(OSError, match="must lie on a file system with locks"),
        _locks.held("run", "OUT", "thing", tmp_path / "lock"),
    ):
        pass


def test_a_killed_run_holds_nothing(tmp_path: Path, other: Started):
    assert other.end(kill=True) == -signal.SIGKILL
    assert (tmp_path / "lock").exists()
    with _locks.held("run", "OUT", "thing", tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_one_process_does_not_hold_it_twice(tmp_path: Path):
    path = tmp_path / "lock"
    with _locks.held("run", "OUT", "thing", path):
        with (
            pytest.raises(ValueError, match=f"process {os.getpid()} on"),
            _locks.held("run", "OUT", "thing", path),
        ):
            pass
        assert path.exists()


def test_a_failing_block_lets_go(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), _locks.held("run", "OUT", "thing", tmp_path / "lock"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_lock_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between opening and locking, the other run ends and removes its file: that inode locks nothing."""
    path, plain, calls = tmp_path / "lock", _locks.try_lock, []

    def late(handle: int) -> bool | None:
        if not calls:
            path.unlink()
        calls.append(handle)
        return plain(handle)

    monkeypatch.setattr(_locks, "try_lock", late)
    with _locks.held("run", "OUT", "thing", path):
        assert len(calls) == 2 and path.exists()
        with (
            pytest.raises(ValueError, match="must belong to one run"),
            _locks.held("run", "OUT", "thing", path),
        ):
            pass


def test_a_forked_child_keeps_nothing(tmp_path: Path):
    """Workers outlive a killed parent for seconds; its lock must not."""
    path = tmp_path / "lock"
    read, write = os.pipe()
    with _locks.held("run", "OUT", "thing", path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent is through
            os._exit(0)
    with _locks.held("run", "OUT", "thing", path):
        assert path.exists()
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_locks, "try_lock", lambda handle: None)
    with (
        pytest.raises(OSError, match="must lie on a file system with locks, got thing"),
        _locks.held("run", "OUT", "thing", tmp_path / "lock"),
    ):
        pass
