"""Digests tell apart what differs in any byte, kind or place; stamps name it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from pathlib import Path

import pytest
import torch

from semobridge_ext import _digest, _version
from semobridge_ext._digest import changes, digest, stamp


def test_a_tensor_by_hand():
    """The bytes that are digested, written out: kind, lengths, dtype, shape, values."""
    values = torch.tensor([[1.5, -2.0, 0.25]])
    name = b"torch.float32"
    head = b"T" + struct.pack("<Q", len(name)) + name + struct.pack("<3Q", 2, 1, 3)
    data = head + struct.pack("<3f", 1.5, -2.0, 0.25)
    assert digest(values) == hashlib.blake2b(data, digest_size=32).hexdigest()


@dataclasses.dataclass
class Pair:
    first: object
    second: object


X = torch.arange(6, dtype=torch.float32).reshape(2, 3)
DIFFERENT = {
    "tensor": X, "one bit": X.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(5.0000005)),
    "order": X.flip(0), "columns": X[:, [1, 0, 2]], "shape": X.reshape(3, 2), "flat": X.reshape(6),
    "float64": X.double(), "float16": X.half(), "bfloat16": X.bfloat16(), "int64": X.long(),
    "zeros": torch.zeros(4), "negative zeros": -torch.zeros(4),
    "int32 zeros": torch.zeros(4, dtype=torch.int32),
    "empty": torch.empty(0), "empty of other shape": torch.empty(0, 3), "scalar": torch.tensor(1.0),
    "one row": torch.tensor([1.0]), "none": None, "false": False, "true": True, "0": 0, "1": 1, "1.0": 1.0,
    "text 1": "1", "bytes 1": b"1", "text None": "None", "no text": "", "nothing": [], "a nothing": [[]],
    "split 1": ["ab", "c"], "split 2": ["a", "bc"], "joined": ["abc"], "nested": [["ab"], "c"],
    "mapping": {"a": 1, "b": 2}, "other names": {"a": 1, "c": 2}, "exchanged": {"a": 2, "b": 1},
    "dataclass": Pair(X, 1), "dataclass exchanged": Pair(1, X), "-0.0": -0.0, "0.0": 0.0,
    "two tensors": [X[:1], X[1:]], "two others": [X[1:], X[:1]],
}  # fmt: skip


def test_all_that_differs_has_its_own_digest():
    found = {name: digest(value) for name, value in DIFFERENT.items()}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_strides_and_chunks_do_not_count(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    values = torch.randn(7, 5, 9, generator=torch.Generator().manual_seed(2)).mul(3).to(dtype)
    want = digest(values)
    strided = values.transpose(0, 2).contiguous().transpose(0, 2)
    wide = torch.zeros(7, 5, 18, dtype=dtype)
    wide[..., ::2] = values
    views = (strided, wide[..., ::2], values.clone().requires_grad_(dtype.is_floating_point))
    for size in (1, 8, 100, 1 << 24):
        monkeypatch.setattr(_digest, "_CHUNK_BYTES", size)
        assert [digest(v) for v in (values, *views)] == [want] * 4, size
    assert digest(torch.ones(3, 1).expand(3, 4)) == digest(torch.ones(3, 4))


def test_names_of_a_mapping_are_in_no_order():
    assert digest({"a": 1, "b": X}) == digest({"b": X, "a": 1})


@pytest.mark.parametrize("value", [object(), {1, 2}, X.to_sparse()], ids=["object", "set", "sparse"])
def test_what_has_no_digest_is_named(value: object):
    with pytest.raises(TypeError, match=r"^digest: .* must be"):
        digest(value)


def test_a_stamp_names_what_changed(monkeypatch: pytest.MonkeyPatch):
    facts = {"steps": 8, "lr": 0.5, "shots": X, "name": None, "parts": (1, 2)}
    before = stamp(facts)
    assert before["version"] == _version.__version__ and before["shots"] != before["lr"]
    assert changes(before, stamp(facts)) == ""
    assert changes(before, stamp({**facts, "steps": 9})) == "steps 8 (now 9)"
    assert changes(before, stamp({**facts, "shots": X.flip(0)})) == "shots"
    assert (
        changes(before, stamp({**facts, "lr": 1, "parts": (2, 1)}))
        == "lr 0.5 (now 1), parts [1, 2] (now [2, 1])"
    )
    assert changes(before, stamp({**facts, "name": X})) == "name null (now given)"
    assert changes(before, stamp({**facts, "steps": True})) == "steps 8 (now true)"
    long = {"path": "/" + "long/" * 30 + "a"}, {"path": "/" + "long/" * 30 + "b"}
    told = changes(stamp(long[0]), stamp(long[1]))
    assert re.fullmatch(r'path "/lon.*/long/a" \(now "/lon.*/long/b"\)', told) and len(told) < 140
    monkeypatch.setattr(_digest, "__version__", "9.9")
    assert changes(before, stamp(facts)) == f'version "{_version.__version__}" (now "9.9")'


def test_values_one_after_the_other():
    """No two sequences run together, and a file's digest is that of its pieces."""
    found = set()
    for values in (["ab", "c"], ["a", "bc"], ["abc"], [["ab", "c"]], ["c", "ab"], []):
        total = _digest.Digest()
        for value in values:
            total.add(value)
        found.add(total.hexdigest())
    assert len(found) == 6


def test_a_file_by_hand(tmp_path: Path):
    content = bytes(range(256)) * 4096 + b"the rest"  # one piece of 1 MiB, and another
    (tmp_path / "file").write_bytes(content)
    data = b"Y" + struct.pack("<Q", 1 << 20) + content[: 1 << 20] + b"Y" + struct.pack("<Q", 8) + b"the rest"
    want = hashlib.blake2b(data, digest_size=32).hexdigest()
    assert _digest.file_digest(tmp_path / "file") == _digest.bytes_digest(content) == want
