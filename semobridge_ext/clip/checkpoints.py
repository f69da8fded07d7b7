"""Projection matrices out of a safetensors checkpoint, without the rest of it.

A safetensors file begins with the length of its header and the header, which gives every tensor's place.
Over HTTP two or three range requests therefore fetch a projection: about 1 MB of a 600 MB checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors, _files

_log = logging.getLogger("semobridge_ext")
_FORMAT = "semobridge-ext projection 1"
_HUB = "https://huggingface.co"
_SHARD = re.compile(r"[^/\\:?#%][^\\:?#%]*")  # a path below its folder, plain in an address too
_FILES = ("open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json")
_FIRST = 1 << 16  # bytes of the first request: most headers fit
_MOST = 100_000_000  # bytes of a header, safetensors' own limit
_TIMEOUT = 60  # seconds without an answer
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Parameters are [in, D]; the weight of a Linear layer is its transpose.
_KEYS = {
    "text": (
        "text_projection", "text_projection.weight", "text.text_projection", "text.text_projection.weight",
        "text.proj.weight",
    ),
    "image": (
        "visual.proj", "visual_projection.weight", "visual.head.proj.weight", "visual.trunk.head.weight",
    ),
}  # fmt: skip


class _Local:
    """A safetensors file on disk; only what is asked for is read."""

    def __init__(self, function: str, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.function, self.name = function, str(path)
        try:
            self._file = safe_open(os.fspath(path), framework="pt")
            self.keys = set(self._file.keys())
        except SafetensorError as error:
            raise ValueError(
                f"{function}: {path} must be a whole safetensors file, got a damaged or foreign one "
                f"({error}); convert other formats with safetensors, pickled ones are never read"
            ) from error

    def tensor(self, key: str) -> Tensor:
        if key not in self.keys:  # a shard that its index has another idea of
            raise ValueError(
                f"{self.function}: {self.name} must hold {key}, got {sorted(self.keys)[:5]}; check the index "
                "and its shards"
            )
        return self._file.get_tensor(key)


class _Remote:
    """A safetensors file behind a URL that serves ranges."""

    def __init__(self, function: str, url: str) -> None:
        self.function, self.name, self._tag = function, url, None
        first = self._read(0, _FIRST)
        length = int.from_bytes(first[:8], "little")
        if len(first) < 8 or length > _MOST:
            raise self._foreign(f"a header of {length} bytes")
        self._data = 8 + length
        head = first[8 : self._data]
        if len(head) < length:
            head += self._read(8 + len(head), length - len(head))
        try:
            self._header = _files.parse_json(head)
            self.keys = set(self._header) - {"__metadata__"}
        except (ValueError, TypeError) as error:
            raise self._foreign(str(error)) from error

    def _foreign(self, what: str) -> ValueError:
        return ValueError(
            f"{self.function}: {self.name} must be a safetensors file, got a damaged or foreign one "
            f"({what}); check the address"
        )

    def _read(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start`, fewer only at the end of the file."""
        status, headers, data = _get(
            self.function, self.name, {"Range": f"bytes={start}-{start + count - 1}"}, count
        )
        if status != 206:
            raise ValueError(
                f"{self.function}: the server of {self.name} must answer range requests, got status "
                f"{status}; download the file and pass its path"
            )
        tag = headers.get("ETag")
        if self._tag is not None and tag != self._tag:
            raise ValueError(
                f"{self.function}: {self.name} must stay the same while it is read, got another ETag; "
                "try again"
            )
        self._tag = tag
        return data

    def tensor(self, key: str) -> Tensor:
        try:
            entry = self._header[key]
            shape, (begin, end) = [int(n) for n in entry["shape"]], map(int, entry["data_offsets"])
            dtype = _DTYPES[entry["dtype"]]
        except (KeyError, ValueError, TypeError) as error:
            raise self._foreign(f"entry of {key}: {error!r}") from error
        if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise self._foreign(f"{key} of shape {shape} in {end - begin} bytes")
        data = self._read(self._data + begin, end - begin)
        if len(data) != end - begin:
            raise self._foreign(f"{key} ends after {len(data)} of {end - begin} bytes")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _get(function: str, url: str, headers: dict[str, str], most: int) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(url, headers={"User-Agent": "semobridge-ext", **headers})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            # A server that ignores the range sends everything: none of that is read.
            data = answer.read(most) if answer.status == 206 or "Range" not in headers else b""
            return answer.status, answer.headers, data
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise FileNotFoundError(
                f"{function}: {url} must exist, got status 404; check name and revision"
            ) from error
        if error.code == 416:
            raise ValueError(
                f"{function}: {url} must be a whole safetensors file, got one that ends early; check it"
            ) from error
        if error.code in (401, 403):
            raise PermissionError(
                f"{function}: {url} must be public, got status {error.code}; download it and pass its path"
            ) from error
        raise ConnectionError(
            f"{function}: {url} must be readable, got status {error.code}; try again later"
        ) from error
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ConnectionError(
            f"{function}: {url} must be reachable, got {error}; without a network pass a local path"
        ) from error


# -- where the file is -------------------------------------------------------------------------------


def _hub_id(function: str, name: str) -> str | None:
    """ "org/repo" or "org/repo/file" for a name of the hub or of open_clip ("ViT-B-32:openai")."""
    name = name.removeprefix("hf-hub:")
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


def _sources(function: str, source: Any, revision: str) -> list[str]:
    """Files or addresses that may hold the checkpoint, the likeliest first."""
    path = Path(source) if not isinstance(source, str) or "://" not in source else None
    if path is not None and path.is_dir():
        return [str(path / name) for name in _FILES]
    if path is not None and (path.exists() or path.suffix in (".safetensors", ".bin", ".pt", ".pth")):
        return [str(path)]
    text = str(source)
    if re.match(r"https?://", text):
        return [text]
    hub = _hub_id(function, text)
    if hub is None:
        contract = "be a safetensors file, a folder, a URL, 'org/repo' or open_clip's 'architecture:tag'"
        raise ValueError(_errors.message(function, "name_or_path", contract, text, "check the name"))
    organisation, repository, *file = hub.split("/", 2)
    base = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return [f"{base}/{organisation}/{repository}/resolve/{revision}/{name}" for name in (file or _FILES)]


def _open(function: str, place: str) -> _Local | _Remote:
    if "://" in place:
        return _Remote(function, place)
    if not os.path.isfile(place):  # also for a name that no file system takes
        raise FileNotFoundError(f"{function}: name_or_path must exist, got {place}; check the name")
    return _Local(function, Path(place))


def _index(function: str, place: str) -> dict[str, str]:
    """The weight map of a checkpoint in shards: tensor to file or address."""
    if "://" in place:
        data = _get(function, place, {}, _MOST)[2]
    elif Path(place).is_file():
        data = Path(place).read_bytes()
    else:
        raise FileNotFoundError(place)
    try:
        files = {str(key): str(file) for key, file in _files.parse_json(data)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{function}: {place} must be the index of a checkpoint, got {error!r}; check the file"
        ) from error
    away = sorted({file for file in files.values() if not _SHARD.fullmatch(file) or ".." in file.split("/")})
    if away:
        raise ValueError(
            f"{function}: {place} must name shards of its own folder, got {away[0]!r}; pass that file "
            "itself, if it is to be read"
        )
    parent = place.rpartition("/")[0]
    return {key: f"{parent}/{file}" for key, file in files.items()}


# -- the matrices ------------------------------------------------------------------------------------


def _key(function: str, name: str, keys: Iterable[str], side: str) -> str:
    keys = set(keys)
    for key in _KEYS[side]:
        if key not in keys:
            continue
        bias = f"{key.removesuffix('.weight')}.bias"
        if key.endswith(".weight") and bias in keys:
            raise ValueError(
                f"{function}: {name} must have a {side} projection without bias, got {bias}; a "
                "pseudo-inverse and IsoCLIP have no place for it"
            )
        return key
    like = sorted(k for k in keys if "proj" in k and "attn" not in k and "mlp" not in k)[:5]
    raise ValueError(
        f"{function}: {name} must hold a linear {side} projection, got none of {', '.join(_KEYS[side])} "
        f"(it has {', '.join(like) or 'nothing like it'}); SigLIP models have no linear image projection, "
        "others may keep it under another name: pass the matrix itself"
    )


def _matrix(file: _Local | _Remote, key: str) -> Tensor:
    value = file.tensor(key)
    if value.dim() != 2 or value.dtype not in _DTYPES.values() or not value.numel():
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be a float matrix, got {_errors.describe(value)}; "
            "this is no projection"
        )
    if bad := int((~torch.isfinite(value)).sum()):
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be finite, got {bad} non-finite of "
            f"{value.numel()} values; copy or fetch the file again"
        )
    return (value.T if key.endswith(".weight") else value).contiguous()


def _read(function: str, places: Sequence[str], sides: Sequence[str]) -> dict[str, Tensor]:
    for place in places:
        try:
            if place.endswith(".index.json"):
                shards = _index(function, place)
                keys = {side: _key(function, place, shards, side) for side in sides}
                return {side: _matrix(_open(function, shards[key]), key) for side, key in keys.items()}
            file = _open(function, place)
        except FileNotFoundError:
            if len(places) == 1:
                raise
            continue
        return {side: _matrix(file, _key(function, file.name, file.keys, side)) for side in sides}
    folder = places[0].rpartition("/")[0]
    raise FileNotFoundError(
        f"{function}: {folder} must hold one of {', '.join(_FILES)}, got none of them; pass the file itself"
    )


def cache_folder(given: Any = None) -> Path:
    """Where fetched projections are kept: given, SEMOBRIDGE_CACHE, or the user's cache folder."""
    if given is not None:
        return Path(given)
    if os.environ.get("SEMOBRIDGE_CACHE"):
        return Path(os.environ["SEMOBRIDGE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "semobridge-ext"


def read_projections(
    function: str,
    source: Any,
    sides: Sequence[str],
    *,
    revision: str = "main",
    cache_dir: Any = None,
    refresh: bool = False,
) -> dict[str, Tensor]:  # "text": [T, D], "image": [V, D]
    """The projections of a checkpoint, oriented ``x·matrix``, in its dtype; fetched ones are kept."""
    places = _sources(function, source, revision)
    if "://" not in places[0]:
        return _read(function, places, sides)
    folder = cache_folder(cache_dir)
    kept = {side: folder / f"{_digest(places, side)}.safetensors" for side in sides}
    if not refresh:
        try:
            return {
                side: _files.load_tensors(function, path, _FORMAT, ("matrix",))[0]["matrix"]
                for side, path in kept.items()
            }
        except (FileNotFoundError, ValueError):
            pass  # not fetched yet, or damaged: fetched anew
    found = _read(function, places, sides)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for side, path in kept.items():
            meta = {"format": _FORMAT, "source": str(source), "revision": revision, "side": side}
            _files.save_tensors(path, {"matrix": found[side]}, meta)
    except OSError as error:
        _log.warning("%s: the projection could not be kept in %s (%s)", function, folder, error)
    return found


def _digest(places: Sequence[str], side: str) -> str:
    return hashlib.sha256("\n".join([*places, side]).encode()).hexdigest()[:32]
