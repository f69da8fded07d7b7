"""Hugging Face data sets with an image and a class column: from a folder on disk, or fetched when asked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from semobridge_ext import _digest
from semobridge_ext.cli.listing import Item, fail, given, state
from semobridge_ext.cli.named.catalogue import Asked, asked
from semobridge_ext.cli.named.torchvision_set import Place, need_root

PREFIX = "hf:"


def _library(function: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{function}: datasets must be installed for {PREFIX} names, got none; "
            "pip install 'semobridge-ext[datasets]'"
        ) from error
    return datasets


class _Part(NamedTuple):
    name: str
    rows: Any  # a datasets.Dataset that leaves images undecoded
    image: str
    label: str
    names: list[str]


def open_parts(function: str, spec: str, place: Place) -> list[_Part]:
    """The parts that are asked for, each with its image and class column."""
    library, one = _library(function), asked(function, spec, PREFIX)
    found = _load(function, library, one, spec, place)
    parts = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
    if wrong := [name for name in one.parts if name not in parts]:
        raise ValueError(
            f"{function}: --dataset must name splits of {one.name}, got '{wrong[0]}'; it has "
            f"{', '.join(parts)}"
        )
    return [_part(function, library, name, parts[name]) for name in (one.parts or tuple(parts))]


def _load(function: str, library: Any, one: Asked, spec: str, place: Place) -> Any:
    root = need_root(function, place, spec)
    home = root / one.name
    try:
        if (home / "dataset_dict.json").is_file() or (home / "state.json").is_file():
            return library.load_from_disk(str(home))
        if home.is_dir():
            return library.load_dataset(str(home), cache_dir=str(root / ".cache"))
        if place.download:
            return library.load_dataset(one.name, cache_dir=str(root / ".cache"))
    except Exception as error:  # the library raises what its readers and its network raise
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise RuntimeError(
            f"{function}: --dataset {spec} must load, got {type(error).__name__}: {told}; check the name, or "
            f"lay the data set into {home}"
        ) from error
    raise FileNotFoundError(
        f"{function}: --root must hold {one.name}, got no folder {home}; pass --download, or save the data "
        "set there with save_to_disk"
    )


def _part(function: str, library: Any, name: str, rows: Any) -> _Part:
    images = [c for c, kind in rows.features.items() if isinstance(kind, library.Image)]
    labels = [c for c, kind in rows.features.items() if isinstance(kind, library.ClassLabel)]
    if not images or not labels:
        raise ValueError(
            f"{function}: --dataset must have a column of images and one of classes, got columns "
            f"{', '.join(rows.column_names)} in '{name}'; cast them to Image and ClassLabel"
        )
    label = "label" if "label" in labels else labels[0]
    kept = rows.cast_column(images[0], library.Image(decode=False))
    return _Part(name, kept, images[0], label, list(rows.features[label].names))


def _fields(part: _Part, label: Any) -> dict[str, str | None]:
    if not isinstance(label, int) or not 0 <= label < len(part.names):
        return {"label": None, "class_index": None, "split": part.name}  # -1 marks a hidden label
    return {"label": part.names[label].replace("_", " "), "class_index": str(label), "split": part.name}


def _reader(value: Any) -> Any:
    """What reads the image: its bytes, or the file that stands for them."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return partial(io.BytesIO, value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return partial(given, value["path"])
    return fail("the row holds no image")


class Rows:
    """The rows of several parts, from any position."""

    def __init__(self, name: str, parts: list[_Part]) -> None:
        self.name, self.parts = name, parts

    def __call__(self, start: int) -> Iterator[Item]:
        for part in self.parts:
            count = len(part.rows)
            for i in range(min(start, count), count):
                row = part.rows[i]
                read, fields = _reader(row[part.image]), _fields(part, row[part.label])
                yield Item(f"{PREFIX}{self.name}/{part.name}/{i:07d}", read, partial(given, fields))
            start = max(0, start - count)


def facts(parts: list[_Part], spec: str) -> dict[str, Any]:
    """Size and time of the files behind every part: what a replaced data set changes."""
    files = [
        [part.name, len(part.rows), [[f["filename"], state(f["filename"])] for f in part.rows.cache_files]]
        for part in parts
    ]
    return {
        "dataset": spec, "splits": "those of the data set: " + ", ".join(part.name for part in parts),
        "inputs": sum(len(part.rows) for part in parts),
        "inputs_digest": _digest.marked(_digest.digest(files)),
    }  # fmt: skip


def name_of(function: str, spec: str) -> str:
    return asked(function, spec, PREFIX).name
