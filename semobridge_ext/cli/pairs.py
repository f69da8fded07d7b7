"""Which gallery item answers which query: a CSV of pairs, by row or by a key of the metadata."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COLUMNS = ("query", "gallery")
Finder = Callable[[str], list[int]]  # rows that a word of the file stands for; empty: none


def rows_finder(count: int) -> Finder:
    """Row numbers from 0."""

    def find(word: str) -> list[int]:
        word = word.strip()
        known = word.isascii() and word.isdigit() and len(word) < 19
        return [int(word)] if known and int(word) < count else []

    return find


def keys_finder(values: list[Any]) -> Finder:
    """Rows by what a column of the metadata holds; a key of several rows stands for all of them."""
    rows: dict[str, int | list[int]] = {}  # most keys have one row: no list for each of a million
    for row, value in enumerate(values):
        if value is None:
            continue
        known = rows.setdefault(str(value), row)
        if isinstance(known, list):
            known.append(row)
        elif known != row:
            rows[str(value)] = [known, row]

    def find(word: str) -> list[int]:
        found = rows.get(word, [])
        return found if isinstance(found, list) else [found]

    return find


def read_pairs(
    path: Path, query: Finder, gallery: Finder, contracts: tuple[str, str]
) -> Tensor:  # [M, 2] int64
    """Query and gallery row of every line, in order; a ValueError names the line that is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"retrieve: --pairs must be an existing file, got {path}; check the name")
    finders, pairs = (query, gallery), array("q")  # 16 bytes a pair
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if not set(COLUMNS) <= set(header) or len(set(header)) != len(header):
                got = ",".join(header)[:80] or "an empty line"
                raise _wrong(path, 1, f"be a header with {' and '.join(COLUMNS)}, once each", got)
            places = [header.index(name) for name in COLUMNS]
            for fields in reader:
                if not fields:
                    continue
                line = reader.line_num
                if len(fields) != len(header):
                    raise _wrong(path, line, f"have {len(header)} fields", f"{len(fields)}")
                words = [fields[place] for place in places]
                found = [find(word) for find, word in zip(finders, words, strict=True)]
                for name, word, rows, contract in zip(COLUMNS, words, found, contracts, strict=True):
                    if not rows:
                        raise _wrong(path, line, f"have {contract} as {name}", f"'{word[:80]}'")
                pairs.extend(row for q in found[0] for g in found[1] for row in (q, g))
        except csv.Error as error:
            raise _wrong(path, reader.line_num, "be CSV", str(error)) from error
        except UnicodeDecodeError as error:
            raise _wrong(path, reader.line_num + 1, "be UTF-8 text", str(error)) from error
    if not pairs:
        raise _wrong(path, reader.line_num + 1, "be a pair", "the end of the file")
    return torch.frombuffer(pairs, dtype=torch.int64).reshape(-1, 2)


def _wrong(path: Path, line: int, contract: str, got: str) -> ValueError:
    return ValueError(f"retrieve: {path}, line {line}, must {contract}, got {got}; mend the file")
