"""Projection matrices out of a safetensors checkpoint, without the rest of it.

A safetensors file begins with the length of its header and the header, which gives every tensor's place.
From a server two or three range requests therefore fetch a projection: about 1 MB of a 600 MB checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors, _files
from semobridge_ext.clip import places
from semobridge_ext.clip.affine import Affine
from semobridge_ext.clip.places import Place, shard
from semobridge_ext.clip.remote import Clock, RangedFile

_log = logging.getLogger("semobridge_ext")
_FORMAT = "semobridge-ext projection 1"
_FIRST = 1 << 16  # bytes of the first request: most headers fit
_HEADER = 1 << 24  # bytes of a header or an index that are read from a server; real ones have a few million
_MATRIX = 1 << 28  # bytes of a matrix: 8192 x 8192 in float32
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Parameters are [in, D]; the weight of a Linear layer is its transpose.
_KEYS = {
    "text": (
        "text_projection", "text_projection.weight", "text.text_projection", "text.text_projection.weight",
        "text.proj.weight", "text_model.head.weight",
    ),
    "image": (
        "visual.proj", "visual_projection.weight", "visual.head.proj.weight", "visual.trunk.head.weight",
        "visual.trunk.head.fc.weight",
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
    """A safetensors file of which a client reads parts."""

    def __init__(self, file: RangedFile) -> None:
        self.function, self.name, self._file = file.function, file.name, file
        first = file.read(0, _FIRST)
        length = int.from_bytes(first[:8], "little")
        self._data = 8 + length
        size = file.size or 0
        if len(first) < 8 or self._data > size or length > _HEADER:
            raise self._foreign(f"a header of {length} bytes in a file of {size}, at most {_HEADER} are read")
        head = first[8 : self._data]
        if len(head) < length:
            head += file.read(len(first), length - len(head))
        try:
            self._header = _files.parse_json(head)
            self.keys = set(self._header.keys()) - {"__metadata__"}
        except (ValueError, AttributeError) as error:
            raise self._foreign(f"{type(error).__name__}: {error}"[:200]) from error

    def _foreign(self, what: str) -> ValueError:
        return ValueError(
            f"{self.function}: {self.name} must be a safetensors file, got a damaged or foreign one "
            f"({what}); check the address"
        )

    def _place(self, key: str) -> tuple[list[int], int, int, torch.dtype]:
        """Shape, first byte and end in the data, dtype."""
        try:
            entry = self._header[key]
            shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], _DTYPES[entry["dtype"]]
            numbers = [*shape, begin, end]
        except (KeyError, ValueError, TypeError) as error:
            raise self._foreign(f"entry of {key}: {error!r}"[:200]) from error
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise self._foreign(f"{key} at {numbers!r:.100}, which are no places in a file")
        return list(shape), begin, end, dtype

    def tensor(self, key: str) -> Tensor:
        shape, begin, end, dtype = self._place(key)
        bias = key.endswith(".bias")
        if len(shape) != (1 if bias else 2) or 0 in shape:
            raise ValueError(
                f"{self.function}: {key} of {self.name} must be a float {'row' if bias else 'matrix'}, got "
                f"shape {shape!r:.100}; this is no projection"
            )
        size = end - begin
        if size != math.prod(shape) * dtype.itemsize:
            raise self._foreign(f"{key} of shape {shape} in {size} bytes")
        if size > _MATRIX:
            raise self._foreign(f"{key} of {size} bytes, at most {_MATRIX} are fetched")
        there = (self._file.size or 0) - self._data - begin
        if there < size:
            raise self._foreign(f"{key} ends after {max(there, 0)} of {size} bytes")
        data = self._file.read(self._data + begin, size)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


# -- indices -----------------------------------------------------------------------------------------


def _open(function: str, place: Place, name: str) -> _Local | _Remote:
    file = place.open(name)
    return _Remote(file) if isinstance(file, RangedFile) else _Local(function, file)


def _index(function: str, place: Place, name: str) -> dict[str, str]:
    """The weight map of a checkpoint in shards: tensor to file."""
    where, file = place.address(name), place.open(name)
    data = _whole(file) if isinstance(file, RangedFile) else file.read_bytes()
    try:
        names = dict(_files.parse_json(data)["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{function}: {where} must be the index of a checkpoint, got {error!r:.200}; check the file"
        ) from error
    return {key: shard(function, place, name, file) for key, file in names.items()}


def _whole(file: RangedFile) -> bytes:
    """All of a small file, in two requests at most: its size is known with the first."""
    data = file.read(0, _FIRST)
    size = file.size or 0
    if size > _HEADER:
        raise ValueError(
            f"{file.function}: {file.name} must have at most {_HEADER} bytes, got {size}; check the address"
        )
    return data + file.read(len(data), size - len(data)) if size > len(data) else data


# -- the matrices ------------------------------------------------------------------------------------


def _key(function: str, name: str, keys: Iterable[str], side: str) -> str:
    keys = set(keys)
    for key in _KEYS[side]:
        if key not in keys:
            continue
        return key
    like = sorted(k for k in keys if "proj" in k and "attn" not in k and "mlp" not in k and len(k) < 80)[:5]
    raise ValueError(
        f"{function}: {name} must hold a linear {side} projection, got none of {', '.join(_KEYS[side])} "
        f"(it has {', '.join(like) or 'nothing like it'}); SigLIP models have no linear image projection, "
        "others may keep it under another name: pass the matrix itself"
    )


def _is_matrix(value: Tensor) -> bool:
    """A finite float matrix."""
    whole = value.dim() == 2 and value.numel() > 0 and value.dtype in _DTYPES.values()
    return whole and bool(torch.isfinite(value).all())


def _is_sound(held: Affine) -> bool:
    """What is kept, and what is taken from what was kept."""
    matrix, bias = held
    if bias is None:
        return _is_matrix(matrix)
    fits = _is_matrix(matrix) and bias.shape == matrix.shape[1:] and bias.dtype in _DTYPES.values()
    return fits and bool(torch.isfinite(bias).all())


def _bias_key(key: str, keys: Iterable[str]) -> str | None:
    """The bias beside a Linear layer's weight."""
    name = f"{key.removesuffix('.weight')}.bias"
    return name if key.endswith(".weight") and name in keys else None


def _bias(file: _Local | _Remote, key: str, matrix: Tensor) -> Tensor | None:
    """[D], or None for zeros."""
    value = file.tensor(key)
    if value.shape != matrix.shape[1:] or value.dtype not in _DTYPES.values():
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be [{matrix.shape[1]}] floats, got "
            f"{_errors.describe(value)}; this is no projection"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be finite, got NaN or infinite values; get the "
            "checkpoint anew"
        )
    return value if bool((value != 0).any()) else None


def _matrix(file: _Local | _Remote, key: str) -> Tensor:
    value = file.tensor(key)
    if value.dim() != 2 or value.numel() == 0 or value.dtype not in _DTYPES.values():
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be a float matrix, got {_errors.describe(value)}; "
            "this is no projection"
        )
    if not _is_matrix(value):
        raise ValueError(
            f"{file.function}: {key} of {file.name} must be finite, got NaN or infinite values; get the "
            "checkpoint anew"
        )
    return (value.T if key.endswith(".weight") else value).contiguous()


def _affine(files: Callable[[str], _Local | _Remote], key: str, keys: Iterable[str]) -> Affine:
    """A projection and its bias; `files` gives the file that holds a key."""
    matrix, bias = _matrix(files(key), key), _bias_key(key, keys)
    return Affine(matrix, None if bias is None else _bias(files(bias), bias, matrix))


def _read(function: str, place: Place, sides: Sequence[str]) -> dict[str, Affine]:
    for name in place.names:
        if not place.has(name):
            continue
        if name.endswith(".index.json"):
            return _read_shards(function, place, name, sides)
        return _read_file(_open(function, place, name), sides)
    raise place.nothing()


def _read_file(file: _Local | _Remote, sides: Sequence[str]) -> dict[str, Affine]:
    keys = {side: _key(file.function, file.name, file.keys, side) for side in sides}
    return {side: _affine(lambda _: file, key, file.keys) for side, key in keys.items()}


def _read_shards(function: str, place: Place, index: str, sides: Sequence[str]) -> dict[str, Affine]:
    shards = _index(function, place, index)
    keys = {side: _key(function, place.address(index), shards, side) for side in sides}
    opened: dict[str, _Local | _Remote] = {}

    def holding(key: str) -> _Local | _Remote:
        name = shards[key]
        if name not in opened:
            opened[name] = _open(function, place, name)
        return opened[name]

    return {side: _affine(holding, key, shards) for side, key in keys.items()}


def cache_folder(given: Any = None) -> Path:
    """Where fetched projections are kept: given, SEMOBRIDGE_CACHE, or the user's cache folder."""
    if given is not None:
        return Path(_files.place(given, "from_pretrained"))
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
    timeout: float,
) -> dict[str, Affine]:  # "text": [T, D] and [D], "image": [V, D] and [D]
    """The projections of a checkpoint, oriented ``x·matrix + bias``, in its dtype; fetched ones are kept."""
    clock = Clock(function, timeout)
    place = places.find(function, source, revision, clock)
    if not place.is_remote:
        return _read(function, place, sides)
    folder = cache_folder(cache_dir)
    kept = {side: folder / f"{_digest(place, side)}.safetensors" for side in sides}
    if not refresh:
        try:
            held = {side: _kept(function, path) for side, path in kept.items()}
            if all(map(_is_sound, held.values())):
                return held
        except (FileNotFoundError, ValueError):
            pass  # not fetched yet, or damaged: fetched anew
        if isinstance(place, places.Hub) and (on_disk := place.cached()) is not None:
            return _read(function, on_disk, sides)
    where = place.address(place.names[0])
    found = clock.within(function, where, lambda: _read(function, place, sides))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for side, path in kept.items():
            meta = {"format": _FORMAT, "source": str(source), "revision": revision, "side": side}
            tensors = {name: value for name, value in found[side]._asdict().items() if value is not None}
            _files.save_tensors(path, tensors, meta)
    except OSError as error:
        _log.warning("%s: the projection could not be kept in %s (%s)", function, folder, error)
    return found


def _kept(function: str, path: Path) -> Affine:
    tensors, _ = _files.load_tensors(function, path, _FORMAT, ("matrix",), optional=("bias",))
    return Affine(tensors["matrix"], tensors.get("bias"))


def _digest(place: Place, side: str) -> str:
    addresses = [place.address(name) for name in place.names]
    return hashlib.sha256("\n".join([*addresses, side]).encode()).hexdigest()[:32]
