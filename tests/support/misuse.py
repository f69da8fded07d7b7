"""A mistake and its answer: an error of one type, in the grammar of errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

GRAMMAR = re.compile(r"[\w.]+: .+ must .+, got .+; .+", re.DOTALL)

Case = tuple[Callable[[], Any], type[Exception], str]


def assert_refused(call: Callable[[], Any], kind: type[Exception], holds: str) -> None:
    """That the call raises an error of this very type whose message holds a pattern."""
    with pytest.raises(kind, match=holds) as caught:
        call()
    assert type(caught.value) is kind
    assert GRAMMAR.fullmatch(str(caught.value)), str(caught.value)
