"""Edits of safetensors and .npy files that keep their form and change what they say."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.attacks import DEEP, Case, cuts, flips, json_edits, json_texts, line_edits
from tests.support.checksums import resealed

KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}


# -- safetensors -------------------------------------------------------------------------------------


class Parts(NamedTuple):
    header: dict[str, Any]
    data: bytes

    @classmethod
    def of(cls, whole: bytes) -> Parts:
        length = int.from_bytes(whole[:8], "little")
        return cls(json.loads(whole[8 : 8 + length]), whole[8 + length :])

    def tensors(self) -> dict[str, np.ndarray]:
        """Raw values by name; what NumPy does not know as 16-bit words."""
        found = {}
        for name, entry in self.header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                kind = KINDS.get(entry["dtype"], "<u2")
                found[name] = np.frombuffer(self.data[begin:end], kind).reshape(entry["shape"])
        return found


def raw(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def packed(parts: Parts, tensors: dict[str, np.ndarray]) -> bytes:
    """A well-formed file of the given values, under the dtypes of the old header."""
    names = {v: k for k, v in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": parts.header["__metadata__"]}
    data = b""
    for name, value in tensors.items():
        old = parts.header.get(name, {}).get("dtype")
        dtype = old if old in ("BF16",) else names.get(value.dtype.str.replace("|", ""), old)
        block = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(block)],
        }
        data += block
    return raw(header, data)


def _header_edits(parts: Parts) -> Iterator[tuple[str, bytes]]:
    header, data = parts
    size = len(data)
    for name in header:
        if name == "__metadata__":
            continue
        entry = header[name]

        def put(entry: dict[str, Any], name: str = name) -> bytes:
            return raw(header | {name: entry}, data)

        for dtype in (
            "F64",
            "F32",
            "I64",
            "I32",
            "U8",
            "BF16",
            "F8_E4M3",
            "BOOL",
            "C64",
            "F4",
            "X",
            "",
            3,
            None,
        ):
            if dtype != entry["dtype"]:
                yield f"{name}: dtype {dtype}", put(entry | {"dtype": dtype})
        shape = entry["shape"]
        shapes = [
            [],
            [0],
            [1, *shape],
            [*shape, 1],
            shape[::-1],
            [-1],
            [2**63],
            [2**64],
            [2**32, 2**32],
            [2**62, 4],
            [0, 2**62],
            [1.5],
            "x",
            None,
            [int(np.prod(shape))],
            [1] * 70,
            [*shape, 0],
        ]
        for other in shapes:
            if other != shape:
                yield f"{name}: shape {str(other)[:40]}", put(entry | {"shape": other})
        begin, end = entry["data_offsets"]
        for offsets in (
            [begin + 1, end + 1],
            [0, end - begin],
            [-8, end],
            [begin, 2**63],
            [begin, 2**64 - 1],
            [2**64, 2**65],
            [end, begin],
            [size, size + end - begin],
            [begin, end - 1],
            [0, 0],
            [begin],
            [0.5, 1],
            "x",
            None,
        ):
            if offsets != [begin, end]:
                yield f"{name}: offsets {offsets}", put(entry | {"data_offsets": offsets})
        yield f"{name}: no entry", raw({k: v for k, v in header.items() if k != name}, data)
        yield f"{name}: another name", raw({("x" if k == name else k): v for k, v in header.items()}, data)
        yield f"{name}: null", put(None)  # type: ignore[arg-type]
        text = json.dumps(header)
        twice = text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}" + "}"
        yield f"{name}: twice", raw(twice.encode(), data)
    yield (
        "an empty tensor more",
        raw(header | {"more": {"dtype": "F32", "shape": [0], "data_offsets": [size] * 2}}, data),
    )
    more = {"dtype": "U8", "shape": [16], "data_offsets": [size, size + 16]}
    yield "a tensor more", raw(header | {"more": more}, data + bytes(16))
    whole = raw(header, data)
    for length in (0, 1, 7, 99_999_999, 100_000_001, 2**31, 2**63 - 1, 2**64 - 1, len(whole)):
        yield f"header of {length} bytes", struct.pack("<Q", length) + whole[8:]
    for word in (
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"__metadata__": ' + b"[" * DEEP,
        b'{"__metadata__": {"format": 3}}',
        b'{"__metadata__": "x"}',
    ):
        yield f"header {word[:20]!r}", raw(word, data)
    text = json.dumps(header).encode()
    yield "no UTF-8 in a name", raw(text.replace(b'"F', b'"\xffF', 1), data)
    yield "no UTF-8 in the metadata", raw(text.replace(b"semobridge", b"semobridg\xff", 1), data)
    yield "no metadata", raw({k: v for k, v in header.items() if k != "__metadata__"}, data)


def _value_edits(parts: Parts) -> Iterator[tuple[str, bytes]]:
    tensors = parts.tensors()
    for name, value in tensors.items():
        floats = value.dtype.kind == "f"
        odd: list[Any] = [0, 1]
        if floats:
            most = float(np.finfo(value.dtype).max)
            odd += [np.nan, np.inf, -np.inf, most, -most, float(np.finfo(value.dtype).tiny), -1, 1e-30, 1e4]
        elif value.dtype.itemsize == 8:
            odd += [-1, 2**63 - 1, -(2**63), 2**31, 10**6]
        for number in odd:
            full = np.full_like(value, number)
            yield f"{name} = {number}", packed(parts, tensors | {name: full})
            if value.size:
                for at in (0, value.size - 1):
                    one = value.copy()
                    one.flat[at] = number
                    yield f"{name}[{at}] = {number}", packed(parts, tensors | {name: one})
        yield f"{name}: reversed", packed(parts, tensors | {name: value[::-1]})
        if floats:
            yield f"{name}: as integers", packed(parts, tensors | {name: value.astype(np.int64)})
            other = np.float32 if value.dtype == np.float64 else np.float64
            yield f"{name}: as {other.__name__}", packed(parts, tensors | {name: value.astype(other)})
            yield f"{name}: as float16", packed(parts, tensors | {name: value.astype(np.float16)})


def resized(parts: Parts) -> Iterator[tuple[str, bytes]]:
    """All axes of one size brought to another, so that every tensor still fits the others."""
    tensors = parts.tensors()
    sizes = sorted({size for value in tensors.values() for size in value.shape})
    for size in sizes:
        for other in {0, 1, max(0, size - 1), size + 1, 2 * size}:
            changed = {}
            for name, value in tensors.items():
                for axis, old in enumerate(value.shape):
                    if old == size:
                        value = np.take(value, np.arange(other) % max(1, size), axis) if size else value
                changed[name] = value
            if other != size:
                yield f"size {size} -> {other}", packed(parts, changed)


def tensor_edits(whole: bytes) -> Iterator[Case]:
    """All of the above for a safetensors file, and each text of its metadata."""
    parts = Parts.of(whole)
    for label, data in _header_edits(parts):
        yield Case("header edit", label, lambda data=data: data)
    for label, data in _value_edits(parts):
        yield Case("value edit", label, lambda data=data: data)
    for label, data in resized(parts):
        yield Case("resized", label, lambda data=data: data)
    meta = parts.header.get("__metadata__", {})
    for key, text in meta.items():
        yield Case(
            "metadata edit",
            f"no {key}",
            lambda key=key: raw(
                parts.header | {"__metadata__": {k: v for k, v in meta.items() if k != key}}, parts.data
            ),
        )
        for label, other in json_texts(text):
            changed = parts.header | {"__metadata__": meta | {key: other}}
            yield Case("metadata edit", f"{key}: {label}", lambda changed=changed: raw(changed, parts.data))


def _with_checksum(whole: bytes, rng: random.Random, most: int | None) -> Iterator[Case]:
    """The edits, and flipped bits again, with a right checksum: what is behind it stands on its own."""
    head = 8 + int.from_bytes(whole[:8], "little")
    for case in flips(whole, head, rng, most=most):
        yield _resealed(case, f"{case.kind}, resealed")
    for case in tensor_edits(whole):
        yield case if case.label.startswith("checksum: ") else _resealed(case, case.kind)


def _resealed(case: Case, kind: str) -> Case:
    return Case(kind, case.label, lambda: resealed(case.data()))


# -- .npy --------------------------------------------------------------------------------------------


def npy_edits(whole: bytes) -> Iterator[Case]:
    text, data = whole[10:128].decode(), whole[128:]

    def put(label: str, old: str, new: str, rest: bytes = data) -> Case:
        head = text.replace(old, new).rstrip()
        head += " " * (-(len(head) + 11) % 64) + "\n"
        return Case(
            "header edit", label, lambda: whole[:8] + struct.pack("<H", len(head)) + head.encode() + rest
        )

    shape = text[text.index("(") : text.index(")") + 1]
    for other in (
        "()",
        "(0, 0)",
        "(-1, 8)",
        "(4294967296, 4294967296)",
        "(9223372036854775807,)",
        "(1e9, 2)",
        "(True, 3)",
        "'x'",
        "(0, 8)",
        "(3, 0)",
        "[3, 4]",
        "(2, 3, 4)",
        "(" * 500 + ")" * 500,
    ):
        yield put(f"shape {other[:30]}", shape, other)
    for other in ("|O", "<f8", "<i4", ">f4", "<c8", "|S4", "<M8[s]", "[('a', '<f4')]", "x", "|V4", "<f16"):
        yield put(f"dtype {other}", text[text.index("<") : text.index("<") + 3], other)
    yield put("Fortran order", "False", "True")
    yield put("no expression", text, "__import__('os')")
    for value in (np.nan, np.inf, 1e38, 0):
        kind = text[text.index("<") : text.index("<") + 3]
        with np.errstate(over="ignore"):
            filled = np.full(len(data) // int(kind[2]), value).astype(kind).tobytes()
        yield Case("value edit", f"all {value}", lambda filled=filled: whole[:128] + filled)


# -- all of a form ---------------------------------------------------------------------------------


def attacks(whole: bytes, form: str, rng: random.Random, most: int | None = None) -> list[Case]:
    """Everything there is to try on a file of a form; of its head's bits a draw of `most`."""
    head = len(whole)
    edits: Iterator[Case] = iter(())
    if form == "safetensors":
        head, edits = 8 + int.from_bytes(whole[:8], "little"), _with_checksum(whole, rng, most)
    elif form == "json":
        edits = json_edits(whole)
    elif form == "lines":
        edits = line_edits(whole)
    elif form == "npy":
        head, edits = 128, npy_edits(whole)
    head = min(head, len(whole))
    return [*cuts(whole, head, rng), *flips(whole, head, rng, most=most), *edits]
