"""Right checksums for files of tensors that a test has changed, from their bytes alone."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8",
    "I32": "int32", "BOOL": "bool",
}  # fmt: skip


def _crc(*parts: bytes) -> str:
    return format(zlib.crc32(b"".join(parts)), "08x")


def entry_of(whole: bytes) -> str:
    """What the entry of a safetensors file should say; an exception of any kind where it has no form."""
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    meta = {key: text for key, text in header.pop("__metadata__").items() if key != "checksum"}
    found = {"": _crc(json.dumps([meta, sorted(header)], sort_keys=True).encode())}
    for name, fields in header.items():
        begin, end = fields["data_offsets"]
        found[name] = _crc(f"{KINDS[fields['dtype']]} {fields['shape']} ".encode(), data[begin:end])
    return "crc32:" + json.dumps(found, sort_keys=True)


def resealed(whole: bytes) -> bytes:
    """The file with the right entry in place of the one it has; as it is where it has none, or no form."""
    length = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + length]
    try:
        old, new = json.loads(text)["__metadata__"]["checksum"], entry_of(whole)
        # In the text, as the rest of the header may be odd in a way that no writer repeats.
        for ascii_alone in (True, False):
            was, is_now = (json.dumps(value, ensure_ascii=ascii_alone).encode() for value in (old, new))
            text = text.replace(was, is_now)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return whole  # no reader comes as far as the checksum
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def reseal(path: Path) -> None:
    """Gives a changed file the right checksum."""
    path.write_bytes(resealed(path.read_bytes()))


def save_resealed(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A file of ours with other content, whose metadata holds the old entry, with the right one."""
    save_file(tensors, path, metadata)
    reseal(path)
