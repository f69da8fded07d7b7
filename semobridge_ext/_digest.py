"""What a resumable file remembers of the run that wrote it, and what has changed since.

One digest serves every command and file: blake2b over tensors (dtype, shape, bytes in order) and plain
values, each with its kind and length before it, so that no two values are written alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _numbers
from semobridge_ext._version import __version__

_CHUNK_BYTES = 1 << 24  # copied at once from a device or out of a strided tensor
_PIECE_BYTES = 1 << 20  # of a file; part of what the digest is, so it must not change
_MARK = "blake2b:"  # in front of a digest among settings

Update = Callable[[bytes | memoryview], None]


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in order, in contiguous pieces."""
    row = max(1, tensor[:1].numel() if tensor.dim() else 1)
    values = max(1, _CHUNK_BYTES // tensor.element_size())
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(values)
    elif tensor.numel() <= values:
        yield tensor.contiguous().view(-1)
    elif row > values:
        for part in tensor:
            yield from _blocks(part)
    else:
        for part in tensor.split(values // row):
            yield part.contiguous().view(-1)


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a dense tensor in order, at most 16 MiB at a time."""
    if tensor.numel():
        for block in _blocks(tensor.detach().resolve_conj().resolve_neg()):
            flat = block.cpu().as_strided(block.shape, (1,))  # a lone element may have any stride
            yield flat.view(torch.uint8).numpy().data


def _add_bytes(update: Update, kind: bytes, data: bytes) -> None:
    update(kind + struct.pack("<Q", len(data)))
    update(data)


def _add_tensor(update: Update, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"digest: tensor must be dense, got {tensor.layout}; convert it with .to_dense()")
    _add_bytes(update, b"T", str(tensor.dtype).encode())
    update(struct.pack(f"<{tensor.dim() + 1}Q", tensor.dim(), *tensor.shape))
    for data in pieces(tensor):
        update(data)


def _add(update: Update, value: Any) -> None:
    """Kind, length, content; containers hold their items in the same form, NumPy's numbers are Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        _add_tensor(update, value)
    elif value is None or isinstance(value, bool):
        _add_bytes(update, b"C", str(value).encode())
    elif isinstance(value, int):
        _add_bytes(update, b"I", str(int(value)).encode())
    elif isinstance(value, float):
        _add_bytes(update, b"F", float(value).hex().encode())
    elif isinstance(value, str):
        _add_bytes(update, b"S", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        _add_bytes(update, b"Y", value)
    elif isinstance(value, (list, tuple)):
        update(b"L" + struct.pack("<Q", len(value)))
        for item in value:
            _add(update, item)
    elif isinstance(value, Mapping):
        update(b"M" + struct.pack("<Q", len(value)))
        for name in sorted(value):
            _add(update, name)
            _add(update, value[name])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(update, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    else:
        raise TypeError(
            f"digest: value must be of tensors, numbers, texts and containers of them, got "
            f"{type(value).__name__}; turn it into one of these"
        )


class Digest:
    """A digest of values that come one after the other; each is written with its length."""

    def __init__(self) -> None:
        self._total = hashlib.blake2b(digest_size=32)

    def add(self, value: Any) -> None:
        _add(self._total.update, value)

    def hexdigest(self) -> str:
        return self._total.hexdigest()


def digest(value: Any) -> str:
    """64 hexadecimal digits of a tensor, a plain value, or a container or dataclass of such.

    Equal digests mean equal dtypes, shapes, bytes and order of everything inside; mappings are read by
    sorted name. Devices, strides and requires_grad do not count. Tensors are read in pieces of 16 MiB, so
    that neither a copy from a GPU nor a strided view needs memory for the whole.
    """
    total = Digest()
    total.add(value)
    return total.hexdigest()


def _stream_digest(file: BinaryIO) -> str:
    total = Digest()
    while piece := file.read(_PIECE_BYTES):
        total.add(piece)
    return total.hexdigest()


def file_digest(path: Any) -> str:
    """Of the bytes of a file, read in pieces of 1 MiB, each with its length."""
    with open(path, "rb") as file:
        return _stream_digest(file)


def bytes_digest(data: bytes) -> str:
    """What `file_digest` gives for a file that holds `data`."""
    return _stream_digest(io.BytesIO(data))


def marked(hexadecimal: str) -> str:
    """A digest as it stands among the settings of a stamp."""
    return _MARK + hexadecimal


# -- stamps --------------------------------------------------------------------------------------------

Stamp = dict[str, Any]  # JSON: fact -> setting, or the marked digest of a tensor


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, Tensor) or dataclasses.is_dataclass(value)


def stamp(facts: Mapping[str, Any]) -> Stamp:
    """The facts by name, as a file keeps them: settings as they are, tensors as digests; and the version."""
    kept = {name: marked(digest(v)) if _holds_tensor(v) else v for name, v in facts.items()}
    return json.loads(json.dumps({"version": __version__, **kept}, default=_numbers.for_json))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"  # paths differ at their end


def changes(found: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The facts that differ, named, with both values where these can be read; empty if none does."""
    told = []
    for name in sorted({*found, *now}):
        old, new = found.get(name), now.get(name)
        if old != new or type(old) is not type(new):
            hidden = any(isinstance(v, str) and v.startswith(_MARK) for v in (old, new))
            told.append(
                name if hidden and None not in (old, new) else f"{name} {_side(old)} (now {_side(new)})"
            )
    return ", ".join(told)


def _side(value: Any) -> str:
    return "given" if isinstance(value, str) and value.startswith(_MARK) else _shown(value)
