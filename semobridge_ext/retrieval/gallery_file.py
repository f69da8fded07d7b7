"""The file of a gallery: rows, their codes and ids."""

from __future__ import annotations

import json
from typing import Any

import torch

from semobridge_ext import _files, _schema
from semobridge_ext._ops.quantize_rows.op import Codes, can_quantize, shapes
from semobridge_ext._ops.topk.prepared import Held, Segment
from semobridge_ext.retrieval.row_ids import checked_ids

FORMAT = "semobridge-ext gallery 1"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FILE = {
    "rows": _schema.Field(("G", "D"), _DTYPES, finite=False, streamed=True),
    "codes": _schema.Field(("P", "B"), (torch.uint8,), optional=True),
    "bounds": _schema.Field(("P", 3, 32), (torch.float32,), finite=False, optional=True),
    "ids": _schema.Field(("G",), (torch.int64,), optional=True),
}


def save(path: Any, held: Held, normalize: bool) -> None:
    """Writes what a gallery holds, atomically; the codes of rows in parts are made anew for the whole."""
    whole = held.segments[0] if len(held.segments) == 1 else Segment(held.rows())
    tensors, meta = {"rows": whole.rows}, {"format": FORMAT, "normalize": json.dumps(normalize)}
    codes = whole.codes
    if codes is not None:
        tensors |= {"codes": codes.codes, "bounds": codes.bounds}
    if held.ids is not None:
        tensors["ids"] = held.ids
    _files.save_tensors(path, tensors, meta)


def load(where: str, path: Any) -> tuple[Held, bool]:
    """What `save` wrote, and whether queries are normalised; a foreign or inconsistent file is refused."""
    sizes: dict[str, int] = {}
    tensors, meta = _schema.load(where, path, FORMAT, _FILE, ("normalize",), sizes)
    rows = tensors["rows"]
    _schema.need(where, path, sizes["D"] > 0, "rows of at least one column", rows)
    with _schema.restoring(where, path):
        normalize = json.loads(meta["normalize"])
        _schema.need(where, path, isinstance(normalize, bool), "true or false as normalize", normalize)
    coded = can_quantize(rows) and len(rows) > 0
    has = {"codes", "bounds"} & set(tensors)
    _schema.need(
        where, path, len(has) == 2 * coded, "codes and bounds beside rows that have them", sorted(has)
    )
    codes = Codes(tensors["codes"], tensors["bounds"]) if coded else None
    if codes is not None:
        want = shapes(*rows.shape)
        got = tuple(codes.codes.shape), tuple(codes.bounds.shape)
        _schema.need(where, path, got == want, f"codes and bounds of shapes {want}", got)
    with _schema.restoring(where, path):
        ids = checked_ids(where, tensors["ids"], len(rows)) if "ids" in tensors else None
    return Held((Segment(rows, codes=codes),), ids), normalize
