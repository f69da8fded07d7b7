"""What a client may ask of `serve`, checked before anything is computed."""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

from semobridge_ext import _errors, _files, _numbers

MOST_HITS = 1000  # of one answer: each is a picture to decode
_LETTERS = 10_000  # of a text; CLIP reads some seventy words
_KNOWN = ("text", "image", "weight", "k", "filters", "group")


class Refused(ValueError):
    """A request that is answered by its reason and an HTTP status."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Query(NamedTuple):
    """One search: a text, the bytes of an image, or both."""

    text: str | None
    image: bytes | None
    weight: float  # of the text, where there are both
    k: int
    filters: dict[str, str]
    group: float | None  # cosine from which two hits are the same picture


def _wrong(argument: str, contract: str, value: Any, remedy: str) -> Refused:
    return Refused(_errors.message("serve", argument, contract, value, remedy))


def _text(value: Any) -> str | None:
    if value is None or (_files.is_text(value) and not value.strip()):
        return None
    if not _files.is_text(value) or len(value) > _LETTERS:
        got = f"a text of {len(value)} letters" if _files.is_text(value) else value
        raise _wrong("text", f"be a text of at most {_LETTERS} letters", got, 'pass for example "a red flag"')
    return value


def _image(value: Any) -> bytes | None:
    if value is None:
        return None
    remedy = "pass the bytes of an image file in base64, without a prefix"
    if not isinstance(value, str):
        raise _wrong("image", "be a text in base64", value, remedy)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong("image", "be a text in base64", str(error), remedy) from error


def _number(name: str, value: Any, remedy: str) -> float:
    if not _numbers.is_real(value) or not 0 <= value <= 1:  # NaN too
        raise _wrong(name, "lie in 0..1", value, remedy)
    return float(value)


def _filters(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_files.is_text(text) for text in value.values()):
        raise _wrong("filters", "map columns to texts", value, 'pass for example {"label": "cat"}')
    return value


def parse(body: bytes) -> Query:
    """The query of a JSON body, or Refused."""
    remedy = 'send for example {"text": "a red flag", "k": 24}'
    try:
        value = _files.parse_json(body)
    except ValueError as error:  # UnicodeDecodeError too
        raise _wrong("the body", "be JSON", str(error)[:200], remedy) from error
    if not isinstance(value, dict):
        raise _wrong("the body", "be a JSON object", value, remedy)
    if unknown := sorted(set(value) - set(_KNOWN)):
        raise _wrong("the body", f"hold {', '.join(_KNOWN)} alone", repr(unknown[0])[:80], "leave it out")
    text, image, k = _text(value.get("text")), _image(value.get("image")), value.get("k", 24)
    if text is None and image is None:
        raise _wrong("the body", "hold a text or an image", "neither", remedy)
    if not _numbers.is_whole(k) or not 1 <= k <= MOST_HITS:
        raise _wrong("k", f"be a whole number from 1 to {MOST_HITS}", k, "pass for example 24")
    weight = _number("weight", value.get("weight", 0.5), "0.5 is the mean of text and image")
    group = value.get("group")
    if group is not None:
        group = _number("group", group, "pass a cosine such as 0.98, or null")
    return Query(text, image, weight, k, _filters(value.get("filters")), group)
