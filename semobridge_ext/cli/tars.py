"""WebDataset tars: samples in order, without unpacking."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator

from semobridge_ext import _digest
from semobridge_ext.cli.listing import IMAGES, Item, fail, state


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


def _no_fields() -> dict[str, str | None]:
    return {}


def _sample(path: str, tar: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]) -> Item:
    parts = {m.name[len(key) + 1 :].lower(): m for m in members}
    image = next((m for ext, m in parts.items() if f".{ext}".endswith(IMAGES)), None)

    def content(member: tarfile.TarInfo) -> bytes:
        file = tar.extractfile(member)
        data = file.read() if file is not None else b""
        if len(data) < member.size:
            raise ValueError(f"the tar ends within {member.name}")
        return data

    def fields() -> dict[str, str | None]:
        texts = {"caption": "txt", "label": "cls"}
        return {
            n: content(parts[e]).decode("utf-8", "replace").strip() for n, e in texts.items() if e in parts
        }

    if image is None:
        return Item(f"{path}/{key}", fail("the sample holds no image"), _no_fields)
    if image.name.startswith("/") or ".." in image.name.split("/"):  # the path would name another file
        return Item(f"{path}/{image.name}", fail("its name leaves the tar"), _no_fields)
    return Item(f"{path}/{image.name}", lambda: io.BytesIO(content(image)), fields)


def _tar_items(path: str) -> Iterator[Item]:
    """Samples of one tar: consecutive files of one name up to the first dot."""
    key, members = "", []  # type: tuple[str, list[tarfile.TarInfo]]
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # TarFile would keep every header it has seen
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                found = f"{folder}/{name.partition('.')[0]}" if folder else name.partition(".")[0]
                if members and found != key:
                    yield _sample(path, tar, key, members)
                    members = []
                key = found
                members.append(member)
            if members:
                yield _sample(path, tar, key, members)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield Item(path, fail(f"the tar is damaged here: {error}"), _no_fields)


def tar_digest(paths: list[str]) -> str:
    return _digest.marked(_digest.digest([[path, state(path)] for path in paths]))


class Tars:
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __call__(self, start: int) -> Iterator[Item]:
        position = 0
        for path in self.paths:
            for item in _tar_items(path):
                if position >= start:
                    yield item
                position += 1
