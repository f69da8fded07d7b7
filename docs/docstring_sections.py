"""Sphinx extension: reads the house's docstring sections.

The house writes a short section on one line (`Memory: the output.`) and several entries one after another
(`TypeError: no tensor. ValueError: shapes that do not fit.`). Napoleon wants a heading on a line of its own
and one entry a line, so the lines are rewritten before it sees them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

CUSTOM = ("Numerics", "Memory", "Numerics and memory", "Synchronisation", "Paper", "Fitted attributes")
_SECTION = re.compile(
    r"^(\s*)(Numerics(?:, Memory)?|Memory|Synchronisation|Paper|Attributes)( \([^)]*\))?:[ ]*(.*)$"
)
_HEADING = re.compile(r"^\s*[A-Z]\w*( \([^)]*\))?:(\s|$)")
_ERROR = r"[A-Z]\w*(?:Error|Warning|Exception)"
_ERRORS = rf"{_ERROR}(?:, {_ERROR})*(?: or {_ERROR})?: "
_ATTRIBUTES = r"[a-z]\w*(?:, [a-z]\w*)*: "
_ENTRY = {
    "Raises": re.compile(_ERRORS),
    "Attributes": re.compile(_ATTRIBUTES),
}
_NEXT = {
    "Raises": re.compile(rf"(?<=[.;]) (?={_ERRORS})"),
    "Attributes": re.compile(r"(?<=[.;]) (?=[a-z]\w*_: )"),
}
_LETTER = re.compile(r"(?<=: )([A-Za-z])\.(?=\s|$)")
_FITTED = re.compile(r"(?<![`\w.])([a-z]\w*_)(?![\w`])")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _sentence(text: str) -> str:
    """With a capital, unless it begins with the name of a dtype or with code."""
    return text if re.match(r"b?float\d|`", text) else text[0].upper() + text[1:]


def split_sections(lines: list[str]) -> list[str]:
    """Puts the heading of a custom section on a line of its own."""
    out: list[str] = []
    inside: int | None = None  # indentation of the heading whose text is being moved
    for line in lines:
        found = _SECTION.match(line)
        if found and (inside is None or len(found[1]) <= inside):
            blank, name, note, text = found.groups()
            inside = len(blank)
            if out and out[-1].strip():
                out.append("")
            out.append(f"{blank}{name.replace(', M', ' and m')}:")
            text = " ".join(t for t in ((note or "").strip(), text) if t and not t.startswith("(beside"))
            if text:
                out.append(f"{blank}    {text if name == 'Attributes' else _sentence(text)}")
            continue
        if inside is not None and line.strip():
            if _indent(line) <= inside and (not out[-1].strip() or _HEADING.match(line)):
                inside = None
            elif _indent(line) <= inside:  # text that runs on at the heading's own indentation
                line = " " * (inside + 4) + line.lstrip()
        out.append(line)
    return out


def _entries(kind: str, body: list[str]) -> list[str]:
    """The entries of one section, each on one line."""
    joined: list[str] = []
    for line in body:
        if joined and not _ENTRY[kind].match(line.strip()):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.rstrip())
    indent = " " * _indent(body[0])
    parts = [part.strip() for line in joined for part in _NEXT[kind].split(line)]
    if kind == "Attributes":  # "train, val, test: [N] bool" describes three
        named = [part.partition(": ") for part in parts]
        parts = [f"{name}: {text}" for names, _, text in named for name in names.split(", ")]
    return [indent + part for part in parts]


def split_entries(lines: list[str], parameters: list[str] | None = None) -> list[str]:
    """Gives each argument, error and fitted attribute an entry of its own."""
    known = "|".join(map(re.escape, parameters or [])) or "(?!)"
    argument = re.compile(rf"(?<=[.;]) (?=(?:{known})(?:, (?:{known}))*: )")
    out: list[str] = []
    at = 0
    while at < len(lines):
        heading = re.match(r"^\s*(Args|Raises|Attributes):\s*$", lines[at])
        if not heading:
            out.append(lines[at] if ">>>" in lines[at] else _FITTED.sub(r"``\1``", lines[at]))
            at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end].strip() and _indent(lines[end]) > _indent(lines[at]):
            end += 1
        kind, body = heading[1], lines[at + 1 : end]
        if kind == "Args":
            out.append(lines[at])
            for line in body:
                first, *more = argument.split(line)
                out += [first, *(" " * _indent(body[0]) + entry for entry in more)]
        elif body and kind == "Attributes" and not _ENTRY[kind].match(body[0].strip()):
            # Names without descriptions: plain text.
            out.append(lines[at].replace("Attributes:", "Fitted attributes:"))
            out += [_FITTED.sub(r"``\1``", line) for line in body]
        else:
            out.append(lines[at])
            for entry in _entries(kind, body) if body else []:
                name, colon, text = entry.partition(": ")
                out.append(name + colon + _FITTED.sub(r"``\1``", text))
        at = end
    return out


def _parameters(obj: Any) -> list[str]:
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return []


def _rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # "num_classes: C." must not begin an enumeration.
    entries = split_entries(split_sections(lines), _parameters(obj))
    lines[:] = [_LETTER.sub(r"\1\\.", line) for line in entries]


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what a NamedTuple or a Module brings along; None decides nothing."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") or name == "extra_repr" else None


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _rewrite, priority=100)  # before napoleon's 500
    app.connect("autodoc-skip-member", _skip)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
