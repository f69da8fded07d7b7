"""Files: written whole or not at all; tensors and metadata as safetensors, never pickles."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor


@contextmanager
def replaced(path: Any) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends without an error.

    The file has a random name beside `path` and is created exclusively, so that neither another
    process nor a link planted under that name is written to. File and folder are synced: after a
    power cut `path` is the old file or the new one. A block that fails leaves `path` as it was and
    removes the temporary file.
    """
    target = Path(path)
    temporary, file = _new_file(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _new_file(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
        try:
            return temporary, open(temporary, "xb")
        except FileExistsError:
            continue


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


def save_tensors(path: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file as `replaced` does."""
    from safetensors.torch import save

    write_bytes(path, save({k: v.contiguous().cpu() for k, v in tensors.items()}, metadata))


def load_tensors(
    function: str, path: Any, file_format: str, names: tuple[str, ...], fields: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the named tensors and the metadata, with at least `fields`, of a file of `file_format`."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{function}: path must be an existing file, got {path}; check the name, or write it with .save()"
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            if meta.get("format") != file_format:
                raise ValueError(
                    f"{function}: {path} must be a '{file_format}' file, got format "
                    f"{meta.get('format')!r}; write it with .save()"
                )
            missing = [n for n in names if n not in file.keys()]  # noqa: SIM118 - not a dict
            missing += [n for n in fields if n not in meta]
            if missing:
                raise ValueError(f"{function}: {path} lacks {missing}; write it again with .save()")
            return {n: file.get_tensor(n) for n in names}, meta
    except SafetensorError as error:
        raise ValueError(
            f"{function}: {path} must be a whole safetensors file, got a damaged or foreign one "
            f"({error}); copy or write it again"
        ) from error
