"""Estimator files: tensors and one JSON field, in safetensors."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _files, _inputs


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
    meta = {"format": file_format, "tensors": json.dumps(sorted(tensors)), "fields": json.dumps(fields)}
    _files.save_tensors(path, tensors, meta)


def load_estimator(
    function: str, path: Any, file_format: str, names: tuple[str, ...], fields: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    required = ("fields", "tensors")
    tensors, meta = _files.load_tensors(function, path, file_format, names, required)
    everything = tuple(json.loads(meta["tensors"]))
    tensors, _ = _files.load_tensors(function, path, file_format, everything, required)
    values = json.loads(meta["fields"])
    missing = [f for f in fields if f not in values]
    if missing:
        raise ValueError(f"{function}: {path} lacks {missing}; write it again with .save()")
    values["names"] = [_restored(name) for name in values["names"]]
    return tensors, values
