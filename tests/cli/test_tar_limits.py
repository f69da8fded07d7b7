"""Compressed tars that unpack to more than they should: refused before that, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semobridge_ext.cli import sources, tar_members, tar_streams
from tests.support.images import command, write
from tests.support.tars import END, header, member

OPEN: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
MIB = 1 << 20
LIMIT = 4 * MIB
TOLD = f"it unpacks to more than the limit of {LIMIT} bytes (--max-tar-bytes)"


@pytest.fixture(params=OPEN)
def pack(request, tmp_path: Path) -> Callable[..., Path]:
    def packed(*parts: bytes, times: int = 1) -> Path:
        path = tmp_path / "a.tar"
        with OPEN[request.param](path, "wb") as file:
            for _ in range(times):
                for part in parts:
                    file.write(part)
        return path

    return packed


def entries(path: Path, limit: int = LIMIT) -> list[tuple[str, bytes | str]]:
    """Path below the tar, and content or the reason against it."""
    source = sources.open_source(
        "extract", str(path), path.parent / "unused", label="none", column=None, max_tar_bytes=limit
    )
    found: list[tuple[str, bytes | str]] = []
    for item in source.items(0):
        try:
            found.append((item.path.removeprefix(f"{path}").lstrip("/"), item.read().read()))
        except ValueError as error:
            found.append((item.path.removeprefix(f"{path}").lstrip("/"), str(error)))
    return found


def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that each step unpacked."""
    sizes, some = [], tar_streams.Unpacked._some

    def counted(self: tar_streams.Unpacked, size: int) -> bytes:
        data = some(self, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(tar_streams.Unpacked, "_some", counted)
    return sizes


# -- bombs -------------------------------------------------------------------------------------------


def test_a_member_beyond_the_limit_is_not_unpacked(pack, monkeypatch):
    """Its header says how long it is: nothing of it is touched. One that is too large alone is named."""
    path = pack(member("a.png", b"first"), header("b.txt", 64 * MIB), bytes(64 * MIB))
    sizes = unpacked(monkeypatch)
    last = f"the tar is read no further: {TOLD}"
    assert entries(path) == [("a.png", b"first"), ("b", "the sample holds no image"), ("", last)]
    assert sum(sizes) < 8192


def test_members_that_add_up(pack, monkeypatch):
    """Each is within its own limit; none behind the sum is read, and those before it are."""
    path = pack(*(member(f"{i}.png", bytes(MIB)) for i in range(32)), END)
    sizes = unpacked(monkeypatch)
    found = entries(path)
    assert found[:3] == [(f"{i}.png", bytes(MIB)) for i in range(3)]
    assert found[3:] == [("3.png", TOLD), ("", f"the tar is read no further: {TOLD}")]
    assert sum(sizes) <= LIMIT
    assert [f for f in entries(path, 33 * MIB) if isinstance(f[1], str)] == []  # the limit alone refuses


def test_headers_without_end(pack):
    """No member has any data; the headers themselves are the bomb."""
    path = pack(header("a.png", 0) * 256, times=64)  # 8 MiB
    assert path.stat().st_size < 100_000
    found = entries(path, MIB)
    assert len(found) < 4096 and found[-1] == (
        "",
        f"the tar is read no further: {TOLD}".replace(str(LIMIT), str(MIB)),
    )


def test_memory(pack):
    """64 MiB in members that are skipped pass in pieces; the window of an .xz is 8 MiB."""
    path = pack(*(member(f"{i}.bin", bytes(8 * MIB)) for i in range(8)), member("a.png", b"it"), END)
    tracemalloc.start()
    with tar_members.Archive(str(path)) as tar:
        names = [m.name for m in tar.members()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names[-1] == "a.png" and peak < 16 * MIB, peak


def test_an_xz_that_asks_for_memory(tmp_path: Path):
    """Its dictionary is part of the file: 1.5 GiB are no larger to write down than 1 MiB."""
    path = tmp_path / "a.tar"
    big = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    whole = bytearray(lzma.compress(member("a.png", b"it") + END, check=lzma.CHECK_NONE, filters=big))
    path.write_bytes(whole)
    assert entries(path) == [("a.png", b"it")]
    whole = bytearray(whole)
    at = whole.index(b"\x21\x01", 12) + 2  # the filter, its one byte: of the size of the dictionary
    whole[at] = 39  # 3 GiB
    block = whole[12 : 12 + 4 * (whole[12] + 1)]
    whole[12 + len(block) - 4 : 12 + len(block)] = zlib.crc32(whole[12 : 12 + len(block) - 4]).to_bytes(
        4, "little"
    )
    path.write_bytes(whole)
    told = "the tar is read no further: unpacking it takes more than 256 MiB of memory"
    assert entries(path) == [("", told)]


def test_empty_streams_without_end(tmp_path: Path):
    """Twenty bytes that unpack to nothing, again and again: no limit of bytes is reached by them."""
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(b"", mtime=0) * 100_000 + gzip.compress(member("a.png", b"it") + END))
    began = time.process_time()
    assert entries(path) == [("a.png", b"it")]
    assert time.process_time() - began < 5


def test_zstd_is_named(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    told = "the tar is damaged here: it is compressed with zstd, which is not read; compress it with gzip"
    assert entries(path) == [("", told)]


# -- what is within the limit ------------------------------------------------------------------------


def test_the_bytes_against_pythons_readers(pack):
    noise = random.Random(5)
    whole = b"".join(
        noise.randbytes(noise.randrange(70_000)) + bytes(noise.randrange(70_000)) for _ in range(20)
    )
    path = pack(whole)
    with open(path, "ab") as file:  # two streams, with zeros between them
        file.write(bytes(8) + path.read_bytes())
    want = whole * 2
    file, compressed = tar_streams.opened(str(path), len(want))
    assert compressed
    at = 0
    while at < len(want):
        step = noise.choice([1, 511, 512, 100_000, 1_500_000])
        step = min(step, len(want) - at)
        if noise.random() < 0.3:
            file.seek(at := at + step)
        else:
            assert file.read(step) == want[at : at + step]
            at += step
        assert file.tell() == at
    with pytest.raises(tar_streams.TooLarge):
        file.read(1)
    with pytest.raises(ValueError, match="read forward"):
        file.seek(0)
    file.close()


def test_the_limit_itself_is_read(pack):
    data = member("a.png", b"it") + END
    assert entries(pack(data), len(data)) == [("a.png", b"it")]
    assert entries(pack(data), 512)[-1][1].startswith("the tar is read no further")  # type: ignore[union-attr]


def test_extract_lists_the_bomb(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    image = write(tmp_path / "images", 1, 1)[0].read_bytes()
    bomb = member("a.png", image) + header("b.txt", 64 * MIB) + bytes(64 * MIB) + END
    (tmp_path / "a.tar").write_bytes(gzip.compress(bomb))
    words = ["extract", tmp_path / "a.tar", tmp_path / "out", "--quiet", "--workers", 0]
    assert command(*words, "--max-tar-bytes", LIMIT) == 0
    assert "1 features of 3 images, 2 corrupt" in capsys.readouterr().out
    lines = (tmp_path / "out" / "corrupt.tsv").read_text().splitlines()
    assert lines[-1].endswith(f"a.tar\tValueError: the tar is read no further: {TOLD}")
    assert command(*words) == 2  # a limit decides what is read: it is a setting of the run
    assert "made with other max_tar_bytes" in capsys.readouterr().err
