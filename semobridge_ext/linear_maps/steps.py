"""The steps of a linear map: how they fold, and how a file holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from semobridge_ext._schema import Field, Schema

FORMAT = "semobridge-ext linear map 1"


class Step(NamedTuple):
    """``x·matrix + offset``, normalised or not; float64 on the CPU."""

    matrix: Tensor  # [K, M]
    offset: Tensor | None  # [M]
    normalize: bool


def folded(steps: Sequence[Step]) -> list[Step]:
    """The same chain in the fewest steps: one, unless an offset stands behind a norm."""
    done = [steps[-1]]
    for step in reversed(steps[:-1]):
        if _mergeable(step, done[0]):
            done[0] = _merged(step, done[0])
        else:
            done.insert(0, step)
    return done


def _mergeable(first: Step, second: Step) -> bool:
    return not first.normalize or (second.offset is None and second.normalize)


def _merged(first: Step, second: Step) -> Step:
    offset = None if first.offset is None else first.offset @ second.matrix
    if second.offset is not None:
        offset = second.offset if offset is None else offset + second.offset
    return Step(first.matrix @ second.matrix, offset, second.normalize)


# -- in a file ---------------------------------------------------------------------------------------


def layout_of(steps: Sequence[Step]) -> str:
    """Which steps there are, as text beside the tensors."""
    return json.dumps([{"offset": s.offset is not None, "normalize": s.normalize} for s in steps])


def tensors_of(steps: Sequence[Step]) -> dict[str, Tensor]:
    found = {}
    for i, step in enumerate(steps):
        found[f"matrix_{i}"] = step.matrix
        if step.offset is not None:
            found[f"offset_{i}"] = step.offset
    return found


def schema_of(layout: str) -> Schema:
    """The tensors that a layout needs; an exception of any kind for what is no layout."""
    kinds = json.loads(layout)
    if not isinstance(kinds, list) or not kinds:
        raise ValueError(f"steps must be a list with at least one step, got {layout!r}")
    schema = {}
    for i, kind in enumerate(kinds):
        if not all(isinstance(kind[name], bool) for name in ("offset", "normalize")):
            raise ValueError(f"a step must say offset and normalize, got {kind!r}")
        schema[f"matrix_{i}"] = Field((f"D{i}", f"D{i + 1}"))
        if kind["offset"]:
            schema[f"offset_{i}"] = Field((f"D{i + 1}",))
    return schema


def steps_of(layout: str, tensors: Mapping[str, Tensor]) -> list[Step]:
    """The steps as a file holds them, unchecked; the errors of `schema_of`."""
    return [
        Step(tensors[f"matrix_{i}"], tensors[f"offset_{i}"] if kind["offset"] else None, kind["normalize"])
        for i, kind in enumerate(json.loads(layout))
    ]
