"""Fonts that can draw a text: Pillow's own, then the system's; what none can draw is shown by its code.

A font has a character when it draws other pixels for it than for one that no font has.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_NOBODY = "\U0010fffe"  # no character, and never one
_SUFFIXES = (".ttf", ".otf", ".ttc")
# Read in this order: upright text faces of wide cover before faces of one script, styles last.
_FIRST = ("dejavusans.", "notosans-regular", "notosanscjk-regular", "arial unicode", "wqy", "unifont")
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "medium", "condensed", "mono", "serif")


def _folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if os.name == "nt":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    return [home / ".fonts", *(Path(p) / "fonts" for p in (str(own), *shared.split(":")) if p)]


@cache
def system() -> tuple[str, ...]:
    """Font files of the system, those that are likely to serve first."""
    found = {
        os.path.join(folder, file)
        for top in _folders()
        for folder, _, files in os.walk(top)
        for file in files
        if file.lower().endswith(_SUFFIXES)
    }

    def rank(path: str) -> tuple[int, int, str]:
        file = os.path.basename(path).lower()
        first = next((i for i, name in enumerate(_FIRST) if file.startswith(name)), len(_FIRST))
        return first, sum(style in file for style in _STYLES), file

    return tuple(sorted(found, key=rank))


@lru_cache(maxsize=512)
def _font(path: str, size: int) -> Any:
    """Pillow's own where `path` is empty; None for a file that is no font."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
    except OSError:
        return None


def _drawn(font: Any, character: str) -> bytes:
    mask = font.getmask(character)
    return repr(mask.size).encode() + bytes(mask)


@lru_cache(maxsize=512)
def _nothing(path: str) -> bytes:
    return _drawn(_font(path, 16), _NOBODY)


def has(path: str, character: str) -> bool:
    """Whether a font draws a character."""
    font = _font(path, 16)
    if font is None:
        return False
    try:
        return _drawn(font, character) != _nothing(path)
    except (OSError, ValueError):  # bitmap fonts raise for what they lack, damaged ones for anything
        return False


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


@lru_cache(maxsize=1 << 16)
def font_for(character: str) -> str | None:
    """The first font that has a character: "" is Pillow's own, None no font."""
    if character == " " or (character.isascii() and character.isprintable()):
        return ""
    if not _is_shown(character):
        return None
    return next((path for path in ("", *system()) if has(path, character)), None)


def escaped(text: str) -> str:
    """The text, with code points in place of characters that no font has."""
    return "".join(c if font_for(c) is not None else c.encode("unicode_escape").decode("ascii") for c in text)


def runs(text: str) -> Iterator[tuple[str, str]]:
    """Pieces of a text with the font of each; a font goes on as long as it has what follows."""
    path, piece = "", ""
    for c in escaped(text):
        wanted = path if piece and (c == " " or (path and has(path, c))) else font_for(c) or ""
        if wanted != path and piece:
            yield piece, path
            piece = ""
        path, piece = wanted, piece + c
    if piece:
        yield piece, path


def width(text: str, size: int) -> float:
    return sum(_font(path, size).getlength(piece) for piece, path in runs(text))


def draw(pen: Any, at: tuple[float, float], text: str, size: int, fill: str) -> None:
    """Draws on a PIL ImageDraw; `at` is the left end of the line on which letters stand."""
    left, base = at
    for piece, path in runs(text):
        font = _font(path, size)
        pen.text((left, base), piece, fill=fill, font=font, anchor="ls")
        left += font.getlength(piece)


def fitted(text: str, most: float, size: int) -> str:
    """The text, with its end cut to an ellipsis where it is wider than `most`."""
    if width(text, size) <= most:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width(text[:middle] + "…", size) <= most else (low, middle - 1)
    return text[:low] + "…"


def lines(text: str, most: float, size: int, count: int) -> list[str]:
    """At most `count` lines, broken between words; a long word fills lines by itself."""
    found: list[str] = []
    rest = escaped(text).strip()
    while rest and len(found) < count - 1:
        if width(rest, size) <= most:
            break
        end = len(fitted(rest, most, size)) - 1
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else max(end, 1)
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*found, fitted(rest, most, size)] if rest else found


def for_matplotlib(texts: list[str]) -> tuple[list[str], list[str]]:
    """The texts as labels, and the font families to draw them with, matplotlib's own first.

    In the labels nothing is a formula, and a character that no font has is its code.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    families, shown = ["DejaVu Sans"], {}
    own = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    for c in sorted(set("".join(texts))):
        path = next((p for p in system() if has(p, c)), None) if _is_shown(c) and ord(c) not in own else None
        if path is not None and (name := FT2Font(path).family_name) not in families:
            font_manager.fontManager.addfont(path)
            families.append(name)
        drawn = path is not None or (_is_shown(c) and ord(c) in own)
        shown[c] = c if drawn else c.encode("unicode_escape").decode("ascii")
    shown["$"] = r"\$"
    return ["".join(shown[c] for c in text) for text in texts], families
