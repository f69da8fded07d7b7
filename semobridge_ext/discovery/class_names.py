"""Labels of a partly labelled set, and names for what is found beside them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs, _numbers


def is_unlabelled(label: Any) -> bool:
    """None, or the number −1, as semi-supervised learning writes it."""
    return label is None or (_numbers.is_whole_valued(label) and label == -1)


def encode_labels(where: str, y: Any, rows: int, num_classes: int) -> tuple[list[Hashable], Tensor]:
    """The old classes in order, and the code of each image, −1 for an unlabelled one."""
    labels = _inputs.names(where, y, rows, unlabelled=True)
    old = _inputs.ordered(label for label in labels if not is_unlabelled(label))
    if not old:
        remedy = "label some images of the old classes; None marks the others"
        raise ValueError(_errors.message(where, "y", "hold a label", "none", remedy))
    if len(old) > num_classes:
        got, remedy = f"{len(old)} old ones in y", "it counts old and new classes"
        contract = f"be at least the number of old classes ({num_classes} given)"
        raise ValueError(_errors.message(where, "num_classes", contract, got, remedy))
    place = {name: i for i, name in enumerate(old)}
    codes = [-1 if is_unlabelled(label) else place[label] for label in labels]
    return old, torch.tensor(codes, dtype=torch.int64)


def name_classes(old: list[Hashable], count: int) -> list[Hashable]:
    """The old names and as many new ones as make up the count, none of them an old one."""
    fresh = count - len(old)
    numbers: list[Any] = list(old)
    if all(_numbers.is_whole_valued(name) and name >= 0 for name in numbers):
        first = int(max(numbers)) + 1
        return [*map(int, numbers), *range(first, first + fresh)]
    if all(isinstance(name, str) for name in old):
        names, i = list(old), 0
        while len(names) < count:
            i += 1
            if f"new {i}" not in old:
                names.append(f"new {i}")
        return names
    return [*old, *(("new", i + 1) for i in range(fresh))]
