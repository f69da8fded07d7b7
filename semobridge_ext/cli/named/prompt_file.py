"""Files of prompts by class, in CuPL's form: {class name: [sentence, …]}."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semobridge_ext import _files


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def read_prompts(function: str, path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The sentences of every class; names are compared without capitals and underscores."""
    if not path.is_file():
        raise FileNotFoundError(f"{function}: --prompts must be an existing file, got {path}; check the name")
    remedy = "write {class name: [sentence, ..]}"
    try:
        found = _files.parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{function}: --prompts {path} must be JSON, got {error}; {remedy}") from error
    if not isinstance(found, dict):
        got = type(found).__name__
        raise ValueError(f"{function}: --prompts {path} must be an object, got {got}; {remedy}")
    known: dict[str, list[str]] = {}
    for name, sentences in found.items():
        good = isinstance(sentences, list) and sentences
        if not good or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise ValueError(
                f"{function}: --prompts {path} must hold a list of sentences for every class, got another "
                f"value for {name[:40]!r}; {remedy}"
            )
        try:
            [s.encode() for s in sentences]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{function}: --prompts {path} must hold text, got half a character for {name[:40]!r}; "
                f"{remedy}"
            ) from error
        known.setdefault(_plain(name), sentences)
    lacking = [name for name in names if _plain(name) not in known]
    if lacking:
        shown = ", ".join(lacking[:5]) + (" .." if len(lacking) > 5 else "")
        raise ValueError(
            f"{function}: --prompts {path} must hold every class, got none for {len(lacking)} of "
            f"{len(names)}: {shown}; add them"
        )
    return {name: known[_plain(name)] for name in names}
