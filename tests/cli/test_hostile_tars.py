"""Tars from strangers: refused members are single entries with a reason, and nothing hangs or crashes."""

from __future__ import annotations

import gzip
import io
import random
import re
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semobridge_ext.cli import sheet, sources, tar_streams
from tests.support.images import command, write
from tests.support.tars import END, header, member, padded, summed

SECONDS = 10  # for one small archive


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"still reading after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


# -- writing what tarfile would not --------------------------------------------------------------------


def binary(size: int) -> bytes:
    """A size in base 256, as GNU tar writes those that eleven octal digits cannot hold."""
    return (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")


def pax(**records: str) -> bytes:
    data = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return member("pax", data, b"x")


def sparse_map(number: bytes) -> bytes:
    head = pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name="b.png")
    return head + member("b.png", number)


BEFORE, AFTER = member("a.png", b"first"), member("z.png", b"last")
RED = bytearray(header("b.png", 4))
RED[482] = 1


def entries(path: Path, **options: int) -> list[tuple[str, bytes | str]]:
    """Path below the tar, and content or the reason against it."""
    source = sources.open_source(
        "extract", str(path), path.parent / "unused", label="none", column=None, **options
    )
    found = []
    for item in source.items(0):
        name = item.path.removeprefix(f"{path}").lstrip("/")
        try:
            content = item.read().read()
            item.fields()
            found.append((name, content))
        except Exception as error:  # as the decoder has it: the reason becomes a line of corrupt.tsv
            found.append((name, str(error)))
        assert len(found) < 20
    return found


# What lies between two sound members, and the one entry that comes of it; LOST: the last member too.
LOST = object()
MIDDLE: dict[str, tuple[bytes, str, str, object]] = {
    "negative size": (header("b.png", binary(-512)), "", "b.png has a size of -512 bytes", LOST),
    "negative octal": (header("b.png", b"-1000\0"), "", "size of -512", LOST),
    "size 0xfff": (header("b.png", b"\xff" * 12), "", "size of -1 bytes", LOST),
    "negative in pax": (pax(size="-1024") + member("b.png"), "", "b.png has a size of -1", LOST),
    "negative long name": (header("././@LongLink", binary(-512), b"L"), "", "size of -512", LOST),
    "negative extended": (header("pax", binary(-512), b"x"), "", "size of -512", LOST),
    "astronomic size": (header("b.png", binary(1 << 80)), "", "size of 1208925819614629174706176", LOST),
    "size beyond the end": (header("b.png", 1 << 32), "b.png", "more than the limit", LOST),
    "garbage header": (b"\xa5" * 512, "", "no number in a header|no header of a tar at byte 1024", LOST),
    "wrong sum": (member("b.png").replace(b"b.png", b"c.png", 1), "", "no header of a tar at", LOST),
    "no number": (header("b.png", b"zz\0"), "", "no number in a header: b'zz", LOST),
    "hard link": (header("b.png", 0, b"1"), "b.png", "it is a hard link", None),
    "hard link with a size": (header("b.png", 512, b"1"), "b.png", "it is a hard link", None),
    "symbolic link": (header("b.png", 0, b"2"), "b.png", "it is a symbolic link", None),
    "link without ending": (header("README", 0, b"2"), "README", "it is a symbolic link", None),
    "character device": (header("b.png", 0, b"3"), "b.png", "it is a character device", None),
    "block device": (header("b", 0, b"4"), "b", "it is a block device", None),
    "pipe": (header("b.png", 0, b"6"), "b.png", "it is a pipe", None),
    "unknown kind": (member("b.png", b"data", b"Q"), "b.png", "it is of kind b'Q'", None),
    "old sparse": (member("b.png", b"data", b"S"), "b.png", "it is a sparse file", None),
    "old sparse with maps": (
        summed(RED[:156] + bytearray(b"S") + RED[157:]) + bytes(504) + b"\1" + bytes(7) + bytes(512)
        + padded(b"data"), "b.png", "it is a sparse file", None,
    ),
    "sparse": (sparse_map(b"1\n0\n4\n" + bytes(506) + b"data"), "b.png", "it is a sparse file", None),
    "sparse without end": (sparse_map(b"9" * 400), "b.png", "it is a sparse file", None),
    "newline": (member("b\nc.png"), r"b\nc.png", "holds control characters", None),
    "escape": (member("b\x1b[2J.png"), r"b\x1b[2J.png", "holds control characters", None),
    "next line": (member("b\x85c.png"), r"b\x85c.png", "holds control characters", None),
    "newline in pax": (pax(path="b\n/etc/x.png") + member("b"), r"b\n/etc/x.png", "control", None),
    "absolute": (member("/b.png"), "b.png", "leaves the tar", None),
    "above": (member("../b.png"), "../b.png", "leaves the tar", None),
    "large": (member("b.png", bytes(3000)), "b.png", r"3000 bytes, more than the limit of 2000", None),
    "large caption": (member("b.png") + member("b.txt", bytes(3000)), "b.txt", "3000 bytes, more", None),
    "large extended header": (
        header("pax", 2 << 20, b"x") + bytes(2 << 20) + member("b.png"), "b.png",
        "its extended header has 2097152 bytes", None,
    ),
    "large long name": (
        header("././@LongLink", 2 << 20, b"L") + bytes(2 << 20) + member("b.png"), "b.png",
        "its extended header has", None,
    ),
    "pax without length": (member("pax", b"x path=b\n", b"x") + member("b.png"), "b.png", "damaged", None),
    "pax of length zero": (member("pax", b"0 path=b\n", b"x") + member("b.png"), "b.png", "damaged", None),
    "pax too long": (member("pax", b"999 path=b\n", b"x") + member("b.png"), "b.png", "damaged", None),
    "no image": (member("b.txt"), "b", "holds no image", None),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "tgz"])
@pytest.mark.parametrize("name", MIDDLE)
def test_hostile_member(name: str, compressed: bool, tmp_path: Path):
    middle, where, words, follows = MIDDLE[name]
    data = BEFORE + middle + AFTER + END
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(data) if compressed else data)
    found = entries(path, max_member_bytes=2000)
    assert found[0] == ("a.png", b"first")
    told = [f for f in found[1:] if f[0] != "z.png"]
    assert told[0][0] == where, found
    assert re.search(words, str(told[0][1])), told
    if follows is LOST:
        assert found[-1][0] == "" and "damaged here" in found[-1][1] and len(told) == 1 + (where != "")
    else:
        assert found[2:] == [("z.png", b"last")]


@pytest.mark.parametrize("keep", [0, 1, 100, 511, 512, 514, 1024, 1536, 1540, 2047, 2048, 3000])
def test_cut_archives(keep: int, tmp_path: Path):
    """What is whole before the cut is read, what is cut is named; 1024 + k·1024 bytes are k whole members."""
    path = tmp_path / "a.tar"
    whole = BEFORE + member("b.png", b"second") + AFTER + END
    path.write_bytes(whole[:keep])
    found = entries(path)
    sound = [f for f in found if isinstance(f[1], bytes)]
    contents = [("a.png", b"first"), ("b.png", b"second"), ("z.png", b"last")]
    # A header and the data's own bytes are enough, without the filling up to the block.
    count = sum(keep >= 1024 * i + 512 + len(contents[i][1]) for i in range(3))
    assert sound == contents[:count]
    assert found[-1][0] == "" and "damaged here: it ends" in str(found[-1][1])


def test_an_archive_without_its_end_is_told_from_a_whole_one(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(BEFORE + END)
    assert entries(path) == [("a.png", b"first")]
    path.write_bytes(END)
    assert entries(path) == []
    path.write_bytes(BEFORE)
    assert entries(path)[1:] == [("", "the tar is damaged here: it ends without an end mark")]


@pytest.mark.parametrize(
    "change,count",
    [
        (lambda d: d[:-30], 2), (lambda d: d[:10] + b"\xff" * 9 + d[19:], 0), (lambda d: d[:12], 0),
        (lambda d: d + b"junk", 3),
    ],
    ids=["cut", "damaged", "head", "tail"],
)  # fmt: skip
def test_damaged_compression(change: Callable[[bytes], bytes], count: int, tmp_path: Path):
    """What unpacks before the damage is read; the reader buffers, so the member before it may be lost."""
    path, noise = tmp_path / "a.tgz", random.Random(7).randbytes(20_000)
    members = [("a.png", b"first"), ("b.png", noise), ("z.png", b"last")]
    path.write_bytes(change(gzip.compress(BEFORE + member("b.png", noise) + AFTER + END)))
    found = entries(path)
    sound = [f for f in found if isinstance(f[1], bytes)]
    assert sound == members[: len(sound)] and len(sound) <= count
    assert count == 3 or "damaged" in str(found[-1][1]) or "Compressed file ended" in str(found[-1][1])


def test_an_unreadable_tar_is_one_entry(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"")
    source = sources.open_source("extract", str(path), tmp_path / "unused", label="none", column=None)
    path.unlink()
    (item,) = source.items(0)
    with pytest.raises(ValueError, match=r"the tar cannot be read: .*No such file"):
        item.read()


def test_one_key_without_end_needs_no_memory(tmp_path: Path):
    """Members of one sample: only those that are read are kept."""
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(member(f"a.{i}") for i in range(3000)) + member("a.png", b"it") + END)
    import tracemalloc

    tracemalloc.start()
    assert entries(path) == [("a.png", b"it")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000, peak


# -- honest archives, against tarfile ------------------------------------------------------------------

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder-of-a-name-with-some-length/" * 5 + "image-with-a-name-of-its-own-length.png"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", FORMATS)
def test_honest_archives_as_tarfile_reads_them(name: str, mode: str, tmp_path: Path):
    path = tmp_path / "BZh.tar"
    names = ["BZh.png", "a/b.jpg", "ünï/çø.png", "c.d.e.webp", LONG, "./x.png"]
    with tarfile.open(path, mode, format=FORMATS[name]) as tar:
        for i, one in enumerate(names):
            folder = tarfile.TarInfo(f"folder{i}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            info = tarfile.TarInfo(one)
            info.size, info.mtime = 700 * i, 1.5 if name == "pax" else 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
    with tarfile.open(path) as tar:
        want = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    assert entries(path) == want and [n for n, _ in want] == names


def test_undecodable_names(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(member("ü.png".encode("latin-1")) + END)
    with tarfile.open(path) as tar:
        assert entries(path) == [(tar.getnames()[0], b"data")]


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Going back in it means to unpack it from the beginning: n samples took n²/2 of the work."""
    path, back, seek = tmp_path / "a.tgz", [], tar_streams.Unpacked.seek

    def watched(self: tar_streams.Unpacked, position: int) -> None:
        if position < self.tell():
            back.append((self.tell(), position))
        seek(self, position)

    monkeypatch.setattr(tar_streams.Unpacked, "seek", watched)
    sizes = [5, 512, 40 * 512, 300_000, 1024 * 512, 0, 7]
    path.write_bytes(gzip.compress(b"".join(member(f"{i}.png", bytes(n)) for i, n in enumerate(sizes)) + END))
    assert [len(e[1]) for e in entries(path)] == sizes
    assert not back


# -- the commands --------------------------------------------------------------------------------------


def test_extract_skips_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    images = [p.read_bytes() for p in write(tmp_path / "images", 1, 2)]
    data = member("a.png", images[0]) + header("b.png", 0, b"6") + member("c\n.png", images[1])
    data += member("d.png", images[1]) + header("e.png", binary(-512)) + END
    (tmp_path / "a.tar").write_bytes(data)
    words = ["extract", tmp_path / "a.tar", tmp_path / "out", "--quiet", "--workers", 0]
    assert command(*words) == 0
    assert "2 features of 5 images, 3 corrupt" in capsys.readouterr().out
    lines = (tmp_path / "out" / "corrupt.tsv").read_text().splitlines()
    assert [line.split("\t")[1].partition(",")[0] for line in lines] == [
        "ValueError: it is a pipe", "ValueError: its name holds control characters",
        "ValueError: the tar is damaged here: e.png has a size of -512 bytes",
    ]  # fmt: skip
    small = ["extract", tmp_path / "a.tar", tmp_path / "small", "--quiet", "--workers", 0]
    assert command(*small, "--max-member-bytes", 20) == 0
    assert "0 features of 5 images" in capsys.readouterr().out


def test_sheets_read_hostile_tars(tmp_path: Path):
    """A frame for the lost image; the sheet is made all the same."""
    image = write(tmp_path / "images", 1, 1)[0].read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(member("a.png", image) + header("b.png", binary(-512)) + END)
    good, bad = sheet.thumbnail(f"{path}/a.png"), sheet.thumbnail(f"{path}/c.png")
    assert bad.getextrema() == ((235, 255),) * 3 and good.getextrema() != bad.getextrema()
