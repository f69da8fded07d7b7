"""What is done to a file: cuts, flipped bits, and edits that keep its form and change what it says."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DEEP = 100_000  # brackets; a parser that calls itself ends the process there
ODD_WORDS = (
    "",
    "null",
    "[]",
    "{}",
    "0",
    "-1",
    "nan",
    "inf",
    "1e999",
    '"x"',
    "[[[]]]",
    "true",
    "9" * 400,
    "9" * 5000,
    "\x00",
    "\ud7ff",
    "[" * DEEP,
    '{"a":' * DEEP,
    "-1e308",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    -(10**30),
    1e300,
    -1e300,
    5e-324,
    float("nan"),
    float("inf"),
    [[]],
    [None],
    {"tuple": []},
    {"tuple": [{"tuple": 3}]},
    "\x00",
    "\ud800",
)


class Case(NamedTuple):
    kind: str
    label: str
    data: Callable[[], bytes]


# -- any file ----------------------------------------------------------------------------------------


def cuts(data: bytes, head: int, rng: random.Random, some: int = 64) -> Iterator[Case]:
    """Every length within the head, and some beyond."""
    rest = range(head, len(data))
    places = [*range(head), *rng.sample(rest, min(some, len(rest))), max(0, len(data) - 1)]
    for end in places:
        yield Case("cut", f"{end} of {len(data)} bytes", lambda end=end: data[:end])
    for extra in (b"\0", b"x" * 100):
        yield Case("cut", f"{len(extra)} bytes more", lambda extra=extra: data + extra)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


FLIPS = ("flip in the header", "flip in the data")


def flips(
    data: bytes, head: int, rng: random.Random, some: int = 512, most: int | None = None
) -> Iterator[Case]:
    """Every bit of the head, or a draw of `most` of them, and some beyond."""
    rest, first = range(8 * head, 8 * len(data)), range(8 * head)
    for bit in first if most is None else rng.sample(first, min(most, len(first))):
        yield Case(FLIPS[0], f"bit {bit}", lambda bit=bit: _flipped(data, bit))
    for bit in rng.sample(rest, min(some, len(rest))):
        yield Case(FLIPS[1], f"bit {bit}", lambda bit=bit: _flipped(data, bit))


# -- JSON --------------------------------------------------------------------------------------------


def _paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*at, key))


def _with(value: Any, at: tuple, new: Any) -> Any:
    if not at:
        return new
    changed = copy.copy(value)
    changed[at[0]] = _with(value[at[0]], at[1:], new)
    return changed


def _without(value: Any, at: tuple) -> Any:
    changed = copy.copy(value)
    if len(at) > 1:
        changed[at[0]] = _without(value[at[0]], at[1:])
    else:
        del changed[at[0]]
    return changed


def json_texts(text: str) -> Iterator[tuple[str, str]]:
    """Odd texts in place of one JSON text: each of its values replaced or left out."""
    for word in ODD_WORDS:
        yield f"{word[:20]!r} ({len(word)})", word
    try:
        value = json.loads(text)
    except ValueError:
        return
    for at in _paths(value):
        for odd in ODD_VALUES:
            yield f"{at} = {str(odd)[:20]}", json.dumps(_with(value, at, odd))
        if at:
            yield f"no {at}", json.dumps(_without(value, at))
    if isinstance(value, dict):
        yield "a key more", json.dumps({**value, "more": 1})
        first = json.dumps(next(iter(value), "x"))
        yield "a key twice", "{" + f"{first}: 7, {first}: 8, " + json.dumps(value)[1:]


def json_edits(data: bytes) -> Iterator[Case]:
    for label, text in json_texts(data.decode()):
        encode = lambda text=text: text.encode("utf-8", "surrogatepass")  # noqa: E731
        yield Case("edit", label, encode)
    yield Case("edit", "no UTF-8", lambda: data + b"\xff")
    yield Case("edit", "no UTF-8 in a string", lambda: data.replace(b'"', b'"\xff', 1))
    yield Case("edit", "UTF-16", lambda: data.decode().encode("utf-16"))


def line_edits(data: bytes) -> Iterator[Case]:
    """Each line of a file of JSON lines replaced, dropped or doubled."""
    lines = data.splitlines()

    def join(parts: list[bytes]) -> bytes:
        return b"\n".join(parts) + b"\n"

    for i, line in enumerate(lines):
        yield Case("edit", f"line {i} left out", lambda i=i: join(lines[:i] + lines[i + 1 :]))
        yield Case("edit", f"line {i} twice", lambda i=i: join([*lines[: i + 1], *lines[i:]]))
        for case in json_edits(line):
            put = lambda i=i, case=case: join([*lines[:i], case.data(), *lines[i + 1 :]])  # noqa: E731
            yield Case("edit", f"line {i}: {case.label}", put)
