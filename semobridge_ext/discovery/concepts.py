"""Dictionaries of concepts: read from text or CSV, and joined with the names of the old classes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semobridge_ext import _errors, _files, _numbers


def read_concepts(path: Any, *, column: str | int | None = None) -> list[str]:
    """The names in a file, in its order: a line each, or a column of a CSV file.

    Args:
        path: a UTF-8 file. It is read as CSV where its name ends with .csv or a column is given, and as one
            name a line otherwise. Empty lines are passed over, and white space around names is dropped.
        column: of a CSV file: a name from its first row, which is then the header, or a number from 0, and
            then every row counts. Without it the last column is read, from the first row on: the class
            lists of OpenImages are ``id,name`` without a header.

    Returns:
        Names as they are written; ``merge_concepts`` joins and cleans lists.

    Raises:
        FileNotFoundError: no such file.
        TypeError: a column that is neither a name nor a number.
        ValueError: the file is no UTF-8 text, has no such column, or holds no name.
    """
    where = "read_concepts"
    if column is not None and not isinstance(column, str) and not _numbers.is_whole(column):
        remedy = "pass the header's name, or 0 for the first"
        raise TypeError(_errors.message(where, "column", "be a name or a number", column, remedy))
    path = _files.place(path, where)
    if os.path.isdir(path) or not os.path.exists(path):
        remedy = "check the name"
        raise FileNotFoundError(_errors.message(where, "path", "be an existing file", path, remedy))
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"other bytes in {path} ({error.reason} at {error.start})"
        raise ValueError(_errors.message(where, "path", "be UTF-8 text", got, "save it as UTF-8")) from error
    if column is None and Path(path).suffix.lower() != ".csv":
        names = text.splitlines()
    else:
        names = _column(where, path, text, -1 if column is None else column)
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(
            _errors.message(where, "path", "hold a name", f"none in {path}", "one name a line, or a CSV file")
        )
    return names


def _column(where: str, path: Any, text: str, column: str | int) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(row)]
    except csv.Error as error:
        got = f"{path}: {error}"
        raise ValueError(_errors.message(where, "path", "be CSV", got, "quote names with commas")) from error
    place = column
    if isinstance(place, str):
        header = rows[0] if rows else []
        if place not in header:
            got, remedy = f"{place!r} for {header}", "pass one of these, or a number"
            raise ValueError(_errors.message(where, "column", "stand in the header", got, remedy))
        rows, place = rows[1:], header.index(place)
    width = min((len(row) for row in rows), default=0)
    if rows and not -width <= place < width:
        remedy = "columns count from 0"
        raise ValueError(_errors.message(where, "column", f"lie in 0..{width - 1}", place, remedy))
    return [row[place] for row in rows]


def merge_concepts(*lists: Iterable[str]) -> list[str]:
    """One dictionary of several: underscores become blanks, and of names alike in lower case the first stays.

    A dictionary and the old classes' names give the filter's concepts; the names that it keeps and the old
    classes' names once more give those of the training, because the filter may drop an old class.

    Args:
        lists: of names, in the order in which they are to stand.

    Returns:
        The names; surrounding white space is dropped, and empty ones are left out.

    Raises:
        TypeError: something else than lists of texts.
    """
    kept: dict[str, str] = {}
    for names in lists:
        if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
            remedy = "pass [...] around it"
            raise TypeError(_errors.message("merge_concepts", "lists", "be lists of names", names, remedy))
        for name in names:
            if not isinstance(name, str):
                remedy = "convert it with str(...)"
                raise TypeError(_errors.message("merge_concepts", "lists", "hold texts", name, remedy))
            clean = " ".join(name.replace("_", " ").split())
            if clean:
                kept.setdefault(clean.lower(), clean)
    return list(kept.values())
