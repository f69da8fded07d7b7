"""A data set of torchvision's as lines of a listing: image, class name, class, part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _digest
from semobridge_ext.cli.listing import Line
from semobridge_ext.cli.models import complete
from semobridge_ext.cli.named import fetch, formats, split_file
from semobridge_ext.cli.named.catalogue import ENTRIES, PREFIX, Asked, asked, unique_names
from semobridge_ext.cli.named.formats import FORMATS, Odd

COLUMNS = ("label", "class_index", "split")
_SHOWN = 1 << 20  # missing images that are counted before the listing gives up


class Place(NamedTuple):
    """Where data sets lie, and what may be done about it."""

    root: Path | None = None
    download: bool = False
    split: Path | None = None  # CoOp's file


def need_root(function: str, place: Place, given: str) -> Path:
    if place.root is None:
        raise ValueError(
            f"{function}: --root must say where data sets lie, got none for {given}; pass --root FOLDER, and "
            "--download to fetch into it"
        )
    return place.root


def known(function: str, given: str) -> Asked:
    """The catalogue's name and the parts that are asked for; refused with near matches."""
    found = asked(function, given, PREFIX)
    return found._replace(name=complete(function, "--dataset", found.name, list(ENTRIES)))


def lines(function: str, given: str, place: Place) -> Iterator[Line]:
    """Every image that is asked for, part by part, once the data set is there."""
    one, root = known(function, given), need_root(function, place, given)
    fetch.ensure(function, one.name, root, place.download)
    entry, base = ENTRIES[one.name], root / ENTRIES[one.name].base
    if place.split is not None:
        folders = [base / entry.images, base]
        return _checked(function, one.name, base, split_lines(function, place.split, folders, one.parts))
    parts = entry.parts or ("",)
    if wrong := [part for part in one.parts if part not in parts]:
        has = ", ".join(entry.parts) or "no splits"
        raise ValueError(
            f"{function}: --dataset must name parts of {one.name}, got '{wrong[0]}'; it has {has}"
        )
    return _checked(function, one.name, base, _lines(one.name, base, one.parts or parts))


def _lines(name: str, base: Path, parts: tuple[str, ...]) -> Iterator[Line]:
    form, readable = FORMATS[name], ENTRIES[name].readable
    raw = form.classes(base)
    names = unique_names(raw, formats.imagenet_words(base) if name == "ImageNet" else readable)
    for part in parts:
        for path, label in form.rows(base, part):
            fields = {"label": names[label], "class_index": str(label), "split": part or None}
            yield os.path.abspath(path), fields, ""


def split_lines(function: str, split: Path, folders: list[Path], parts: tuple[str, ...]) -> Iterator[Line]:
    for path, one in split_file.split_rows(function, split, folders, parts):
        fields = {"label": one.name, "class_index": str(one.label), "split": one.part}
        yield os.path.abspath(path), fields, ""


def _checked(function: str, name: str, base: Path, found: Iterator[Line]) -> Iterator[Line]:
    """The lines, whose images must all be there: an archive that was half unpacked is no data set."""
    first, missing, total, inside = "", 0, 0, os.path.abspath(base) + os.sep
    try:
        for line in found:
            total += 1
            if not line[0].startswith(inside):
                raise Odd(base, f"the image {line[0]}, outside of it")
            if os.path.isfile(line[0]):
                yield line
            else:
                first, missing = first or line[0], missing + 1
                if missing >= _SHOWN:
                    break
    except Odd as error:
        raise ValueError(
            f"{function}: {error.path} must be as {name} comes, got {error.got}; unpack the archive again"
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{function}: {base} must be as {name} comes, got {type(error).__name__}: {error}; unpack the "
            "archive again"
        ) from error
    if missing:
        raise FileNotFoundError(
            f"{function}: --root must hold every image of {name}, got none at {first} ({missing} of {total} "
            "are missing); unpack the archive again"
        )
    if not total:
        raise ValueError(f"{function}: {base} must hold images of {name}, got none; unpack the archive again")


def facts(function: str, given: str, place: Place) -> dict[str, Any]:
    """What a resumed run compares beside the listing, and people read."""
    one = known(function, given)
    found: dict[str, Any] = {"dataset": f"{PREFIX}{one.name}", "parts": list(one.parts)}
    if place.split is not None:
        return {**found, **split_facts(place.split)}
    return {**found, "splits": ENTRIES[one.name].splits}


def split_facts(split: Path) -> dict[str, Any]:
    return {"splits": f"of the file {split.name}", "split_file": _digest.marked(_digest.file_digest(split))}
