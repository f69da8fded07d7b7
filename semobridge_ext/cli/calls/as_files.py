"""Lists and tables of Python as the files that a command reads."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semobridge_ext import _errors


def listed(function: str, name: str, texts: Any, place: Path) -> Any:
    """A list of texts as a file with one a line; a file, or None, as it is."""
    if texts is None or isinstance(texts, (str, os.PathLike)):
        return texts
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        contract, remedy = "be a list of texts or a file", "pass a list of str"
        raise TypeError(_errors.message(function, name, contract, texts, remedy))
    for i, text in enumerate(texts):
        if not text.strip() or len(text.splitlines()) > 1:
            contract, remedy = "be one line", "join its lines"
            raise ValueError(
                _errors.message(function, f"{name}[{i}]", contract, _errors.describe(text), remedy)
            )
    file = place / f"{name}.txt"
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return file


def labelled(function: str, name: str, labels: Any, place: Path) -> Any:
    """A mapping from paths of images to labels as a CSV; a file, or None, as it is."""
    if labels is None or isinstance(labels, (str, os.PathLike)):
        return labels
    if not isinstance(labels, Mapping):
        contract, remedy = "be a mapping from paths to labels, or a file", "pass {path: label}"
        raise TypeError(_errors.message(function, name, contract, labels, remedy))
    rows = [("image", "label")]
    for path, label in labels.items():
        if not isinstance(path, (str, os.PathLike)) or not (label is None or isinstance(label, str)):
            contract, remedy = "map paths to labels that are str, or None", "name the labels by str"
            got = f"{_errors.describe(path)} to {_errors.describe(label)}"
            raise TypeError(_errors.message(function, name, contract, got, remedy))
        rows.append((os.path.abspath(os.path.expanduser(path)), label or ""))
    file = place / f"{name}.csv"
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(rows)
    return file
