"""Where a checkpoint lies: a folder, a repository of the hub, or behind a URL; and the shards beside it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from semobridge_ext import _errors
from semobridge_ext.clip.remote import Clock, RangedFile, Repository, hub_place, open_url

FILES = ("open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json")
_URL = re.compile(r"\w+(\+\w+)*://")


class Place(Protocol):
    """A folder of whatever kind; `names` are the files that may hold the checkpoint, the likeliest first."""

    names: Sequence[str]
    is_remote: bool

    def address(self, name: str) -> str: ...

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> Path | RangedFile: ...

    def nothing(self) -> FileNotFoundError:
        """The error for a place that has none of its names."""
        ...


def _holds_none(function: str, folder: str, got: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{function}: {folder} must hold one of {', '.join(FILES)}, got {got}; pass the file itself"
    )


class Local:
    """A folder on disk."""

    is_remote = False

    def __init__(self, function: str, folder: str, names: Sequence[str]) -> None:
        self.function, self.folder, self.names = function, folder, names

    def address(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def has(self, name: str) -> bool:
        return os.path.isfile(self.address(name))  # False also for a name that no file system takes

    def open(self, name: str) -> Path:
        if not self.has(name):
            raise self._absent(name)
        return Path(self.address(name))

    def _absent(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.function}: name_or_path must exist, got {self.address(name)}; check the name"
        )

    def nothing(self) -> FileNotFoundError:
        if len(self.names) == 1:
            return self._absent(self.names[0])
        return _holds_none(self.function, self.folder or ".", "none of them")


class Hub:
    """A repository of the hub: a file that huggingface_hub keeps on disk is read there."""

    is_remote = True

    def __init__(self, repository: Repository, names: Sequence[str]) -> None:
        self.repository, self.names = repository, names

    def address(self, name: str) -> str:
        return self.repository.url(name)

    def has(self, name: str) -> bool:
        return name in self.repository.files

    def open(self, name: str) -> RangedFile:
        if not self.has(name):
            raise self._absent(name)
        return self.repository.open(name)

    def _absent(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.repository.function}: {self.address(name)} must exist, got a repository with "
            f"{self.repository.listed()}; name one of its safetensors files"
        )

    def nothing(self) -> FileNotFoundError:
        if len(self.names) == 1:
            return self._absent(self.names[0])
        where = self.address("").rstrip("/")
        return _holds_none(self.repository.function, where, self.repository.listed())

    def cached(self) -> Local | None:
        """The folder of huggingface_hub's own cache, if it has one of the names."""
        for name in self.names:
            found = self.repository.in_cache(name)
            if found is not None:
                folder = found.removesuffix(name).rstrip(os.sep)
                return Local(self.repository.function, folder, [name])
        return None


class Url:
    """The folder part of an address."""

    is_remote = True

    def __init__(self, function: str, url: str, clock: Clock) -> None:
        self.function, self._clock = function, clock
        self._base, _, name = url.rpartition("/")
        self.names: Sequence[str] = [name]

    def address(self, name: str) -> str:
        if name not in self.names and self._base.startswith(("http:", "https:")):
            # Quoted, so that no escape of an index's own becomes a separator on the server.
            name = urllib.parse.quote(name)
        return f"{self._base}/{name}"

    def has(self, name: str) -> bool:
        return True  # the request will tell

    def open(self, name: str) -> RangedFile:
        return open_url(self.function, self.address(name), self._clock)

    def nothing(self) -> FileNotFoundError:
        return _holds_none(self.function, self._base, "none of them")


def shard(function: str, place: Place, index: str, file: Any) -> str:
    """The name of a shard that an index names; below the folder of the index."""
    parts = file.split("/") if isinstance(file, str) else []
    if not parts or set(parts) & {"", ".", ".."} or not file.isprintable() or set(file) & {"\\", ":"}:
        where = place.address(index)
        raise ValueError(
            f"{function}: {where} must name shards below its own folder, got {file!r:.100}; check the file"
        )
    return f"{index.rpartition('/')[0]}/{file}".lstrip("/")


def _hub_id(function: str, name: str) -> str | None:
    """ "org/repo" or "org/repo/file" for a name of the hub or of open_clip ("ViT-B-32:openai")."""
    name = name.removeprefix("hf-hub:").removeprefix("hf://")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+)?", name):
        return name
    architecture, colon, tag = name.partition(":")
    if not colon:
        return None
    import open_clip

    found = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    hub = (found or {}).get("hf_hub", "")
    if not hub:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:6]) or "none"
        contract = "name a checkpoint of open_clip's that lies on the hub"
        remedy = f"tags of {architecture}: {known}"
        raise ValueError(_errors.message(function, "name_or_path", contract, name, remedy))
    return hub.rstrip("/")


def find(function: str, source: Any, revision: str, clock: Clock) -> Place:
    """The place that a path, a URL or a name means."""
    if not isinstance(source, (str, os.PathLike)):
        contract, remedy = "be a path or a name", "pass for example 'ViT-B-32:openai'"
        got = _errors.describe(source)
        raise TypeError(_errors.message(function, "name_or_path", contract, got, remedy))
    text = os.fspath(source)
    is_url = isinstance(source, str) and "://" in text
    is_hub = isinstance(source, str) and text.startswith(("hf-hub:", "hf://"))
    if not is_url and not is_hub:
        path = Path(text).expanduser()
        if path.is_dir():
            return Local(function, str(path), FILES)
        if path.exists() or path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            return Local(function, str(path.parent), [path.name])
    hub = hub_place(text) if is_url else None
    name, revision = hub or (_hub_id(function, text) if is_hub or not is_url else None, revision)
    if name is not None:
        organisation, repository, *file = name.split("/", 2)
        return Hub(Repository(function, f"{organisation}/{repository}", revision, clock), file or FILES)
    if not is_url or not _URL.match(text):
        contract = "be a safetensors file, a folder, a URL, 'org/repo' or open_clip's 'architecture:tag'"
        raise ValueError(_errors.message(function, "name_or_path", contract, text, "check the name"))
    return Url(function, text, clock)
