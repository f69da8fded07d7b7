"""Dictionaries: text and CSV as people have them, and what is no dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semobridge_ext.discovery import merge_concepts, read_concepts


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "name,text,column,want",
    [
        ("a.txt", "cat\ndog, wild\n\n  emu \r\n", None, ["cat", "dog, wild", "emu"]),
        ("a.txt", "\ufeffcat\ndog", None, ["cat", "dog"]),
        ("names", "Ärger", None, ["Ärger"]),
        ("a.csv", '/m/01,Cat\n/m/02,"Dog, wild"\n', None, ["Cat", "Dog, wild"]),
        ("a.CSV", "Cat\nDog\n\n", None, ["Cat", "Dog"]),
        ("a.csv", "id,name\n1,Cat\n2,Dog", "name", ["Cat", "Dog"]),
        ("a.txt", "id,name\n1,Cat\n2,Dog", "id", ["1", "2"]),
        ("a.csv", "Cat,1\nDog,2", 0, ["Cat", "Dog"]),
        ("a.csv", 'Cat,"two\nlines"\n', 1, ["two\nlines"]),
    ],
)
def test_names_are_read(tmp_path: Path, name: str, text: str, column: Any, want: list[str]):
    assert read_concepts(write(tmp_path, name, text), column=column) == want
    assert read_concepts(str(tmp_path / name), column=column) == want


@pytest.mark.parametrize(
    "name,text,column,kind,told",
    [
        ("a.txt", " \n\n", None, ValueError, r"read_concepts: path must hold a name, got none in"),
        ("a.csv", "", None, ValueError, r"path must hold a name"),
        ("a.csv", "id,name\n", "name", ValueError, r"path must hold a name"),
        ("a.csv", "id,name\n1,Cat", "label", ValueError, r"column must stand in the header, got 'label' for"),
        ("a.csv", "", "name", ValueError, r"column must stand in the header, got 'name' for \[\]"),
        ("a.csv", "1,Cat", 2, ValueError, r"column must lie in 0..1, got int 2; columns count from 0"),
        ("a.csv", "1,Cat\n2", 1, ValueError, r"column must lie in 0..0, got int 1"),
        ("a.csv", "1,Cat", 1.0, TypeError, r"column must be a name or a number, got float 1.0"),
        ("a.csv", "1,Cat", True, TypeError, r"column must be a name or a number, got bool True"),
        ("a.csv", '"open', None, ValueError, r"path must be CSV, got .*a.csv: unexpected end"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, column: Any, kind: type, told: str):
    with pytest.raises(kind, match=told):
        read_concepts(write(tmp_path, name, text), column=column)


def test_other_bytes_and_no_file_are_named(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(
        ValueError, match=r"path must be UTF-8 text, got other bytes in .*a.txt .* at 3\); save it"
    ):
        read_concepts(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_concepts(tmp_path / "none.txt")


def test_lists_are_merged_by_lower_case():
    merged = merge_concepts(
        ["Bald_Eagle", "cat", " "], ("CAT", "bald eagle", "dog  house"), ["Dog_House", "emu"]
    )
    assert merged == ["Bald Eagle", "cat", "dog house", "emu"]
    assert merge_concepts(merged) == merged and merge_concepts() == []


@pytest.mark.parametrize(
    "given,told", [("cat", "be lists of names, got cat"), (["a", 1], "hold texts, got int 1")]
)
def test_bad_lists_are_named(given: Any, told: str):
    with pytest.raises(TypeError, match=f"merge_concepts: lists must {told}"):
        merge_concepts(given)
