"""CoOp's split files: {"train": [[path, label, class name], …], "val": […], "test": […]}."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _files
from semobridge_ext.cli.named.catalogue import PARTS

_MOST = 1 << 20  # classes


class Listed(NamedTuple):
    path: str  # relative
    label: int
    name: str
    part: str


def _refuse(function: str, path: Path, contract: str, got: str) -> ValueError:
    return ValueError(
        f"{function}: --split {path} must {contract}, got {got}; take a file of CoOp's form, "
        '{"train": [[path, label, class name], ..], "val": .., "test": ..}'
    )


def _json(function: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{function}: --split must be an existing file, got {path}; check the name")
    try:
        found = _files.parse_json(path.read_bytes())
    except ValueError as error:
        raise _refuse(function, path, "be JSON", str(error)) from error
    if not isinstance(found, dict) or set(found) != set(PARTS):
        got = ", ".join(map(str, found))[:60] if isinstance(found, dict) else type(found).__name__
        raise _refuse(function, path, "be an object of train, val and test", got or "nothing")
    return found


def _is_inside(name: str) -> bool:
    """Whether a relative path stays below its folder, on any system."""
    plain = name.replace("\\", "/")
    return bool(plain) and "\0" not in plain and not plain.startswith("/") and ".." not in plain.split("/")


def read_split(function: str, path: Path) -> list[Listed]:
    """The checked lines of a file, part by part; ValueError names the first that is none."""
    found: list[Listed] = []
    names: dict[int, str] = {}
    given = _json(function, path)
    for part in PARTS:
        lines = given[part]
        if not isinstance(lines, list):
            raise _refuse(function, path, f"hold a list as {part}", type(lines).__name__)
        for number, line in enumerate(lines):
            where = f"line {number} of {part}"
            good = (
                isinstance(line, list) and len(line) == 3 and isinstance(line[0], str)
                and isinstance(line[1], int) and not isinstance(line[1], bool) and isinstance(line[2], str)
                and 0 <= line[1] < _MOST and line[2].strip() and line[2].isprintable()
            )  # fmt: skip
            if not good:
                raise _refuse(function, path, "hold [path, label from 0, class name]", f"another {where}")
            if not _is_inside(line[0]):
                raise _refuse(function, path, "name images below the data set's folder", f"another {where}")
            if names.setdefault(line[1], line[2]) != line[2]:
                got = f"'{names[line[1]]}' and '{line[2]}' for {line[1]} in {where}"
                raise _refuse(function, path, "give a label one name", got)
            found.append(Listed(line[0], line[1], line[2], part))
    if not found:
        raise _refuse(function, path, "name images", "none")
    if len(set(names.values())) != len(names):
        raise _refuse(function, path, "give every label a name of its own", "one name twice")
    return found


def split_rows(
    function: str, path: Path, folders: list[Path], parts: tuple[str, ...]
) -> Iterator[tuple[Path, Listed]]:
    """Each image where it lies: below the first of the folders that has the first one."""
    listed = read_split(function, path)
    home = next((f for f in folders if os.path.isfile(f / listed[0].path)), folders[0])
    for one in listed:
        if not parts or one.part in parts:
            yield home / one.path, one
