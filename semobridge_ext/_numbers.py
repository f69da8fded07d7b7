"""Numbers as users pass them: Python's own and NumPy's; True and False are none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from semobridge_ext import _errors

_WHOLE = (int, np.integer)
_REAL = (int, float, np.integer, np.floating)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number by its type: ``5.0`` is none."""
    return isinstance(value, _WHOLE) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a number by its type; it may be NaN."""
    return isinstance(value, _REAL) and not isinstance(value, bool)


def whole_numbers(function: str, argument: str, value: Any, usual: str) -> tuple[int, ...]:
    """A sequence of whole numbers as a tuple of ints; `usual` is one that the error shows."""
    remedy = f"pass {usual}"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        contract = "be a sequence of whole numbers"
        raise TypeError(_errors.message(function, argument, contract, _errors.describe(value), remedy))
    found = tuple(value)
    for number in found:
        if not is_whole(number):
            contract = "hold ints"
            raise TypeError(_errors.message(function, argument, contract, _errors.describe(number), remedy))
    return tuple(int(number) for number in found)
