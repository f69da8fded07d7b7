"""Folders, lists and CSVs of images, written to one listing whose order is fixed.

A line of it is ``[path, fields, [size, modification time], why it is skipped]``. A resumed run makes the
listing anew and compares the two.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _digest, _files
from semobridge_ext.cli.sorted_entries import Entry, sorted_entries

IMAGES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif",
)  # fmt: skip


def hidden(path: str) -> bool:
    """Whether a part of the path begins with a dot: what systems leave beside images, as ._IMG_1.jpg."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


CAPTION = "caption"  # the column, as clip-retrieval names it
CAPTION_CHARACTERS = 1 << 16  # a text tower reads some hundred
_CAPTIONS = ".txt"


class Item(NamedTuple):
    """One input; its bytes and fields are read when asked for."""

    path: str
    read: Callable[[], Any]  # a path or a binary file for PIL
    fields: Callable[[], dict[str, str | None]]


def fail(reason: str) -> Callable[[], Any]:
    def read() -> Any:
        raise ValueError(reason)

    return read


def given(value: Any) -> Any:
    return value


Line = tuple[str, dict[str, Any], str]  # path, fields, why it is skipped ("" if it is not)
Identity = tuple[int, int]  # device and inode
AnyEntry = os.DirEntry[str] | Entry


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


class Walk:
    """Every image under a folder, sorted, without hidden ones; counts what it leaves out."""

    def __init__(self, root: Path, label: str, captions: bool = False) -> None:
        self.root, self.label, self.captions, self.ignored = root, label, captions, 0

    def _label(self, parts: tuple[str, ...]) -> str | None:
        if self.label == "none" or not parts:
            return None
        return parts[-1] if self.label == "parent" else parts[0]

    def lines(self) -> Iterator[Line]:
        return self._lines(sorted_entries(self.root), (), (_identity(os.stat(self.root)),))

    def _lines(
        self, entries: Iterable[AnyEntry], parts: tuple[str, ...], above: tuple[Identity, ...]
    ) -> Iterator[Line]:
        for entry in entries:
            if hidden(entry.name):
                self.ignored += 1
                continue
            line = os.path.abspath(entry.path), {"label": self._label(parts)}
            try:
                inside = self._inside(entry, above)
            except OSError as error:  # one entry less, not the whole run
                yield *line, f"{error.strerror or error}"
                continue
            if inside is not None:
                yield from self._lines(inside, (*parts, entry.name), (*above, _identity(entry.stat())))
            elif entry.name.lower().endswith(IMAGES):
                path, fields = line
                yield path, {**fields, **caption_beside(path)} if self.captions else fields, ""
            elif not (self.captions and entry.name.endswith(_CAPTIONS)):
                self.ignored += 1

    @staticmethod
    def _inside(entry: AnyEntry, above: tuple[Identity, ...]) -> Iterable[AnyEntry] | None:
        """What a folder holds; links count too, as image collections are often made of them."""
        if not entry.is_dir():
            return None
        if _identity(entry.stat()) in above:
            raise OSError("it leads back to a folder that it lies in")
        return sorted_entries(entry.path)


_TEXT = "utf-8-sig"  # some editors and spreadsheets begin a file with a byte order mark


def list_lines(path: Path, captions: bool = False) -> Iterator[Line]:
    with open(path, encoding=_TEXT) as file:
        for line in file:
            if line := line.rstrip("\r\n"):
                place = os.path.abspath(path.parent / line)
                yield place, caption_beside(place) if captions else {}, ""


def caption_beside(path: str) -> dict[str, str | None]:
    """What the .txt beside an image holds; None where it cannot be read. Others judge its length."""
    try:
        with open(_readable(os.path.splitext(path)[0] + _CAPTIONS), "rb") as file:
            data = file.read(4 * CAPTION_CHARACTERS + 4)  # bytes of more characters than a caption has
    except (OSError, ValueError):
        return {CAPTION: None}
    return {CAPTION: data.decode(_TEXT, "replace").strip()}


def csv_columns(function: str, path: Path, wanted: str | None) -> tuple[str, list[str]]:
    """The path column, and the others."""
    with open(path, newline="", encoding=_TEXT) as file:
        header = next(csv.reader(file), [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        got = ", ".join(map(repr, twice))
        raise ValueError(
            f"{function}: INPUT must name every column once, got {got} more than once in line 1 of {path}; "
            "rename them"
        )
    guesses = [wanted] if wanted else ["image_path", "path", "filepath", "file", "filename", "image"]
    found = next((name for name in guesses if name in header), None)
    if found is None:
        what = f"--path-column {wanted}" if wanted else "one of " + ", ".join(guesses)
        raise ValueError(
            f"{function}: INPUT must have the column {what}, got {path} with "
            f"{', '.join(header) or 'no header'}; "
            "name it with --path-column"
        )
    others = [name for name in header if name not in (found, "image_path")]
    return found, others


def csv_lines(function: str, path: Path, column: str, others: list[str]) -> Iterator[Line]:
    with open(path, newline="", encoding=_TEXT) as file:
        rows = csv.reader(file)
        header = next(rows)
        try:
            for row in filter(None, rows):  # without empty lines
                record = _record(function, header, row, column, f"line {rows.line_num} of {path}")
                place = os.path.abspath(path.parent / record[column])
                yield place, {name: record[name] for name in others}, ""
        except csv.Error as error:
            raise csv.Error(f"line {rows.line_num}: {error}") from error


def _record(function: str, header: list[str], row: list[str], column: str, place: str) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(
            f"{function}: INPUT must have {len(header)} fields in every row, got {len(row)} in {place}; "
            "complete it, or quote fields that hold commas"
        )
    record = dict(zip(header, row, strict=True))
    if not record[column].strip():
        raise ValueError(
            f"{function}: INPUT must name an image in every row, got an empty {column!r} in {place}; fill it "
            "in, or delete the row"
        )
    return record


def state(path: str) -> list[int] | None:
    """Size and modification time: what a replaced file changes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def write_lines(lines: Iterator[Line], target: Path) -> tuple[int, str]:
    """Count and digest of what is written: [path, fields, [size, time], why skipped] a line."""
    count, digest = 0, _digest.Digest()
    with _files.replaced(target) as file:
        for path, fields, reason in lines:
            data = json.dumps([path, fields, None if reason else state(path), reason]).encode() + b"\n"
            digest.add(data)
            file.write(data)
            count += 1
    return count, _digest.marked(digest.hexdigest())


def first_difference(old: Path, new: Path) -> str:
    """The first input that two listings do not share, with what differs; empty where there is none."""
    if not (old.is_file() and new.is_file()):
        return ""
    with open(old, "rb") as before, open(new, "rb") as now:
        for a, b in zip_longest(before, now, fillvalue=b"null"):
            if a != b:
                try:
                    was, is_now = _files.parse_json(a), _files.parse_json(b)
                except ValueError:  # a listing that something else wrote to
                    return ""
                if was is None or is_now is None or was[0] != is_now[0]:
                    return f"{(was or ['none'])[0]} (now {(is_now or ['none'])[0]})"
                return f"{was[0]}: {was[1:]} (now {is_now[1:]})"
    return ""


def _readable(path: str) -> str:
    """The path, unless reading what lies there could wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(mode), 'a device')} and no regular file")
    return path


class Listed:
    """Items of an inputs.jsonl; picklable, for workers that are started and not forked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, start: int) -> Iterator[Item]:
        with open(self.path, "rb") as file:
            for i, line in enumerate(file):
                if i >= start:
                    path, fields, _, reason = _files.parse_json(line)
                    read = fail(reason) if reason else partial(_readable, path)
                    yield Item(path, read, partial(given, fields))
