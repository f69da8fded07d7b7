"""Every public object says its shapes, dtypes, errors, numerics and memory, and shows an example that runs.

A method may leave numerics, memory and example to its class.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import clip

HEADINGS = ("Args", "Returns", "Raises", "Numerics", "Memory", "Example", "Note", "Attributes")
DTYPE = re.compile(r"float(16|32|64)|bfloat16|int(8|16|32|64)|\bbool\b|dtype|\bfloating\b|\binteger", re.I)
SHAPE = re.compile(r"\[[A-Z·*+0-9…., a-z_]*\]|scalar|same shape|shape of|0-d", re.I)
FILLER = re.compile(r"^\W*(nothing|none|n/?a|no errors?|never|-|–|\.)\W*$", re.I)


def sections(text: str) -> dict[str, str]:
    """Heading → what stands below it, or behind it on its line."""
    found: dict[str, str] = {}
    word = f"(?:{'|'.join(HEADINGS)})s?"
    parts = re.split(rf"^({word}(?:, {word})*)(?: \([^)]*\))?:", text, flags=re.MULTILINE)
    for headings, body in zip(parts[1::2], parts[2::2], strict=True):
        for heading in headings.split(", "):
            name = heading if heading in HEADINGS else heading.removesuffix("s")
            found[name] = found.get(name, "") + body
    return found


def signature_text(thing: Any) -> str:
    """Annotations as they are written; a class stands for its constructor."""
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""


def takes_tensors(thing: Any) -> bool:
    return "Tensor" in signature_text(thing)


def parameters(thing: Any) -> list[str]:
    found = inspect.signature(thing).parameters
    return [name for name in found if name not in ("self", "cls") and not name.startswith("_")]


def is_context(thing: Any) -> bool:
    inner = getattr(thing, "__wrapped__", None)
    return inspect.isgeneratorfunction(inner) or (
        inspect.isclass(thing) and issubclass(thing, AbstractContextManager)
    )


def returns_something(thing: Any) -> bool:
    if inspect.isclass(thing) or is_context(thing):
        return False
    return not signature_text(thing).endswith(("-> None", "-> 'None'", "-> Self", "-> 'Self'"))


def examples(text: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(text)


def lacks(name: str, thing: Any, owner: type | None = None) -> list[str]:
    """What the docstring of a public function, class or method lacks."""
    text = inspect.getdoc(thing) or ""
    if not text:
        return [f"{name}: no docstring"]
    wrong, found = [], sections(text)
    first = text.splitlines()[0]
    if not first.endswith((".", "``.", ":")):
        wrong.append(f"the first line is no sentence: {first!r}")
    names = parameters(thing)
    wrong += [f"{p} is not described" for p in names if not re.search(rf"\b{re.escape(p)}\b", text)]
    if takes_tensors(thing):
        wrong += [] if SHAPE.search(text) else ["no shape"]
        wrong += [] if DTYPE.search(text) else ["no dtype"]
    needed = []
    record = inspect.isclass(thing) and issubclass(thing, tuple)  # a named tuple of results: it only holds
    if owner is None and names:
        needed += ["Args"] if record else ["Args", "Raises"]
    if owner is None and returns_something(thing):
        needed.append("Returns")
    computes = takes_tensors(thing) and not record
    shared = sections(inspect.getdoc(owner) or "") if owner else {}
    if computes:
        needed += [h for h in ("Numerics", "Memory") if h not in shared]
    wrong += [f"no {heading}" for heading in needed if heading not in found]
    wrong += [f"{h} is filler: {b.strip()!r}" for h, b in found.items() if FILLER.match(b.strip())]
    if not examples(text) and not (owner and examples(inspect.getdoc(owner) or "")):
        wrong.append("no example")
    return [f"{name}: {what}" for what in wrong]


def methods(cls: type) -> Iterator[tuple[str, Callable]]:
    """Public methods that the package wrote, those of its private bases too; properties are attributes."""
    for name in dir(cls):
        thing = inspect.getattr_static(cls, name)
        if isinstance(thing, (classmethod, staticmethod)):
            thing = thing.__func__
        written = getattr(thing, "__module__", "") or ""
        if not name.startswith("_") and inspect.isfunction(thing) and written.startswith("semobridge_ext"):
            yield name, thing


DOORS: dict[str, ModuleType] = {
    "sb": sb, "sb.ops": sb.ops, "sb.reference": sb.reference, "sb.clip": clip,
    "sb.ray": sb.ray,
}  # fmt: skip


def public() -> dict[str, tuple[Any, type | None]]:
    """Name → object, and the class that it is a method of; each object once."""
    found: dict[str, tuple[Any, type | None]] = {}
    seen: set[int] = set()
    for door, module in DOORS.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            found[f"{door}.{name}"] = thing, None
            if inspect.isclass(thing):
                for method, function in methods(thing):
                    if id(function) not in seen:
                        seen.add(id(function))
                        found[f"{door}.{name}.{method}"] = function, thing
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_complete(name: str):
    wrong = lacks(name, *PUBLIC[name])
    assert not wrong, "\n" + "\n".join(wrong)


def test_public_objects_are_found():
    assert len(PUBLIC) > 60
    assert {"sb.bridge", "sb.Bridge.save", "sb.ops.project_normalize", "sb.reference.pinv"} <= set(PUBLIC)


# -- the rule itself ---------------------------------------------------------------------------------


def good(x: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th multiple.

    Args:
        x: [N, D] float32.
        k: The factor.

    Returns:
        [N, D] of x's dtype.

    Raises:
        ValueError: k is negative.

    Numerics:
        One rounding.

    Memory:
        O(N·D).

    Example:
        >>> 1 + 1
        2
    """
    return x * k


def changed(old: str, new: str) -> Any:
    def function(x: torch.Tensor, k: int) -> torch.Tensor: ...

    assert good.__doc__ and good.__doc__.count(old) >= 1
    function.__doc__ = good.__doc__.replace(old, new)
    return function


def test_a_complete_docstring_passes():
    assert lacks("good", good) == []


@pytest.mark.parametrize(
    "old,new,told",
    [
        ("The k-th multiple.", "The k-th multiple", "no sentence"),
        ("k: The factor.", "", "k is not described"),
        ("[N, D] float32.", "float32.", "no shape"),
        ("float32", "numbers", "no dtype"),
        ("Args:", "With:", "no Args"),
        ("Returns:", "Gives:", "no Returns"),
        ("Raises:", "Errors:", "no Raises"),
        ("ValueError: k is negative.", "Nothing.", "Raises is filler"),
        ("Numerics:", "Numbers:", "no Numerics"),
        ("Memory:", "Space:", "no Memory"),
        (">>> 1 + 1", "1 + 1", "no example"),
    ],
)
def test_what_is_missing_is_named(old: str, new: str, told: str):
    function = changed(old, new)
    if told == "k is not described":
        function = changed("k: The factor.\n", "\n")
        function.__doc__ = function.__doc__.replace("k is negative", "it is negative").replace("k-th", "next")
    if told in ("no shape", "no dtype"):
        word = "[N, D]" if told == "no shape" else "dtype"
        function.__doc__ = function.__doc__.replace(word, "")
    wrong = lacks("function", function)
    assert any(told in line for line in wrong), wrong


def test_an_object_without_docstring_is_named():
    def bare(x: torch.Tensor) -> None: ...

    assert lacks("bare", bare) == ["bare: no docstring"]


def test_a_method_leans_on_its_class():
    class Thing:
        """A thing.

        Numerics:
            Exact.

        Memory:
            O(1).

        Example:
            >>> 1
            1
        """

        def double(self, x: torch.Tensor) -> torch.Tensor:
            """Twice x, [N] float32."""
            return 2 * x

    assert lacks("double", Thing.double, Thing) == []
    assert lacks("double", Thing.double, object) == [
        "double: no Numerics", "double: no Memory", "double: no example"
    ]  # fmt: skip
