"""Columns of a batch: a dictionary of NumPy arrays, or a pyarrow.Table; feature rows out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def columns_of(function: str, batch: Any) -> dict[str, np.ndarray]:
    """The columns as arrays; a new dictionary, so that nothing changes the caller's."""
    if isinstance(batch, dict):
        return dict(batch)
    if hasattr(batch, "column_names") and hasattr(batch, "column"):  # a pyarrow.Table
        return {name: _array(batch.column(name)) for name in batch.column_names}
    remedy = 'leave batch_format as it is, or pass "numpy" or "pyarrow"'
    contract = "be a dictionary of arrays or a pyarrow.Table"
    raise TypeError(_errors.message(function, "batch", contract, _errors.describe(batch), remedy))


def _array(column: Any) -> np.ndarray:
    joined = column.combine_chunks()
    if hasattr(joined, "num_chunks"):  # none or several, of a kind that is not joined
        parts = [chunk.to_numpy(zero_copy_only=False) for chunk in joined.chunks]
        return np.concatenate(parts) if parts else np.empty(0, object)
    return joined.to_numpy(zero_copy_only=False)


def column(function: str, argument: str, columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    """One column by name."""
    if name not in columns:
        got = f"'{name}', and the batch has {', '.join(columns) or 'none'}"
        remedy = f"name another with {argument}="
        raise ValueError(_errors.message(function, argument, "be a column of the batch", got, remedy))
    return columns[name]


def rows(function: str, argument: str, columns: dict[str, np.ndarray], name: str) -> Tensor:  # [B, D]
    """The feature rows of a column, whose entries are vectors of one length.

    Ray gives an array [B, D] for tensors, and one of B objects for lists.
    """
    found = column(function, argument, columns, name)
    if isinstance(found, np.ndarray) and found.dtype == object:
        found = _stacked(function, name, found)
    value = _arrays.tensor(function, argument, found)
    value = _errors.check_float_tensor(function, argument, value)
    _errors.check_values(function, argument, value)
    if value.dim() != 2:
        remedy = "pass a column with one vector a row"
        raise ValueError(_errors.message(function, argument, "be [B, D]", value, remedy))
    return value


def _stacked(function: str, name: str, values: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.empty((0, 0), np.float32)
    parts = [np.asarray(v) for v in values]
    lengths = {part.shape for part in parts}
    if len(lengths) > 1 or parts[0].dtype == object:
        got = f"shapes {sorted(map(str, lengths))[:3]}"
        remedy = "drop the rows that have none"
        contract = "hold vectors of one length"
        raise ValueError(_errors.message(function, f"column '{name}'", contract, got, remedy))
    return np.stack(parts)


def array(rows: Tensor) -> np.ndarray:
    """An array of its own: Ray keeps what a callable returns."""
    return np.ascontiguousarray(rows.detach().cpu().numpy())


def objects(values: list[Any]) -> np.ndarray:
    """One object a row, whatever they are."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def as_float(value: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return value if value.dtype is torch.float64 else value.float()
