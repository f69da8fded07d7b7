"""A checksum in files of tensors: what is read is what was written.

One entry of the metadata holds a CRC-32 of the other metadata and the tensors' names, and one of each
tensor (dtype, shape, bytes). They are of what a file says, not of how it is laid out, so that a file that
another program wrote with the same content is taken. CRC-32, because it is there against damage and must
not be felt: zlib's runs at several GB/s, blake2b at about one. It notices every flipped bit and every
stretch of up to 32, other damage in all but one of 2³² cases; who forges a file computes a right one.

Files of 0.1.0 and of other programs have no entry and are taken as they are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _digest

KEY = "checksum"
# In front of the value: a flipped bit in the key or in the mark leaves the other, so that no entry is lost.
MARK = "crc32:"
COPY_IT = "copy it again, or write it again with .save()"


def of_blocks(dtype: torch.dtype, shape: Sequence[int], blocks: Iterable[Tensor]) -> str:
    """Of a tensor whose rows come one block after the other."""
    kind = f"{str(dtype).removeprefix('torch.')} {list(shape)} "
    crc = zlib.crc32(kind.encode())
    for block in blocks:
        for data in _digest.pieces(block):
            crc = zlib.crc32(data, crc)
    return f"{crc:08x}"


def of(tensor: Tensor) -> str:
    """Eight hexadecimal digits."""
    return of_blocks(tensor.dtype, tensor.shape, [tensor])


def _of_header(metadata: Mapping[str, str], names: Iterable[str]) -> str:
    others = {key: text for key, text in metadata.items() if key != KEY}
    return f"{zlib.crc32(json.dumps([others, sorted(names)], sort_keys=True).encode()):08x}"


def entry(metadata: Mapping[str, str], sums: Mapping[str, str]) -> str:
    """The value of the entry, from the other metadata and the checksum of every tensor in the file."""
    return MARK + json.dumps({"": _of_header(metadata, sums), **sums}, sort_keys=True)


def check(
    function: str,
    path: Any,
    metadata: Mapping[str, str],
    names: Iterable[str],
    tensors: Mapping[str, Tensor],
    remedy: str = COPY_IT,
) -> None:
    """Raises a ValueError that names the file and what differs; without an entry nothing is checked.

    Args:
        function, path, remedy: for the message.
        metadata: of the file. names: of all of its tensors.
        tensors: those to check, as they were read.
    """
    if KEY not in metadata and not any(text.startswith(MARK) for text in metadata.values()):
        return
    kept = _parsed(metadata.get(KEY, ""))
    wrong = [] if kept.get("") == _of_header(metadata, names) else ["its header"]
    wrong += [repr(name) for name, value in tensors.items() if kept.get(name) != of(value)]
    if wrong:
        raise ValueError(
            f"{function}: {path} must hold what was written, got other bytes in {', '.join(wrong)}; {remedy}"
        )


def _parsed(text: str) -> dict[str, Any]:
    """The checksums by name; empty for what is no entry, so that all differ."""
    try:
        found = json.loads(text.removeprefix(MARK)) if text.startswith(MARK) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
