"""The safetensors files that the package writes by itself: the bytes of safetensors' own writer."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from semobridge_ext import _files

DTYPES = (
    torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16,
    torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    """Of every dtype, in no order; without elements, without axes, and not contiguous."""
    found = {f"{'zay'[i % 3]}{i}": torch.arange(5 * i + 1).to(dtype) for i, dtype in enumerate(DTYPES[::-1])}
    found |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "b": torch.ones(2, 3).double()}
    return found | {"turned": torch.arange(6.0).reshape(2, 3).T, "ä": torch.arange(3.0, requires_grad=True)}


def test_the_bytes_are_those_of_safetensors(tmp_path: Path):
    path, meta = tmp_path / "file.safetensors", {"format": "x", "fields": '{"ü": 1}'}
    _files.save_tensors(path, tensors(), meta)
    ours = path.read_bytes()

    def parts(data: bytes) -> tuple[dict, bytes]:
        end = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:end]), data[end:]

    kept = parts(ours)[0]["__metadata__"]  # with a checksum, which safetensors knows nothing of
    assert {name: text for name, text in kept.items() if name != "checksum"} == meta
    theirs = save({name: value.detach().contiguous() for name, value in tensors().items()}, kept)
    assert parts(ours) == parts(theirs)
    assert int.from_bytes(ours[:8], "little") % 8 == 0
    for name, value in load_file(path).items():
        assert torch.equal(value, tensors()[name]) and value.dtype is tensors()[name].dtype


def test_tensors_of_ever_new_sizes_leave_nothing(tmp_path: Path):
    """safetensors' writer kept some twenty blocks of memory for every new number of bytes."""
    path = tmp_path / "file.safetensors"

    def blocks(sizes: range) -> int:
        for size in sizes:
            _files.save_tensors(path, {"x": torch.zeros(size)}, {})
        gc.collect()
        return sys.getallocatedblocks()

    blocks(range(30_000, 30_020))
    before = blocks(range(30_020, 30_040))
    assert blocks(range(30_040, 30_240)) - before < 200


@pytest.mark.parametrize("dtype", [torch.complex64])
def test_what_no_file_of_ours_holds(tmp_path: Path, dtype: torch.dtype):
    with pytest.raises(ValueError):
        _files.save_tensors(tmp_path / "file.safetensors", {"x": torch.zeros(2, dtype=dtype)}, {})
    assert not list(tmp_path.iterdir())
