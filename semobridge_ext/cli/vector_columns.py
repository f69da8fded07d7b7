"""Vectors out of a column of Arrow: one list a row, all of one length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from semobridge_ext import _arrays, _errors


def vectors_of(function: str, path: Path, name: str, column: Any) -> Tensor:  # [n, D]
    """The vectors of a list column; Ray's tensors keep theirs in a list too."""
    import pyarrow

    parts = []
    for chunk in column.chunks:
        lists = chunk.storage if isinstance(chunk, pyarrow.ExtensionArray) else chunk
        if not len(lists):
            continue
        kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        whole = any(kind(lists.type) for kind in kinds) and not lists.null_count
        lengths = set(lists.value_lengths().to_pylist()) if whole else set()
        flat = lists.flatten() if whole else None
        one = len(lengths) == 1 and 0 not in lengths
        if flat is None or not one or flat.null_count or not pyarrow.types.is_floating(flat.type):
            got = f"{column.type}" + (f" of lengths {sorted(lengths)[:3]}" if lengths and not one else "")
            raise ValueError(
                f"{function}: column '{name}' must hold float vectors of one length and none missing, got "
                f"{got} in {path}; drop the other rows"
            )
        parts.append(flat.to_numpy(zero_copy_only=False).reshape(len(lists), lengths.pop()))
    if len({part.shape[1] for part in parts}) > 1:
        got = _errors.describe(sorted({part.shape[1] for part in parts}))
        raise ValueError(
            f"{function}: column '{name}' must hold vectors of one length, got {got} in {path}; drop others"
        )
    return _arrays.shared(np.concatenate(parts) if parts else np.empty((0, 0), np.float32))
