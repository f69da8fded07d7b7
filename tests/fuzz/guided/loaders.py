"""`python -m tests.fuzz.guided.loaders NAME FOLDER… [-max_total_time=60 …]`: one loader under atheris.

Inputs are mutated towards lines of the package that no input has reached yet. What loads is used; an error
must be one of the house's grammar, as in the campaign of crafted files. The words behind the name are
libFuzzer's: folders of inputs, the first of which takes new ones, and options.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

FORMS = ("safetensors", "npy", "json", "lines")  # what others' C++ parses (Parquet, ONNX) gains nothing here
BREAK = b"\n\n"  # between header and tensors of a safetensors input: the length before them follows
URL = "https://host/model.safetensors"


def packed(data: bytes) -> bytes:
    """A safetensors file as an input: no mutation need hit the length of the header."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end].rstrip() + BREAK + data[end:]


def unpacked(data: bytes) -> bytes:
    header, found, tensors = data.partition(BREAK)
    return len(header).to_bytes(8, "little") + header + tensors if found else data


# -- what is no loader of a path -----------------------------------------------------------------------


def read_tar(data: bytes, folder: Path) -> None:
    """Every member by name and content: the reader ends, and reads no more than there is."""
    from semobridge_ext.cli.tar_members import ERRORS, Archive

    path = folder / "some.tar"
    path.write_bytes(data)
    try:
        with Archive(str(path), 1 << 16) as tar:
            for count, member in enumerate(tar.members()):
                assert tar.compressed or count <= len(data) // 512
                assert member.name.isprintable() or "\udc80" <= max(member.name) <= "\udcff"
                if not member.reason:
                    assert len(tar.content(member)) == member.size <= 1 << 16
    except ERRORS as error:
        assert str(error) or not isinstance(error, ValueError)


def check_refusal(error: ValueError) -> None:
    """The house's grammar, with the address."""
    told = str(error)
    assert re.fullmatch(r"Bridge\.from_pretrained: .+ must .+, got .+; .+", told, re.DOTALL) and URL in told


def read_range(data: bytes, folder: Path) -> None:
    """Header lines of a server: taken alone if they tell of the eight bytes asked for."""
    from semobridge_ext.clip.http_ranges import RangeCheck, UnfitAnswerError

    told, length, etag = (data.split(b"\n", 3) + [b""] * 2)[:3]
    headers = {"Content-Range": told.decode("latin-1"), "ETag": etag.decode("latin-1")}
    if length:
        headers["Content-Length"] = length.decode("latin-1")
    check = RangeCheck(URL)
    try:
        check.check("bytes=4-11", 206, headers)
    except UnfitAnswerError as error:
        assert re.fullmatch(r".+, got .+; .+", str(error), re.DOTALL), error
        return
    size = int(told.strip(b" \t").rpartition(b"/")[2])
    last = min(12, size) - 1
    assert check.size == size and int(length.strip(b" \t")) == last - 3
    told = told.strip(b" \t").lower()
    assert re.fullmatch(rb"bytes 0*4-0*%d/0*%d" % (last, size), told), told


def read_remote(data: bytes, folder: Path) -> None:
    """A whole checkpoint of a server that answers ranges rightly."""
    from semobridge_ext.clip import checkpoints, places, remote

    whole = unpacked(data)

    def open_url(function: str, url: str, clock: Any) -> remote.RangedFile:
        return remote.RangedFile(
            function, url, lambda a, b: whole[a:b], lambda: len(whole),
            lambda error: remote.refusal(function, url, error, 60),
        )  # fmt: skip

    plain, places.open_url = places.open_url, open_url
    try:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            found = checkpoints.read_projections(
                "Bridge.from_pretrained", URL, ("text", "image"), cache_dir=cache, timeout=60
            )
        assert all(value.rows.ndim == 2 and value.rows.isfinite().all() for value in found.values())
    except ValueError as error:
        check_refusal(error)
    finally:
        places.open_url = plain


def tar_seeds() -> list[bytes]:
    import gzip
    import io
    import tarfile

    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name in ("a.png", "a.txt", "ü.png", *(["d" * 120] if form != tarfile.USTAR_FORMAT else [])):
                member = tarfile.TarInfo(name)
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "a.png"
            tar.addfile(link)
        made.append(out.getvalue())
    return [*made, gzip.compress(made[0])]


def remote_seeds() -> list[bytes]:
    from tests.fuzz.targets.maps import make_projections

    with tempfile.TemporaryDirectory() as folder:
        return [packed(make_projections(Path(folder)).read_bytes())]


RANGES = [b"bytes 4-11/99\n8\nx\nabcdefgh", b"bytes 4-5/6\n\nx\nab", b"bytes */99\n0\n\n"]
Reader = Callable[[bytes, Path], None]
OTHERS: dict[str, tuple[Reader, Callable[[], list[bytes]]]] = {
    "tar": (read_tar, tar_seeds),
    "Content-Range": (read_range, lambda: RANGES),
    "from_pretrained, remote": (read_remote, remote_seeds),
}


# -- loaders of a path ---------------------------------------------------------------------------------


def targets() -> dict[str, Any]:
    from tests.fuzz.files import TARGETS

    texts = ("extract, a list", "extract, a .csv")
    return {t.name: t for t in TARGETS if t.form in FORMS or t.name in texts}


def names() -> list[str]:
    return [*OTHERS, *targets()]


def seeds(name: str) -> list[bytes]:
    """The valid file, and some of what the campaign makes of it."""
    from tests.fuzz.files import cases_of

    if name in OTHERS:
        return OTHERS[name][1]()
    target = targets()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = target.make(Path(folder))
        made = [path.read_bytes(), *(case.data() for case in cases_of(target, path, 30, 0))]
    made = [data for data in made if len(data) <= 4096]
    if target.form != "safetensors":
        return made
    return [packed(data) for data in made if len(data) >= 8 and int.from_bytes(data[:8], "little") < 4096]


def reader(name: str, folder: Path) -> Reader:
    """What takes an input; whatever it raises is a find."""
    if name in OTHERS:
        return OTHERS[name][0]
    from tests.fuzz import runner

    target = targets()[name]
    path = target.make(folder)

    def read(data: bytes, _: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(unpacked(data) if target.form == "safetensors" else data)
        runner._loaded[0] = False
        try:
            target.use(path)
        except Exception as error:
            wrong = runner.wrong_of(error, target, path, True)
            if wrong:
                raise AssertionError(wrong) from error

    return read


def main() -> None:
    import atheris

    name, *words = sys.argv[1:]
    import torch

    with atheris.instrument_imports(include=["semobridge_ext"]):
        import semobridge_ext.cli.tar_members
        import semobridge_ext.clip.checkpoints  # noqa: F401
        import tests.fuzz.files  # noqa: F401 - and with it every loader

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        read = reader(name, Path(place))
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)  # what the commands print; libFuzzer writes to stderr

        def once(data: bytes) -> None:
            try:
                read(data, Path(place))
            except BaseException:
                traceback.print_exc()
                raise

        atheris.Setup([sys.argv[0], *words], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
