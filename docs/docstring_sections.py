"""Sphinx extension: reads the house's docstring sections.

The house writes a short section on one line (`Memory: the output.`) and several entries one after another
(`TypeError: no tensor. ValueError: shapes that do not fit.`). Napoleon wants a heading on a line of its own
and one entry a line, so the lines are rewritten before it sees them.
"""

from __future__ import annotations

import re
from typing import Any

CUSTOM = ("Numerics", "Memory", "Synchronisation", "Paper", "Fitted attributes")
_SECTION = re.compile(r"^(\s*)(Numerics|Memory|Synchronisation|Paper|Attributes)( \([^)]*\))?:[ ]*(.*)$")
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
            out.append(f"{blank}{name}:")
            text = " ".join(t for t in ((note or "").strip(), text) if t and not t.startswith("(beside"))
            if text:
                out.append(f"{blank}    {_sentence(text)}")
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
    return [indent + part.strip() for line in joined for part in _NEXT[kind].split(line)]


def split_entries(lines: list[str]) -> list[str]:
    """Gives each error and each fitted attribute an entry of its own."""
    out: list[str] = []
    at = 0
    while at < len(lines):
        heading = re.match(r"^\s*(Raises|Attributes):\s*$", lines[at])
        if not heading:
            out.append(lines[at] if ">>>" in lines[at] else _FITTED.sub(r"``\1``", lines[at]))
            at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end].strip() and _indent(lines[end]) > _indent(lines[at]):
            end += 1
        kind, body = heading[1], lines[at + 1 : end]
        if body and kind == "Attributes" and not _ENTRY[kind].match(body[0].strip()):
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


def _rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # "num_classes: C." must not begin an enumeration.
    lines[:] = [_LETTER.sub(r"\1\\.", line) for line in split_entries(split_sections(lines))]


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _rewrite, priority=100)  # before napoleon's 500
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
