"""Where images come from: a folder, a list, a CSV, tars or a data set by name; read in order, from anywhere.

Nothing here grows with the number of images but one text file on disk, `inputs.jsonl`, which folders,
lists and CSVs are written to first, with size and modification time of each file: the order is then
fixed, and a resumed run can tell whether it is the same.
"""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext.cli.listing import (
    CAPTION,
    IMAGES,
    Item,
    Listed,
    Walk,
    csv_columns,
    csv_lines,
    list_lines,
    write_lines,
)
from semobridge_ext.cli.named import catalogue, hugging_face, torchvision_set
from semobridge_ext.cli.named.torchvision_set import Place
from semobridge_ext.cli.tar_members import MEMBER_BYTES
from semobridge_ext.cli.tar_streams import UNPACKED_BYTES
from semobridge_ext.cli.tars import Tars, expand_braces, tar_digest


class Source(NamedTuple):
    """All inputs: `items(start)` yields them from that position on."""

    kind: str
    columns: tuple[str, ...]  # of the metadata, beside image_path
    total: int | None  # None: not known before the end
    ignored: int  # files that are no images by their name
    facts: dict[str, Any]  # what a resumed run compares
    items: Callable[[int], Iterator[Item]]


def keep(source: Source, staged: Path, listing: Path) -> Source:
    """The source with its listing where the run keeps it."""
    if not isinstance(source.items, Listed):
        return source
    os.replace(staged, listing)
    return source._replace(items=Listed(listing))


def _tar_names(given: str) -> list[str]:
    """Braces and then wildcards; what matches nothing stays, to be named as missing."""
    found = []
    for name in expand_braces(given):
        wild = glob.has_magic(name) and not os.path.exists(name)
        found += (sorted(glob.glob(name)) or [name]) if wild else [name]
    return found


def _named(function: str, given: str, listing: Path, place: Place) -> Source:
    """A data set of torchvision's or of Hugging Face's."""
    root = torchvision_set.need_root(function, place, given)
    facts: dict[str, Any] = {"input": given, "root": str(root.resolve())}
    columns = torchvision_set.COLUMNS
    if given.startswith(catalogue.PREFIX):
        count, digest = write_lines(torchvision_set.lines(function, given, place), listing)
        facts |= {"inputs": count, "inputs_digest": digest, **torchvision_set.facts(function, given, place)}
        return Source("data set", columns, count, 0, facts, Listed(listing))
    if place.split is not None:
        raise ValueError(
            f"{function}: --split must stand with a folder or {catalogue.PREFIX}NAME, got {given}, whose "
            "splits are its own; leave it out"
        )
    parts = hugging_face.open_parts(function, given, place)
    facts |= hugging_face.facts(parts, given)
    rows = hugging_face.Rows(hugging_face.name_of(function, given), parts)
    return Source("data set", columns, facts["inputs"], 0, facts, rows)


def _split_folder(function: str, path: Path, listing: Path, split: Path) -> Source:
    """The images of a folder that a split file names."""
    if not path.is_dir():
        raise ValueError(
            f"{function}: --split must stand with a folder or {catalogue.PREFIX}NAME, got {path}; leave "
            "it out"
        )
    count, digest = write_lines(torchvision_set.split_lines(function, split, [path], ()), listing)
    facts = {"input": str(path.resolve()), "inputs": count, "inputs_digest": digest}
    facts |= torchvision_set.split_facts(split)
    return Source("folder", torchvision_set.COLUMNS, count, 0, facts, Listed(listing))


def open_source(
    function: str,
    given: str,
    listing: Path,
    *,
    label: str,
    column: str | None,
    max_member_bytes: int = MEMBER_BYTES,
    max_tar_bytes: int = UNPACKED_BYTES,
    place: Place = Place(),  # noqa: B008 (it never changes)
    captions: bool = False,
) -> Source:
    """Recognises INPUT and fixes its order; the listing is written to `listing`, until `keep` moves it.

    `captions`: those of a folder and of a list are the .txt files beside the images.
    """
    if given.startswith(("http:", "https:", "s3:", "gs:", "pipe:")):
        raise NotImplementedError(
            f"{function}: INPUT must be local, got {given}; download the tars first, this command resumes by "
            "position in them"
        )
    if given.startswith((catalogue.PREFIX, hugging_face.PREFIX)):
        return _named(function, given, listing, place)
    path = Path(given)
    if place.split is not None:
        return _split_folder(function, path, listing, place.split)
    if path.is_dir():
        walk = Walk(path, label, captions)
        count, digest = write_lines(walk.lines(), listing)
        facts = {"input": str(path.resolve()), "inputs": count, "inputs_digest": digest, "label": label}
        if not count:
            raise ValueError(
                f"{function}: INPUT must hold images ({', '.join(IMAGES)}), got {given} with none among "
                f"{walk.ignored} files; check the folder"
            )
        columns: tuple[str, ...] = () if label == "none" else ("label",)
        columns += (CAPTION,) if captions else ()
        return Source("folder", columns, count, walk.ignored, facts, Listed(listing))
    suffix = path.suffix.lower()
    if suffix in (".tar", ".tgz") or given.lower().endswith(".tar.gz"):
        paths = [str(Path(p).resolve()) for p in _tar_names(given)]
        missing = [p for p in paths if not Path(p).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{function}: INPUT must be existing tars, got none at {missing[0]} "
                f"({len(missing)} of {len(paths)} are missing); check the pattern"
            )
        facts = {"input": given, "inputs": len(paths), "inputs_digest": tar_digest(paths)}
        limits = max_member_bytes, max_tar_bytes
        facts |= {"max_member_bytes": max_member_bytes, "max_tar_bytes": max_tar_bytes}
        return Source("tar", ("caption", "label"), None, 0, facts, Tars(paths, limits))
    if not path.is_file():
        raise FileNotFoundError(
            f"{function}: INPUT must be a folder, a list file, a .csv or a .tar, got {given}, which does not "
            "exist; check the name"
        )
    try:
        if suffix == ".csv":
            column, others = csv_columns(function, path, column)
            lines = csv_lines(function, path, column, others)
        else:
            others, lines = [CAPTION] if captions else [], list_lines(path, captions)
        count, digest = write_lines(lines, listing)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{function}: INPUT must be UTF-8 text, a folder or a .tar, got {given} ({error}); a "
            "list file has "
            "one path a line"
        ) from error
    facts = {"input": str(path.resolve()), "inputs": count, "inputs_digest": digest}
    return Source("csv" if suffix == ".csv" else "list", tuple(others), count, 0, facts, Listed(listing))
