"""A saved mapping applied to a column of features: what `semobridge-ext map` does, as a callable."""

from __future__ import annotations

from typing import Any

import numpy as np

from semobridge_ext._errors import describe, message
from semobridge_ext.cli import mappings
from semobridge_ext.ray.columns import array, columns_of, rows
from semobridge_ext.ray.stage import Columns, Stage, content, loaded


class Map(Stage):
    """Applies a saved mapping to the features of a batch: a callable for ``Dataset.map_batches``.

    Args:
        mapping: what the ``save`` of a Bridge (closed form or trained), IsoCLIP or LinearMap wrote, or
            ``mapping.safetensors`` of a folder of ``semobridge-ext map``: its path, or the file's bytes.
        column: the features, [B, D] of any float dtype.
        output: the column that is written, [B, M] float32 unit rows; the features themselves by default.

    Raises:
        TypeError: a column name that is no str. FileNotFoundError: no such file. ValueError: a file of
            another kind, or a damaged one; at a batch, features of another width.

    Numerics: those of the mapping on a CPU, each row independent of its batch: the bits of one process.
        A NaN row stays NaN and does not spread. No gradient.

    Memory: the mapping, once an actor, and a batch of rows.

    Example:
        >>> import numpy as np, torch, semobridge_ext as sb
        >>> sb.LinearMap(torch.eye(3, dtype=torch.float64)).save("identity.safetensors")
        >>> unit = sb.ray.Map("identity.safetensors")
        >>> unit({"features": np.asarray([[3.0, 0.0, 4.0]], np.float32)})["features"].round(3).tolist()
        [[0.6000000238418579, 0.0, 0.800000011920929]]
        >>> given = sb.ray.Map.arguments(mapping="identity.safetensors")  # its bytes: no node needs the file
        >>> import os; os.remove("identity.safetensors")
        >>> sb.ray.Map(**given)({"features": np.eye(3, dtype=np.float32)})["features"].shape
        (3, 3)
    """

    _files = ("mapping",)

    def __init__(self, mapping: Any, *, column: str = "features", output: str = "features") -> None:
        self._check_names(column=column, output=output)
        data = content(self._name, "mapping", mapping)
        try:
            self._mapping = loaded(data, "mapping.safetensors", mappings.load)
        except ValueError as error:
            got, remedy = f"a file that is refused ({error})", "write it with the mapping's .save()"
            raise ValueError(message(self._name, "mapping", "be a saved mapping", got, remedy)) from error
        self._column, self._output = column, output

    def __call__(self, batch: Any) -> Columns:  # columns of B rows
        columns = columns_of(self._name, batch)
        given = rows(self._name, "column", columns, self._column)
        if not len(given):  # a batch without rows does not say their width
            return {**columns, self._output: np.empty((0, 0), np.float32)}
        found = self._mapping.apply(given.float())
        return {**columns, self._output: array(found)}

    def __repr__(self) -> str:
        return f"{self._name}({self._mapping.name}, {describe(self._column)})"
