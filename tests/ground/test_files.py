"""A file is whole or untouched, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from semobridge_ext import _files


def test_all_forms_write_what_they_are_given(tmp_path: Path):
    with _files.replaced(tmp_path / "a") as file:
        file.write(b"one ")
        file.write(b"two")
    _files.write_bytes(tmp_path / "b", b"\x00\xff")
    _files.write_text(str(tmp_path / "c"), "ℓ\n")
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "c").read_bytes() == "ℓ\n".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, kind: type[BaseException]):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(kind), _files.replaced(target) as file:
        file.write(b"half of the new")
        raise kind
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch, step: str):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        _files.write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with _files.replaced(target) as file:
        file.write(b"new")
        file.flush()
        beside = [p.name for p in tmp_path.iterdir() if p != target]
        assert target.read_bytes() == b"old"
        # Folders of shards remove such names after a killed run.
        assert len(beside) == 1 and beside[0].startswith(".file.") and beside[0].endswith(".tmp")
    assert target.read_bytes() == b"new"


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch):
    """A name that is taken, by a link here, is passed over: creation is exclusive."""
    target, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"precious")
    random = [b"\x00" * 8, b"\x01" * 8]
    (tmp_path / f".file.{random[0].hex()}.tmp").symlink_to(victim)
    names = iter(random)
    monkeypatch.setattr(os, "urandom", lambda size: next(names))
    _files.write_bytes(target, b"new")
    assert target.read_bytes() == b"new" and victim.read_bytes() == b"precious"
    assert not target.is_symlink()


def test_names_are_random(tmp_path: Path):
    names = set()
    for _ in range(8):
        with _files.replaced(tmp_path / "file"):
            names |= {p.name for p in tmp_path.iterdir() if p.name != "file"}
    assert len(names) == 8


def test_file_and_folder_are_synced_in_order(tmp_path: Path, monkeypatch):
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def spy_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def spy_replace(source, target) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy_replace)
    _files.write_bytes(tmp_path / "file", b"data")
    assert done == ["file", "rename", "folder"]


def test_file_systems_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch):
    sync = os.fsync

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, "no")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    _files.write_bytes(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"
    number = errno.EIO
    with pytest.raises(OSError, match="no"):
        _files.write_bytes(tmp_path / "file", b"data")


def test_permissions_follow_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        _files.write_bytes(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_missing_folder_is_made_and_one_that_cannot_be_is_named(tmp_path: Path):
    _files.write_bytes(tmp_path / "new" / "folder" / "file", b"data")
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"data"
    with pytest.raises(NotADirectoryError, match="folder/file/below/x"):
        _files.write_bytes(tmp_path / "new" / "folder" / "file" / "below" / "x", b"data")


def test_lines_are_added_and_one_cut_short_stands_alone(tmp_path: Path):
    path = tmp_path / "log"
    for text in ("one", "zwei ℓ"):
        _files.append_line(path, text)
    path.write_bytes(path.read_bytes() + b"cut sho")
    _files.append_line(path, "four")
    assert path.read_bytes() == "one\nzwei ℓ\ncut sho\nfour\n".encode()


# -- what the system refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_refusal_names_the_file_and_not_the_hidden_one(tmp_path: Path, monkeypatch, call: str):
    """Errors of an open file name none, those of a rename name the temporary one."""

    def refuse(*given: object) -> None:
        names = [str(g) for g in given if not isinstance(g, int)]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names[:1])

    if call != "write":
        monkeypatch.setattr(os, call, refuse)
    told = rf"\[Errno {errno.ENOSPC}\] No space left on device: '{tmp_path / 'file'}'$"
    if call == "write":
        limit, told = resource.getrlimit(resource.RLIMIT_FSIZE), rf"too large: '{tmp_path / 'file'}'$"
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limit[1]))
    try:
        with pytest.raises(OSError, match=told):
            _files.write_bytes(tmp_path / "file", b"data")
    finally:
        if call == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_a_log_names_itself(tmp_path: Path, monkeypatch):
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path / 'log'}'$"):
        _files.append_line(tmp_path / "log", "line")


def test_the_first_error_counts(tmp_path: Path, monkeypatch):
    """A disk that went read-only refuses the removal as well."""

    def refuse(*given: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "removal")

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RuntimeError, match="first"), _files.replaced(tmp_path / "file"):
        raise RuntimeError("first")


def test_the_same_tensors_have_the_same_bytes(tmp_path: Path):
    """safetensors leaves the order of the metadata to chance, from one call to the next."""
    metadata = {f"ключ {i}": str(i) for i in range(12)}
    for i in range(3):
        _files.save_tensors(tmp_path / str(i), {"b": torch.ones(3), "a": torch.arange(2)}, metadata)
    first = (tmp_path / "0").read_bytes()
    assert all((tmp_path / str(i)).read_bytes() == first for i in range(3))
    with safe_open(tmp_path / "0", "pt") as file:
        found = file.metadata()
        assert found.pop("checksum").startswith("crc32:") and found == metadata
        assert file.get_tensor("a").tolist() == [0, 1] and file.get_tensor("b").tolist() == [1, 1, 1]
    assert (8 + int.from_bytes(first[:8], "little")) % 8 == 0  # tensors are read where they lie


@pytest.mark.parametrize("name", ["figure.png", "figure.svg", "figure"])
def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path, name: str):
    class Figure:
        """As Pillow does: a part by the descriptor, where there is one, then an error."""

        def savefig(self, file, *, format: str, dpi: float) -> None:
            assert (format, dpi) == (name.partition(".")[2] or "png", 90)
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        _files.write_figure(tmp_path / name, Figure(), dpi=90)
    assert not list(tmp_path.iterdir())
