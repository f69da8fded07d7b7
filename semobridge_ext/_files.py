"""Files: written whole or not at all; tensors and metadata as safetensors, never pickles."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from semobridge_ext import _checksum
from semobridge_ext._errors import describe, message, naming
from semobridge_ext._locks import is_at, try_lock

_LEFT = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)  # a temporary file, with its target's name


def place(path: Any, function: str = "save") -> str:
    """A path as text, with ``~`` resolved; TypeError for what is none, ValueError for an empty text."""
    if not isinstance(path, (str, os.PathLike)):
        remedy = "pass the name of a file"
        raise TypeError(message(function, "path", "be a str or a path", describe(path), remedy))
    if path == "":
        raise ValueError(message(function, "path", "name a file", "''", "pass its name"))
    return os.path.expanduser(os.fspath(path))


@contextmanager
def replaced(path: Any) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends without an error.

    The file has a random name beside `path` and is created exclusively, so that neither another
    process nor a link planted under that name is written to. File and folder are synced: after a
    power cut `path` is the old file or the new one. A block that fails leaves `path` as it was and
    removes the temporary file; what a killed process left goes at the next write to the same path.

    A link stays: the file that it leads to is replaced. An existing file keeps its mode. What is no
    regular file (/dev/stdout, /dev/null, a FIFO) is written straight into. A folder that is missing is
    made: it must not cost what a long run has found.

    What the system refuses (a full disk, a read-only file system) is an OSError that names `path`. Data
    must go through the file's own `write`: what a library writes by its descriptor, as NumPy does with an
    array, may fail unseen when it is flushed.
    """
    path = place(path)
    handle = _own_descriptor(path)
    if handle is not None or not _is_replaceable(path):
        with _straight(path, handle) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    make_folder(target)
    remove_leftovers(target.parent, target.name)
    temporary, file = _new_file(target)
    try:
        with file:
            _keep_mode(file, target)
            yield file
            file.flush()
            with naming(target):
                os.fsync(file.fileno())
                os.replace(temporary, target)  # still locked: nobody takes it for left over
    except BaseException:
        with suppress(OSError):  # the first error counts; the next write removes what stays
            temporary.unlink()
        raise
    with naming(target):
        _sync_folder(target.parent)


def make_folder(target: Path) -> None:
    """Makes the folder of a file that is to be written, and those above it."""
    if not target.parent.is_dir():
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)


def is_written_into(path: Any) -> bool:
    """Whether `replaced` writes straight into what stands at the path: no rename, so no folder's rights."""
    return _own_descriptor(path) is not None or not _is_replaceable(path)


# -- what cannot be replaced ---------------------------------------------------------------------------


def _own_descriptor(path: Any) -> int | None:
    """The number of an open file of this process, where the path leads to one, as /dev/stdout does.

    A rename would part the name from the file that the process goes on writing to.
    """
    place, own = os.path.abspath(Path(path)), os.path.realpath("/proc/self/fd")
    for _ in range(40):  # links that Linux follows, too
        folder, name = os.path.split(place)
        folder = os.path.realpath(folder)
        if folder == own and name.isdecimal():
            return int(name)
        place = os.path.join(folder, name)
        if not os.path.islink(place):
            return None
        place = os.path.join(folder, os.readlink(place))
    return None


def _is_replaceable(path: Any) -> bool:
    """Whether the path is a regular file or nothing yet."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def _straight(path: Any, handle: int | None) -> BinaryIO:
    if handle is None:
        return open(path, "wb")
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # none, or closed
            stream.flush()  # what was printed before comes before
    return os.fdopen(os.dup(handle), "wb")


# -- temporary files -----------------------------------------------------------------------------------


class _Temporary(io.FileIO):
    """A file that does not exist yet; its errors name the target."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        with naming(target):
            super().__init__(path, "xb")

    def write(self, data: Any) -> int:
        with naming(self._target):
            return super().write(data)


def _new_file(target: Path) -> tuple[Path, BinaryIO]:
    """A temporary file, locked for as long as it is open: the lock says that its writer lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
        try:
            file = io.BufferedWriter(_Temporary(temporary, target))  # closed by replaced
        except FileExistsError:
            continue
        # Between the two calls another writer may have taken it for left over.
        if try_lock(file.fileno()) is not False and is_at(file.fileno(), temporary):
            return temporary, file
        file.close()


def _keep_mode(file: BinaryIO, target: Path) -> None:
    with suppress(FileNotFoundError, PermissionError):  # a new file; a file system without modes
        os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode))


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files of killed writers: those of one target, or all in the folder.

    A living writer holds a lock on its file, in another container too; a dead one holds none, and no
    process number is asked for. Where files cannot be locked, nothing is removed.
    """
    try:
        found = [m for other in os.listdir(folder) if (m := _LEFT.fullmatch(other))]
    except OSError:  # the write itself will say what is wrong
        return
    for match in found:
        if name is None or match[1] == name:
            with suppress(OSError):  # gone meanwhile, or another user's
                _remove_left(folder / match[0])


def _remove_left(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) and try_lock(handle) and is_at(handle, path):
            os.unlink(path)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder durable, on systems that can open and sync a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows, and folders that may be written but not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def write_bytes(path: Any, data: bytes) -> None:
    """Writes `path` as `replaced` does."""
    with replaced(path) as file:
        file.write(data)


def write_text(path: Any, text: str) -> None:
    """Writes `path` as UTF-8, as `replaced` does."""
    write_bytes(path, text.encode("utf-8"))


def write_figure(path: Any, figure: Any, *, dpi: float, file_format: str | None = None) -> None:
    """Writes matplotlib's figure as `replaced` does; unless given, the ending names the format, none is PNG.

    By way of memory: Pillow writes by the descriptor, and a disk that is full may cut its picture short.
    """
    data, ending = io.BytesIO(), file_format or Path(path).suffix[1:]
    figure.savefig(data, format=ending or "png", dpi=dpi)
    write_bytes(path if ending else f"{os.fspath(path)}.png", data.getvalue())


def append_line(path: Any, text: str) -> None:
    """Adds one line of UTF-8 to a log, synced; a line that a kill cut short stays a line of its own."""
    with naming(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
            file.write(b"\n" * cut)
        file.write(text.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for whatever is none, also for one nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_text(value: Any) -> bool:
    """Whether it is a string that a file can hold: JSON knows halves of characters, UTF-8 does not."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


# Their names in a safetensors header, in the order in which its own writer lays tensors out: wide ones first,
# so that each stands at a multiple of its size.
_NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(path: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file with a checksum as `replaced` does; the same content has the same bytes.

    By itself: safetensors' writer makes a ctypes array type for every new number of bytes, and ctypes keeps
    each for the life of the process.
    """
    tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
    entry = _checksum.entry(metadata, {name: _checksum.of(value) for name, value in tensors.items()})
    metadata = {**metadata, _checksum.KEY: entry}
    rank = list(_NAMES).index
    ordered = sorted(tensors, key=lambda name: (rank(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in ordered:
        value = tensors[name]
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {
            "dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replaced(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            plain = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)


WRITE_IT = "write it with .save()"
# A mapped file that shrinks under its tensors ends the process; smaller ones are read into memory.
MAPPED_FROM = 64 << 20  # bytes


def load_tensors(
    function: str,
    path: Any,
    file_format: str | tuple[str, ...],
    names: tuple[str, ...],
    fields: tuple[str, ...] = (),
    remedy: str = WRITE_IT,
    *,
    optional: tuple[str, ...] = (),
    streamed: tuple[str, ...] = (),
    damaged: str = _checksum.COPY_IT,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the named tensors and the metadata, with at least `fields`, of a file of `file_format`.

    The checksum is compared with what was read. A file of less than MAPPED_FROM bytes is read into memory,
    a larger one is mapped.

    Args:
        function, path: for messages, too.
        file_format: one, or all that are read.
        remedy: what a refusal of another format, or of another version of it, tells to do.
        damaged: what one of other bytes tells.
        optional: read where they are there.
        streamed: not compared in a mapped file, which nobody has read yet.
    """
    from safetensors import SafetensorError, safe_open

    path = place(path, function)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{function}: path must be an existing file, got {path}; check the name, or write it with .save()"
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            meta, present = dict(file.metadata() or {}), list(file.keys())
            known = (file_format,) if isinstance(file_format, str) else file_format
            if meta.get("format") not in known:
                raise ValueError(
                    f"{function}: {path} must be a '{known[0]}' file, got format "
                    f"{meta.get('format')!r}; {remedy}"
                )
            missing = [n for n in names if n not in present]
            missing += [n for n in fields if n not in meta]
            if missing:
                raise ValueError(f"{function}: {path} lacks {missing}; write it again with .save()")
            tensors = {n: file.get_tensor(n) for n in (*names, *optional) if n in present}
    except SafetensorError as error:
        raise ValueError(
            f"{function}: {path} must be a whole safetensors file, got a damaged or foreign one "
            f"({error}); copy or write it again"
        ) from error
    mapped = os.path.getsize(path) >= MAPPED_FROM
    if not mapped:
        tensors = {name: value.clone() for name, value in tensors.items()}
    checked = {name: value for name, value in tensors.items() if not (mapped and name in streamed)}
    _checksum.check(function, path, meta, present, checked, damaged)
    return tensors, meta
