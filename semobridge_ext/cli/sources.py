"""Where images come from: a folder, a list, a CSV, or WebDataset tars; read in order, from any position.

Nothing here grows with the number of images but one text file on disk, `inputs.jsonl`, which folders,
lists and CSVs are written to first: the order is then fixed, and a resumed run can tell whether it is
the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _files
from semobridge_ext.cli.tar_members import ERRORS, MEMBER_BYTES, Archive, Member

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Item(NamedTuple):
    """One input; its bytes and fields are read when asked for."""

    path: str
    read: Callable[[], Any]  # a path or a binary file for PIL
    fields: Callable[[], dict[str, str | None]]


class Source(NamedTuple):
    """All inputs: `items(start)` yields them from that position on."""

    kind: str
    columns: tuple[str, ...]  # of the metadata, beside image_path
    total: int | None  # None: not known before the end
    ignored: int  # files that are no images by their name
    facts: dict[str, Any]  # what a resumed run compares
    items: Callable[[int], Iterator[Item]]


def _given(value: Any) -> Any:
    return value


# -- folders, lists, CSV -------------------------------------------------------------------------------

Line = tuple[str, dict[str, Any]]


class _Walk:
    """Every image under a folder, sorted; counts what it leaves out."""

    def __init__(self, root: Path, label: str) -> None:
        self.root, self.label, self.ignored = root, label, 0

    def _label(self, parts: list[str]) -> str | None:
        if self.label == "none" or not parts:
            return None
        return parts[-1] if self.label == "parent" else parts[0]

    def lines(self, folder: Path | None = None, parts: tuple[str, ...] = ()) -> Iterator[Line]:
        with os.scandir(folder or self.root) as entries:
            ordered = sorted(entries, key=lambda e: e.name)
        for entry in ordered:
            if entry.is_dir():  # links too, as image collections are often made of them
                yield from self.lines(Path(entry.path), (*parts, entry.name))
            elif entry.name.lower().endswith(IMAGES):
                yield os.path.abspath(entry.path), {"label": self._label(list(parts))}
            else:
                self.ignored += 1


_TEXT = "utf-8-sig"  # some editors and spreadsheets begin a file with a byte order mark


def _list_lines(path: Path) -> Iterator[Line]:
    with open(path, encoding=_TEXT) as file:
        for line in file:
            if line := line.rstrip("\r\n"):
                yield os.path.abspath(path.parent / line), {}


def _csv_columns(function: str, path: Path, wanted: str | None) -> tuple[str, list[str]]:
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


def _csv_lines(function: str, path: Path, column: str, others: list[str]) -> Iterator[Line]:
    with open(path, newline="", encoding=_TEXT) as file:
        rows = csv.reader(file)
        header = next(rows)
        try:
            for row in filter(None, rows):  # without empty lines
                record = _record(function, header, row, column, f"line {rows.line_num} of {path}")
                yield os.path.abspath(path.parent / record[column]), {name: record[name] for name in others}
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


def _write_lines(lines: Iterator[Line], target: Path) -> tuple[int, str]:
    """Count and digest of what is written, one JSON array a line."""
    count, digest = 0, hashlib.sha256()
    with _files.replaced(target) as file:
        for line in lines:
            data = json.dumps(line).encode() + b"\n"
            digest.update(data)
            file.write(data)
            count += 1
    return count, digest.hexdigest()


class _Listed:
    """Items of an inputs.jsonl; picklable, for workers that are started and not forked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, start: int) -> Iterator[Item]:
        with open(self.path, "rb") as file:
            for i, line in enumerate(file):
                if i >= start:
                    path, fields = json.loads(line)
                    yield Item(path, partial(_given, path), partial(_given, fields))


# -- tars --------------------------------------------------------------------------------------------


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` and `{x,y}.tar`, as shells and WebDataset write them."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        width = len(span[1])
        words = [f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        words = inside.split(",")
    return [whole for word in words for whole in expand_braces(before + word + after)]


_TEXTS = {"txt": "caption", "cls": "label"}


class _Part(NamedTuple):
    """A member of a sample and what reads it."""

    member: Member
    read: Callable[[], bytes]


def _fail(reason: str) -> Callable[[], Any]:
    def read() -> Any:
        raise ValueError(reason)

    return read


def _no_fields() -> dict[str, str | None]:
    return {}


class _Sample:
    """Consecutive members of one key: the first image and its texts; others count where there is no image."""

    def __init__(self, tar: Archive, key: str) -> None:
        self._tar, self._key = tar, key
        self._image: _Part | None = None
        self._fields: dict[str, _Part] = {}
        self._refused: Member | None = None

    def add(self, member: Member) -> None:
        ending = member.name[len(self._key) + 1 :].lower()
        if f".{ending}".endswith(IMAGES):
            if self._image is None or self._image.member.name == member.name:
                self._image = self._part(member)
        elif ending in _TEXTS:
            self._fields[_TEXTS[ending]] = self._part(member)
        elif member.reason:
            self._refused = self._refused or member

    def _part(self, member: Member) -> _Part:
        if member.reason or not self._tar.compressed:
            return _Part(member, partial(self._tar.content, member))
        try:
            # Now, as going back in a compressed file means to unpack it from its beginning.
            return _Part(member, partial(_given, self._tar.content(member)))
        except ERRORS as error:
            return _Part(member, _fail(str(error)))

    def item(self) -> Item:
        parts = [self._image, *self._fields.values()] if self._image else []
        refused = next((p.member for p in parts if p and p.member.reason), None)
        if self._image is None:
            refused = self._refused or next(
                (p.member for p in self._fields.values() if p.member.reason), None
            )
        if refused is not None:
            return Item(f"{self._tar.path}/{refused.name}", _fail(refused.reason), _no_fields)
        if self._image is None:
            return Item(f"{self._tar.path}/{self._key}", _fail("the sample holds no image"), _no_fields)
        image, texts = self._image, self._fields

        def fields() -> dict[str, str | None]:
            return {name: part.read().decode("utf-8", "replace").strip() for name, part in texts.items()}

        return Item(f"{self._tar.path}/{image.member.name}", lambda: io.BytesIO(image.read()), fields)


def _tar_items(path: str, most: int) -> Iterator[Item]:
    """Samples of one tar: consecutive files of one name up to the first dot."""
    key, sample = "", None  # type: tuple[str, _Sample | None]
    try:
        with Archive(path, most) as tar:
            damage = ""
            try:
                for member in tar.members():
                    folder, _, name = member.name.rpartition("/")
                    found = f"{folder}/{name.partition('.')[0]}" if folder else name.partition(".")[0]
                    if sample is None or found != key:
                        if sample is not None:
                            yield sample.item()
                        key, sample = found, _Sample(tar, found)
                    sample.add(member)
            except ERRORS as error:
                damage = str(error) or type(error).__name__
            if sample is not None:
                yield sample.item()  # what stands before the damage is whole
            if damage:
                yield Item(path, _fail(f"the tar is damaged here: {damage}"), _no_fields)
    except OSError as error:
        yield Item(path, _fail(f"the tar cannot be read: {error}"), _no_fields)


class _Tars:
    def __init__(self, paths: list[str], most: int) -> None:
        self.paths, self.most = paths, most

    def __call__(self, start: int) -> Iterator[Item]:
        position = 0
        for path in self.paths:
            for item in _tar_items(path, self.most):
                if position >= start:
                    yield item
                position += 1


# -- one door ----------------------------------------------------------------------------------------


def open_source(
    function: str,
    given: str,
    listing: Path,
    *,
    label: str,
    column: str | None,
    max_member_bytes: int = MEMBER_BYTES,
) -> Source:
    """Recognises INPUT and fixes its order; `listing` is where inputs.jsonl goes."""
    if given.startswith(("http:", "https:", "s3:", "gs:", "pipe:")):
        raise NotImplementedError(
            f"{function}: INPUT must be local, got {given}; download the tars first, this command resumes by "
            "position in them"
        )
    path = Path(given)
    if path.is_dir():
        walk = _Walk(path, label)
        count, digest = _write_lines(walk.lines(), listing)
        facts = {"input": str(path.resolve()), "inputs": count, "inputs_sha256": digest, "label": label}
        if not count:
            raise ValueError(
                f"{function}: INPUT must hold images ({', '.join(IMAGES)}), got {given} with none among "
                f"{walk.ignored} files; check the folder"
            )
        columns = () if label == "none" else ("label",)
        return Source("folder", columns, count, walk.ignored, facts, _Listed(listing))
    suffix = path.suffix.lower()
    if suffix in (".tar", ".tgz") or given.lower().endswith(".tar.gz"):
        paths = [str(Path(p).resolve()) for p in expand_braces(given)]
        missing = [p for p in paths if not Path(p).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{function}: INPUT must be existing tars, got none at {missing[0]} "
                f"({len(missing)} of {len(paths)} are missing); check the pattern"
            )
        facts = {"input": given, "inputs": [[p, Path(p).stat().st_size] for p in paths]}
        facts["max_member_bytes"] = max_member_bytes
        return Source("tar", ("caption", "label"), None, 0, facts, _Tars(paths, max_member_bytes))
    if not path.is_file():
        raise FileNotFoundError(
            f"{function}: INPUT must be a folder, a list file, a .csv or a .tar, got {given}, which does not "
            "exist; check the name"
        )
    try:
        if suffix == ".csv":
            column, others = _csv_columns(function, path, column)
            lines = _csv_lines(function, path, column, others)
        else:
            others, lines = [], _list_lines(path)
        count, digest = _write_lines(lines, listing)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{function}: INPUT must be UTF-8 text, a folder or a .tar, got {given} ({error}); a "
            "list file has "
            "one path a line"
        ) from error
    facts = {"input": str(path.resolve()), "inputs": count, "inputs_sha256": digest}
    return Source("csv" if suffix == ".csv" else "list", tuple(others), count, 0, facts, _Listed(listing))
