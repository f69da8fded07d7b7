"""Numbers that a user gives to gallery rows, and the rows that they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def whole_numbers(function: str, name: str, value: Any) -> Tensor:  # [M] int64 on the CPU
    """A 1-D tensor, array, list or range of whole numbers."""
    value = _arrays.whole(value, torch.device("cpu"))
    if not _errors.is_dense(value) or value.dtype is not torch.int64:
        raise TypeError(_errors.message(function, name, "be whole numbers", value, "pass int64 numbers"))
    if value.dim() != 1:
        raise ValueError(_errors.message(function, name, "be 1-D", value, "pass one number a row"))
    _errors.check_values(function, name, value)
    return value.detach().to("cpu", torch.int64, copy=True)


def checked_ids(function: str, ids: Any, count: int, known: Tensor | None = None) -> Tensor:  # [count] int64
    """Ids of `count` new rows: whole, distinct, and none of those that are `known`."""
    found = whole_numbers(function, "ids", ids)
    if len(found) != count:
        raise ValueError(_errors.message(function, "ids", f"be [{count}]", found, "pass one id for each row"))
    values, counts = found.unique(return_counts=True)
    twice_here = values[counts > 1]
    if known is not None and not len(twice_here):  # without sorting those that are known for a few new ones
        twice_here = known[torch.isin(known, values)]
    if len(twice_here):
        twice = int(twice_here[0])
        remedy = "remove the row that has it first, or give another id"
        raise ValueError(_errors.message(function, "ids", "be distinct", f"{twice} twice", remedy))
    return found


def rows_of(function: str, name: str, wanted: Any, ids: Tensor | None, count: int) -> Tensor:  # [M] int64
    """The rows that ids stand for; without ids, row numbers themselves, from 0."""
    found = whole_numbers(function, name, wanted)
    if ids is None:
        outside = (found < 0) | (found >= count)
        contract = f"lie in 0..{count - 1}"
    else:
        values, order = ids.sort()
        places = torch.searchsorted(values, found).clamp_(max=max(count - 1, 0))
        outside = torch.ones_like(found, dtype=torch.bool) if not count else values[places] != found
        contract = f"be ids of the gallery's {count} rows"
    if bool(outside.any()):
        got = f"{int(found[outside][0])}"
        raise ValueError(
            _errors.message(function, name, contract, got, "look at gallery.ids and len(gallery)")
        )
    return found if ids is None else order[places]
