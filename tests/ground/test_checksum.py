"""No flipped bit of a saved file loads without a word, and files without a checksum load as before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import semobridge_ext as sb
from semobridge_ext import _checksum, _files
from semobridge_ext.cli import mappings
from semobridge_ext.cli.inversion_input import read_features
from tests.fuzz.targets import classifiers, common, growing_sets, inversion, maps
from tests.fuzz.tensor_attacks import Parts, raw
from tests.support.checksums import entry_of, resealed

SAVED: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], str]] = {
    **{
        name: (common.saved(made), getattr(sb, name).load, f"{name}.load")
        for name, made in {
            "Bridge": common.P.bridge, "LinearMap": maps.linear_map, "IsoCLIP": maps.isoclip,
            "SupportSet": growing_sets.support,
            **{kind: classifiers.fitted(kind) for kind in classifiers.MADE},
        }.items()
    },
    "map --mapping": (common.saved(maps.linear_map), mappings.load, "LinearMap.load"),
    "oti(out=)": (inversion.make_inversion, inversion.invert, "oti"),
    "SeMoBridgeT.fit(checkpoint=)": (classifiers.make_checkpoint, classifiers.train, "SeMoBridgeT.fit"),
}  # fmt: skip
FLIPS = {"oti": 6}  # of a file whose loading begins with a model; of others:
MOST = 48


@pytest.fixture(params=SAVED)
def saved(request, tmp_path: Path) -> tuple[Path, Callable[[Path], Any], str]:
    make, load, function = SAVED[request.param]
    return make(tmp_path), load, function


def flipped(whole: bytes, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused(load: Callable[[Path], Any], path: Path, function: str, what: str) -> str:
    try:
        load(path)
    except ValueError as error:
        # A damaged name of the format is told by who reads it first.
        assert re.match(rf"({re.escape(function)}|map): ", str(error)), (what, error)
        assert str(path) in str(error) and "; " in str(error), (what, error)
        return str(error)
    pytest.fail(f"{function} took a file with {what}")


def test_a_flipped_bit_of_the_data(saved):
    """Finite values loaded as others: 849 of 14400 random flips passed."""
    path, load, function = saved
    whole = path.read_bytes()
    start = 8 * (8 + int.from_bytes(whole[:8], "little"))
    step = (
        max(1, (8 * len(whole) - start) // FLIPS.get(function, MOST)) | 1
    )  # odd, so that every bit of a byte has its turn
    for bit in range(start, 8 * len(whole), step):
        path.write_bytes(flipped(whole, bit))
        told = refused(load, path, function, f"bit {bit} flipped")
        assert re.search("must hold what was written, got other bytes in '", told), told


def test_a_flipped_bit_of_the_header(saved):
    """Lengths, scales and names of classes stand there."""
    path, load, function = saved
    whole = path.read_bytes()
    end = 8 * (8 + int.from_bytes(whole[:8], "little"))
    for bit in range(0, end, max(1, end // FLIPS.get(function, MOST)) | 1):
        path.write_bytes(flipped(whole, bit))
        refused(load, path, function, f"bit {bit} flipped")


def test_a_flipped_bit_of_the_entry(tmp_path: Path):
    """A file whose entry has lost its name is not taken for an older one."""
    path = common.saved(common.P.bridge)(tmp_path)
    whole = path.read_bytes()
    at = whole.index(b'"checksum"')
    for bit in range(8 * at, 8 * (whole.index(b"}", at) + 1)):
        path.write_bytes(flipped(whole, bit))
        refused(sb.Bridge.load, path, "Bridge.load", f"bit {bit} flipped")


def test_a_file_without_an_entry(saved):
    """What 0.1.0 and other programs write; the checksum stands beside what they know."""
    path, load, _ = saved
    parts = Parts.of(path.read_bytes())
    meta = parts.header["__metadata__"]
    path.write_bytes(
        raw(parts.header | {"__metadata__": {k: meta[k] for k in meta if k != "checksum"}}, parts.data)
    )
    load(path)


def test_the_same_content_in_another_layout(saved):
    """The entry is of what a file says: safetensors' own writer orders metadata and tensors as it likes."""
    path, load, _ = saved
    with safe_open(path, "pt") as file:
        meta = dict(file.metadata())
    save_file(load_file(path), path, meta)
    load(path)


def test_the_entry_against_the_bytes(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    assert Parts.of(whole).header["__metadata__"]["checksum"] == entry_of(whole)
    changed = flipped(whole, 8 * len(whole) - 1)
    assert entry_of(changed) != entry_of(whole) and entry_of(resealed(changed)) == entry_of(changed)


@pytest.mark.parametrize(
    "entry", ["", "crc32:", "crc32:{}", "crc32:[]", "crc32:" + "[" * 100_000, "md5:0"], ids=len
)
def test_an_entry_that_is_none(tmp_path: Path, entry: str):
    path = common.saved(common.P.bridge)(tmp_path)
    parts = Parts.of(path.read_bytes())
    meta = parts.header["__metadata__"] | {"checksum": entry}
    path.write_bytes(raw(parts.header | {"__metadata__": meta}, parts.data))
    told = refused(sb.Bridge.load, path, "Bridge.load", entry[:20])
    assert "got other bytes in its header, 'text_projection', 'inverse'" in told


def test_tensors_that_changed_places(tmp_path: Path):
    """Both are of one shape and whole in themselves."""
    path = tmp_path / "file"
    _files.save_tensors(path, {"a": torch.ones(3), "b": torch.zeros(3)}, {"format": "f"})
    with safe_open(path, "pt") as file:
        meta = dict(file.metadata())
    save_file({"a": torch.zeros(3), "b": torch.ones(3)}, path, meta)
    with pytest.raises(ValueError, match=r"load: .* got other bytes in 'a', 'b'; copy it again, or write"):
        _files.load_tensors("load", path, "f", ("a", "b"))


def test_every_dtype_and_stride(tmp_path: Path):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(6, 5, generator=g, dtype=torch.float64)
    made = {str(d): x.to(d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8)}
    made |= {"turned": x.T, "every second": x[::2, 1::2], "none": x[:0]}
    made |= {"one": x[0, 0].clone(), "lone": x[:, 1:2].clone()[:1]}
    path = tmp_path / "file"
    _files.save_tensors(path, made, {"format": "f"})
    assert Parts.of(path.read_bytes()).header["__metadata__"]["checksum"] == entry_of(path.read_bytes())
    found, _ = _files.load_tensors("load", path, "f", tuple(made))
    assert all(torch.equal(found[name], value) for name, value in made.items())


def test_a_tensor_in_blocks():
    x = torch.randn(100, 7)
    assert _checksum.of_blocks(x.dtype, x.shape, x.split(33)) == _checksum.of(x)
    assert _checksum.of(x) != _checksum.of(x.view(7, 100)) != _checksum.of(x.view(torch.int32).view(7, 100))


def test_a_support_set_that_grew(tmp_path: Path):
    """Its segments are joined as they are written."""
    made = growing_sets.support()
    made.append(torch.eye(4)[:2], torch.tensor([2, 0]), torch.ones(2))
    made.save(tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    assert Parts.of(whole).header["__metadata__"]["checksum"] == entry_of(whole)


def test_a_mapped_support_set(tmp_path: Path, monkeypatch):
    """Its keys are not read when it is opened, and not compared; labels, weights and the header are."""
    path = common.saved(growing_sets.support)(tmp_path)
    whole = path.read_bytes()
    parts = Parts.of(whole)
    start = len(whole) - len(parts.data)
    monkeypatch.setattr(_files, "MAPPED_FROM", 1)
    for name in ("keys", "labels", "weights"):
        path.write_bytes(flipped(whole, 8 * (start + parts.header[name]["data_offsets"][0])))
        if name == "keys":
            sb.SupportSet.load(path)
        else:
            told = refused(sb.SupportSet.load, path, "SupportSet.load", name)
            assert f"got other bytes in {name!r};" in told
    path.write_bytes(
        whole.replace(b'"num_classes":"3"', b'"num_classes":"7"').replace(
            b'"num_classes": "3"', b'"num_classes": "7"'
        )
    )
    assert "got other bytes in its header;" in refused(
        sb.SupportSet.load, path, "SupportSet.load", "7 classes"
    )


def test_an_onnx_graph(tmp_path: Path):
    """All that from_onnx reads: the matrices, and which steps they make."""
    onnx = pytest.importorskip("onnx", reason="needed: pip install onnx")
    path = maps.make_onnx(tmp_path)
    whole = path.read_bytes()
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        at = 8 * whole.index(tensor.raw_data)
        for bit in range(at, at + 8 * len(tensor.raw_data), 13):
            path.write_bytes(flipped(whole, bit))
            told = refused(sb.LinearMap.from_onnx, path, "LinearMap.from_onnx", f"{tensor.name}: bit {bit}")
            assert f"got other bytes in {tensor.name!r}; write it again with .to_onnx()" in told
    path.write_bytes(whole.replace(b'"normalize": true', b'"normalize": null'))
    assert "its header" in refused(sb.LinearMap.from_onnx, path, "LinearMap.from_onnx", "another layout")
    props = {p.key: p.value for p in model.metadata_props if p.key != "checksum"}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString())
    assert sb.LinearMap.from_onnx(path).out_features == 6


@pytest.mark.parametrize("form", ["semobridge-ext inversion 2", "another program's"])
def test_features_that_invert_reads(tmp_path: Path, form: str):
    """Of an earlier inversion; what another program means by the entry is not ours to check."""
    path = tmp_path / "file.safetensors"
    _files.save_tensors(path, {"features": torch.ones(2, 3)}, {"format": form})
    assert torch.equal(read_features(str(path), "features"), torch.ones(2, 3))
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, 8 * len(whole) - 10))
    if form.startswith("semobridge"):
        refused(lambda path: read_features(str(path), "features"), path, "invert", "a flipped bit")
    else:
        assert not torch.equal(read_features(str(path), "features"), torch.ones(2, 3))


def test_json_of_the_entry(tmp_path: Path):
    """Names of tensors may hold anything; the header's own stands under none."""
    path = tmp_path / "file"
    _files.save_tensors(path, {'a "b"': torch.ones(1), "ü": torch.ones(1)}, {"format": "f", "x": "checksum"})
    meta = Parts.of(path.read_bytes()).header["__metadata__"]
    assert sorted(json.loads(meta["checksum"].removeprefix("crc32:"))) == ["", 'a "b"', "ü"]
    _files.load_tensors("load", path, "f", ('a "b"', "ü"))
