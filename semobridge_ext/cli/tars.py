"""WebDataset tars: samples in order, without unpacking."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from semobridge_ext import _digest
from semobridge_ext.cli.listing import IMAGES, Item, fail, given, hidden, state
from semobridge_ext.cli.tar_members import ERRORS, Archive, Member
from semobridge_ext.cli.tar_streams import TooLarge


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` and `{x,y}.tar`, as shells and WebDataset write them."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        width = len(span[1])
        words = [f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        words = inside.split(",")
    return [whole for word in words for whole in expand_braces(before + word + after)]


_TEXTS = {"txt": "caption", "cls": "label"}


class _Part(NamedTuple):
    """A member of a sample and what reads it."""

    member: Member
    read: Callable[[], bytes]


def _no_fields() -> dict[str, str | None]:
    return {}


class _Sample:
    """Consecutive members of one key: the first image and its texts; others count where there is no image."""

    def __init__(self, tar: Archive, key: str) -> None:
        self._tar, self._key = tar, key
        self._image: _Part | None = None
        self._fields: dict[str, _Part] = {}
        self._refused: Member | None = None

    def add(self, member: Member) -> None:
        ending = member.name[len(self._key) + 1 :].lower()
        if f".{ending}".endswith(IMAGES):
            if self._image is None or self._image.member.name == member.name:
                self._image = self._part(member)
        elif ending in _TEXTS:
            self._fields[_TEXTS[ending]] = self._part(member)
        elif member.reason:
            self._refused = self._refused or member

    def _part(self, member: Member) -> _Part:
        if member.reason or not self._tar.compressed:
            return _Part(member, partial(self._tar.content, member))
        try:
            # Now, as going back in a compressed file means to unpack it from its beginning.
            return _Part(member, partial(given, self._tar.content(member)))
        except ERRORS as error:
            return _Part(member, fail(str(error)))

    def item(self) -> Item:
        parts = [self._image, *self._fields.values()] if self._image else []
        refused = next((p.member for p in parts if p and p.member.reason), None)
        if self._image is None:
            refused = self._refused or next(
                (p.member for p in self._fields.values() if p.member.reason), None
            )
        if refused is not None:
            return Item(f"{self._tar.path}/{refused.name}", fail(refused.reason), _no_fields)
        if self._image is None:
            return Item(f"{self._tar.path}/{self._key}", fail("the sample holds no image"), _no_fields)
        image, texts = self._image, self._fields

        def fields() -> dict[str, str | None]:
            return {name: part.read().decode("utf-8", "replace").strip() for name, part in texts.items()}

        return Item(f"{self._tar.path}/{image.member.name}", lambda: io.BytesIO(image.read()), fields)


def _tar_items(path: str, limits: tuple[int, int]) -> Iterator[Item]:
    """Samples of one tar: consecutive files of one name up to the first dot."""
    key, sample = "", None  # type: tuple[str, _Sample | None]
    try:
        with Archive(path, *limits) as tar:
            damage = ""
            try:
                for member in tar.members():
                    if hidden(member.name):
                        continue
                    folder, _, name = member.name.rpartition("/")
                    found = f"{folder}/{name.partition('.')[0]}" if folder else name.partition(".")[0]
                    if sample is None or found != key:
                        if sample is not None:
                            yield sample.item()
                        key, sample = found, _Sample(tar, found)
                    sample.add(member)
            except TooLarge as error:
                damage = f"the tar is read no further: {error}"
            except ERRORS as error:
                damage = f"the tar is damaged here: {str(error) or type(error).__name__}"
            if sample is not None:
                yield sample.item()  # what stands before the damage is whole
            if damage:
                yield Item(path, fail(damage), _no_fields)
    except OSError as error:
        yield Item(path, fail(f"the tar cannot be read: {error}"), _no_fields)


def tar_digest(paths: list[str]) -> str:
    return _digest.marked(_digest.digest([[path, state(path)] for path in paths]))


class Tars:
    """The inputs of several tars.

    Args:
        paths: of the tars.
        limits: bytes of a member that is read, and of an unpacked tar.
    """

    def __init__(self, paths: list[str], limits: tuple[int, int]) -> None:
        self.paths, self.limits = paths, limits

    def __call__(self, start: int) -> Iterator[Item]:
        position = 0
        for path in self.paths:
            for item in _tar_items(path, self.limits):
                if position >= start:
                    yield item
                position += 1
