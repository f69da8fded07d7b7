"""What stands at the path when a file is written: links, devices, modes, and what killed writers left."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from semobridge_ext import _files
from tests.support.fresh import Program, Started, run_fresh, start_fresh

WRITER = """
import sys
from semobridge_ext import _files
with _files.replaced(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Started]:
    """Starts a process that is in the midst of writing."""

    def start(target: Path) -> Started:
        child = start_fresh(Program(WRITER, {}, [str(target)]), tmp_path_factory.mktemp("writer") / "pipes")
        assert child.stdout.readline() == "open\n"
        return child

    return start


# -- what killed writers left --------------------------------------------------------------------------


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path, writer):
    target, other = tmp_path / "file", tmp_path / "other"
    for path in (target, target, other):
        assert writer(path).end(kill=True) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the second writer removed what the first one left
    _files.write_bytes(target, b"new")
    left = [p.name for p in tmp_path.iterdir() if p != target]
    assert len(left) == 1 and left[0].startswith(".other.")  # of another target
    _files.write_bytes(other, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


def test_a_living_writer_loses_nothing(tmp_path: Path, writer):
    target = tmp_path / "file"
    living = writer(target)
    temporary = next(tmp_path.iterdir())
    _files.write_bytes(target, b"quick")
    assert temporary.exists() and target.read_bytes() == b"quick"
    assert living.end() == 0
    assert target.read_bytes() == b"half" and list(tmp_path.iterdir()) == [target]


def test_names_that_only_look_alike_stay(tmp_path: Path):
    hexadecimal = "0123456789abcdef"
    kept = [
        ".filed.0123456789abcdef.tmp", f".file.{hexadecimal}0.tmp", f"file.{hexadecimal}.tmp", ".file.tmp",
        f".file.{hexadecimal}.tmp.bak", f".file.{'g' * 16}.tmp", f".fi.le.{hexadecimal}.tmp",
    ]  # fmt: skip
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f".file.{hexadecimal}.tmp").touch()
    os.mkfifo(tmp_path / ".file.1123456789abcdef.tmp")
    _files.write_bytes(tmp_path / "file", b"")
    want = sorted([*kept, "file", ".file.1123456789abcdef.tmp"])
    assert sorted(p.name for p in tmp_path.iterdir()) == want


def test_a_name_with_a_line_break(tmp_path: Path):
    target = tmp_path / "a\nb"
    (tmp_path / f".{target.name}.0123456789abcdef.tmp").touch()
    _files.write_bytes(target, b"x")
    assert list(tmp_path.iterdir()) == [target]


def test_a_temporary_file_taken_for_left_over_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another writer looks at it after it was created and before it is locked."""
    plain, seen = _files.try_lock, []

    def late(handle: int) -> bool | None:
        if not seen:
            seen.append(next(tmp_path.iterdir()))
            seen[0].unlink()
        return plain(handle)

    monkeypatch.setattr(_files, "try_lock", late)
    _files.write_bytes(tmp_path / "file", b"data")
    assert seen and (tmp_path / "file").read_bytes() == b"data"


# -- links and devices ---------------------------------------------------------------------------------


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    inode = (tmp_path / "real" / "file").stat().st_ino
    (tmp_path / "first").symlink_to("real/file")
    (tmp_path / "second").symlink_to(tmp_path / "first")
    (tmp_path / "to come").symlink_to("real/new")
    _files.write_bytes(tmp_path / "second", b"new")
    _files.write_bytes(tmp_path / "to come", b"first")
    assert all((tmp_path / name).is_symlink() for name in ("first", "second", "to come"))
    assert (tmp_path / "real" / "file").read_bytes() == b"new"
    assert (tmp_path / "real" / "file").stat().st_ino != inode  # by a rename
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["file", "new"]


def test_a_failing_writer_leaves_what_a_link_leads_to(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(RuntimeError), _files.replaced(tmp_path / "link") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_a_fifo_is_written_into(tmp_path: Path):
    path, found = tmp_path / "fifo", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    _files.write_bytes(path, b"through")
    reader.join(timeout=20)
    assert found == [b"through"] and stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rename must not reach the machine's own devices."""

    def fail(*_: object) -> None:
        raise AssertionError("a device was about to be replaced")

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.usefixtures("no_rename")
def test_a_device_is_written_into(tmp_path: Path):
    _files.write_bytes("/dev/null", b"gone")
    (tmp_path / "null").symlink_to("/dev/null")
    _files.write_bytes(tmp_path / "null", b"gone")
    assert (tmp_path / "null").is_symlink() and stat.S_ISCHR((tmp_path / "null").stat().st_mode)


# By a link of its own: a wrong rename must not reach the machine's /dev/stdout.
PRINTER = """
import os, sys
from semobridge_ext import _files
link, path, kind = sys.argv[1:]
read = None
if kind == "pipe":
    read, stdout = os.pipe()
else:
    stdout = os.open(path, os.O_WRONLY | (os.O_APPEND if kind == "appended file" else os.O_TRUNC))
plain = os.dup(1)
os.dup2(stdout, 1)
os.close(stdout)
sys.stdout = open(1, "w", closefd=False)  # holds back what is printed, whatever PYTHONUNBUFFERED says
print("before")
_files.write_text(link, "figures\\n")
print("after")
sys.stdout.flush()
os.dup2(plain, 1)
os.write(1, os.read(read or os.open(path, os.O_RDONLY), 4096))
"""


@pytest.mark.parametrize("kind", ["pipe", "file", "appended file"])
def test_stdout_keeps_the_order(tmp_path: Path, kind: str):
    path, link = tmp_path / "out", tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")  # as /dev/stdout
    path.write_text("old\n")
    (done,) = run_fresh([Program(PRINTER, {}, [str(link), str(path), kind])])
    assert done.returncode == 0, done.stderr
    assert link.is_symlink() and not list(tmp_path.glob(".*"))
    assert done.stdout == ("old\n" if kind == "appended file" else "") + "before\nfigures\nafter\n"


def test_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        _files.write_bytes(tmp_path / "folder", b"data")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


# -- modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755, 0o444])
def test_an_existing_file_keeps_its_mode(tmp_path: Path, mode: int):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    for name in ("file", "link"):
        _files.write_bytes(tmp_path / name, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"


def test_the_mode_is_there_before_the_data(tmp_path: Path):
    """A private file's new content is at no moment readable to others."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with _files.replaced(path):
        temporary = next(p for p in tmp_path.iterdir() if p != path)
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
