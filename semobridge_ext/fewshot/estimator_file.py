"""Estimator files: tensors and one JSON field, in safetensors."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _files, _inputs, _numbers, _schema


def _plain(value: Any) -> Any:
    """Class names as JSON; tuples are marked, so that they come back as tuples."""
    if isinstance(value, tuple):
        return {"tuple": [_plain(v) for v in value]}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"save: class names must be strings, numbers or tuples of them, got {value!r}; rename it")


def _restored(value: Any) -> Any:
    return tuple(_restored(v) for v in value["tuple"]) if isinstance(value, dict) else value


def sort_classes(
    tensors: dict[str, Tensor], values: dict[str, Any], by_class: tuple[str, ...], codes: str = ""
) -> None:
    """Brings a file's classes into sorted order, as 0.1.0 did not write them: rows, codes and names."""
    order = _inputs.order_of(values["names"])
    if order is None:
        return
    values["names"] = [values["names"][i] for i in order.tolist()]
    for name in by_class:
        if name in tensors:
            tensors[name] = tensors[name][order]
    if codes in tensors:
        tensors[codes] = torch.argsort(order)[tensors[codes]]


def save_estimator(path: Any, file_format: str, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    fields = {**fields, "names": [_plain(name) for name in fields["names"]]}
    meta = {
        "format": file_format,
        "tensors": json.dumps(sorted(tensors)),
        "fields": json.dumps(fields, default=_numbers.for_json),
    }
    _files.save_tensors(path, tensors, meta)


def load_estimator(
    function: str, path: Any, file_format: str, schema: _schema.Schema, fields: tuple[str, ...],
    unnamed: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, int]]:  # fmt: skip
    """Tensors as the schema says, the fields, and the sizes of the schema's letters; C are the names.

    ``unnamed``: there may be none.
    """
    sizes: dict[str, int] = {}
    tensors, meta = _schema.load(function, path, file_format, schema, ("fields", "tensors"), sizes)
    with _schema.restoring(function, path):
        values = json.loads(meta["fields"])
        empty = [
            name for name, value in tensors.items() if not value.numel() and "L" not in schema[name].axes
        ]
        _schema.need(function, path, not empty, "values in every tensor", f"none in {empty}")
        missing = [f for f in fields if f not in values]
        _schema.need(function, path, not missing, f"the fields {list(fields)}", f"a file without {missing}")
        values["names"] = [_restored(name) for name in values["names"]]
        names, classes = values["names"], sizes.get("C", len(values["names"]))
        _schema.need(function, path, len(names) == classes, f"{classes} class names", names)
        distinct = len(set(names)) == len(names) and bool(names or unnamed)
        _schema.need(function, path, distinct, "distinct class names", names)
        nameless = [name for name in names if name is None or name != name]  # None, NaN
        _schema.need(function, path, not nameless, "a name for every class", nameless)
    return tensors, values, sizes
