"""The file of an IsoCLIP: both matrices with their biases, the cuts, given or found, and the options."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from semobridge_ext import _files, _numbers, _schema
from semobridge_ext.linear_maps.isoclip_cuts import CUTS, SIDES, Cuts
from semobridge_ext.linear_maps.spectrum import UNPUBLISHED

_FORMAT = "semobridge-ext isoclip 1"
_AFFINE = "semobridge-ext isoclip 2"  # with the biases of the projections
_SCHEMA = {"image_projection": _schema.Field(("V", "D")), "text_projection": _schema.Field(("T", "D"))}
_BIASES = {name: _schema.Field(("D",), optional=True) for name in ("image_bias", "text_bias")}
_FOUND = ("k_top_", "k_bottom_")  # by fit

AnyCuts = TypeVar("AnyCuts", bound=Cuts)


def save_isoclip(path: Any, iso: Cuts) -> None:
    iso._spectrum()
    tensors = {name: getattr(iso, name) for name in (*_SCHEMA, *_BIASES)}
    params = {n: v for n, v in iso.get_params().items() if n not in tensors}
    params |= {name: getattr(iso, name) for name in _FOUND if hasattr(iso, name)}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    # A program that knows no biases has to refuse a file with one, and goes on reading the others.
    kind = _AFFINE if set(_BIASES) & set(tensors) else _FORMAT
    _files.save_tensors(
        path, tensors, {"format": kind, "params": json.dumps(params, default=_numbers.for_json)}
    )


def load_isoclip(where: str, path: Any, make: Callable[..., AnyCuts]) -> AnyCuts:
    """What `make` makes of the arguments in the file, each of which is checked."""
    tensors, meta = _schema.load(where, path, (_FORMAT, _AFFINE), {**_SCHEMA, **_BIASES}, ("params",))
    with _schema.restoring(where, path):
        params = json.loads(meta["params"])
        fitted = {name: params.pop(name) for name in _FOUND if name in params}
        matrices: dict[str, Any] = dict(tensors)
        iso = make(**matrices, **params)
        for name, value in fitted.items():
            setattr(iso, name, value)
        for name, matrix in tensors.items():
            _schema.need(where, path, matrix.numel() > 0, f"a matrix as {name}", matrix)
        iso._side(where, None)
        for name in (*CUTS, *fitted):
            value = getattr(iso, name)
            known = value is None or (isinstance(value, int) and not isinstance(value, bool))
            _schema.need(where, path, known, f"a whole number as {name}", value)
        for name in ("compress", "normalize"):
            value = getattr(iso, name)
            _schema.need(where, path, isinstance(value, bool), f"true or false as {name}", value)
        biases = [tensors.get(f"{side}_bias") for side in SIDES]
        taller = [b is not None and bool((b != 0).any()) for b in biases]
        heights = [len(tensors[f"{side}_projection"]) + one for side, one in zip(SIDES, taller, strict=True)]
        rank = min(tensors["image_projection"].shape[1], *heights)
        for side in SIDES:
            cut = [value for value in iso._given(side) if value not in (None, UNPUBLISHED)]
            kept = not cut or (min(cut) >= 0 and sum(cut) < rank)
            _schema.need(where, path, kept, f"cuts that leave one of {rank} directions", cut)
    return iso
