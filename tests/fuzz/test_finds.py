"""What the campaign found, each as a test of its own: a crafted or damaged file is refused by name."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import semobridge_ext as sb
from semobridge_ext import _locks
from semobridge_ext.cli import fewshot_problems, fewshot_store
from semobridge_ext.cli.commands import extract
from semobridge_ext.cli.inversion_input import read_features
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.sources import open_source
from semobridge_ext.clip.http_ranges import RangeCheck, UnfitAnswerError
from semobridge_ext.runtime import thresholds
from tests.fuzz.targets import classifiers, common, inputs, maps, shards
from tests.fuzz.tensor_attacks import Parts, raw
from tests.support.checksums import resealed, save_resealed

DEEP = "[" * 100_000


def refused(function: str, path: Path, call: Callable[[], Any]) -> None:
    """The house's grammar: the function, the path, a remedy; and exactly a ValueError."""
    with pytest.raises(ValueError) as found:
        call()
    assert type(found.value) is ValueError, found.value
    told = str(found.value)
    assert told.startswith(f"{function}: ") and str(path) in told and "; " in told, told


def with_field(path: Path, key: str, change: Callable[[Any], None]) -> None:
    """Rewrites one JSON field of a safetensors file's metadata."""
    parts = Parts.of(path.read_bytes())
    meta = parts.header["__metadata__"]
    value = json.loads(meta[key])
    change(value)
    header = parts.header | {"__metadata__": meta | {key: json.dumps(value)}}
    path.write_bytes(resealed(raw(header, parts.data)))


# -- estimators and maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[None], "x", {"tuple": []}, True])
def test_parameters_of_another_kind(tmp_path: Path, value: Any):
    """They were set as they stood, and raised a TypeError in the first prediction."""
    path = common.saved(classifiers.fitted("NearestClassMean"))(tmp_path)
    with_field(path, "fields", lambda fields: fields["params"].update(logit_scale=value))
    refused("NearestClassMean.load", path, lambda: sb.NearestClassMean.load(path))


@pytest.mark.parametrize("name", [None, float("nan")], ids=str)
@pytest.mark.parametrize("kind", ["SeMoBridgeClassifier", "NearestClassMean"])
def test_classes_without_a_name(tmp_path: Path, kind: str, name: float | None):
    """No label could name such a class: the first score refused its own predictions."""
    path = common.saved(classifiers.fitted(kind))(tmp_path)
    with_field(path, "fields", lambda fields: fields["names"].__setitem__(1, name))
    refused(f"{kind}.load", path, lambda: getattr(sb, kind).load(path))


def test_a_cache_without_channels(tmp_path: Path):
    path = common.saved(classifiers.fitted("APE"))(tmp_path)
    meta = Parts.of(path.read_bytes()).header["__metadata__"]
    found = load_file(path)
    found |= {"keys_": found["keys_"][:, :0].contiguous(), "channels_": found["channels_"][:0].contiguous()}
    save_resealed(found, path, meta)
    refused("APE.load", path, lambda: sb.APE.load(path))


def test_a_class_name_that_ends_in_a_zero_byte_stays_whole():
    """NumPy's text arrays drop it, so that the class could not be named any more."""
    clf = sb.NearestClassMean().fit(torch.eye(2), ["a\0", "a"])
    assert sorted(clf.classes_) == ["a", "a\0"]
    assert clf.score(torch.eye(2), ["a\0", "a"]) == 1.0


@pytest.mark.parametrize("name, value", [("k_top", 4), ("k_bottom", -1), ("compress", []), ("normalize", 1)])
def test_options_of_isoclip_that_it_cannot_have(tmp_path: Path, name: str, value: Any):
    """Cuts that leave nothing came out at the first use, without the file's name."""
    path = common.saved(maps.isoclip)(tmp_path)
    with_field(path, "params", lambda params: params.update({name: value}))
    refused("IsoCLIP.load", path, lambda: sb.IsoCLIP.load(path))


def test_a_linear_map_that_leaves_a_step_out(tmp_path: Path):
    """The tensors of the step stood in the file, and the map was another one."""
    path = common.saved(maps.linear_map)(tmp_path)
    with_field(path, "steps", lambda steps: steps.pop())
    refused("LinearMap.load", path, lambda: sb.LinearMap.load(path))


def test_an_onnx_tensor_whose_values_do_not_fit(tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="needed: pip install onnx")
    path = maps.make_onnx(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] += 1
    path.write_bytes(model.SerializeToString())
    refused("LinearMap.from_onnx", path, lambda: sb.LinearMap.from_onnx(path))


def test_an_onnx_tensor_with_values_in_another_file(tmp_path: Path):
    """Reading it would have opened a file that the graph names."""
    onnx = pytest.importorskip("onnx", reason="needed: pip install onnx")
    path = maps.make_onnx(tmp_path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    (tmp_path / "beside").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "beside")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    refused("LinearMap.from_onnx", path, lambda: sb.LinearMap.from_onnx(path))


def test_an_onnx_text_that_is_no_utf8(tmp_path: Path):
    """protobuf gives it as bytes, which no text can be compared with."""
    pytest.importorskip("onnx", reason="needed: pip install onnx")
    path = maps.make_onnx(tmp_path)
    whole = path.read_bytes()
    for old, new in (
        (b'[{"offset"', b'[{\xffoffset"'),
        (b"checksum", b"check\xffum"),
        (b"matrix_0", b"matrix\xff0"),
    ):
        path.write_bytes(whole.replace(old, new))
        refused("LinearMap.from_onnx", path, lambda: sb.LinearMap.from_onnx(path))


# -- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stamp", ["", "7", "[1]", DEEP], ids=len)
def test_a_checkpoint_with_a_stamp_that_is_none(tmp_path: Path, stamp: str):
    path = classifiers.make_checkpoint(tmp_path)
    parts = Parts.of(path.read_bytes())
    meta = parts.header["__metadata__"] | {"stamp": stamp}
    path.write_bytes(resealed(raw(parts.header | {"__metadata__": meta}, parts.data)))
    refused("SeMoBridgeT.fit", path, lambda: classifiers.train(path))


def test_a_lock_record_that_is_nested_too_deeply(tmp_path: Path):
    (tmp_path / "lock").write_text(DEEP)
    assert _locks._holder(tmp_path / "lock") == "another process is writing"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None], ids=str)
def test_projections_that_are_not_finite_or_empty(tmp_path: Path, value: float | None):
    path = maps.make_projections(tmp_path)
    found = load_file(path)
    if value is None:
        found["text_projection"] = torch.zeros(6, 0)
    else:
        found["text_projection"][1, 2] = value
    save_file(found, path)
    refused("Bridge.from_pretrained", path, lambda: sb.Bridge.from_pretrained(path))


def test_an_index_that_names_a_shard_without_the_tensor(tmp_path: Path):
    path = maps.make_index(tmp_path)
    save_file({"other": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    shard = tmp_path / "model.safetensors"
    refused("Bridge.from_pretrained", shard, lambda: sb.Bridge.from_pretrained(path))


def test_an_index_with_a_name_that_no_file_system_takes(tmp_path: Path):
    path = maps.make_index(tmp_path)
    path.write_text(json.dumps({"weight_map": {"text_projection": "9" * 400}}))
    with pytest.raises(FileNotFoundError, match=r"Bridge\.from_pretrained: name_or_path must exist"):
        sb.Bridge.from_pretrained(path)


@pytest.mark.parametrize(
    "told", ["bytes 4-11/99\x1f", "\x1cbytes 4-11/99", "bytes 4-11/99\xa0", "bytes 4-11/99\x85"]
)
def test_a_range_with_characters_that_are_no_blanks(told: str):
    """Python strips separators too; of a header's line blanks and tabs alone may stand around a value."""
    headers = {"Content-Range": told, "Content-Length": "8"}
    check = RangeCheck("https://host/x")
    with pytest.raises(UnfitAnswerError, match=r"^answer the range .+; "):
        check.check("bytes=4-11", 206, headers)
    check.check("bytes=4-11", 206, {**headers, "Content-Range": " bytes 4-11/99\t"})


# -- shards ------------------------------------------------------------------------------------------

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")


@pytest.mark.parametrize("name", ["settings.json", "summary.json"])
@pytest.mark.parametrize("text", ["7", "[]", "null", '"x"', DEEP], ids=len)
def test_json_of_a_folder_that_is_no_object(tmp_path: Path, name: str, text: str):
    path = shards.written_shards(name)(tmp_path)
    path.write_text(text)
    refused("report", path, lambda: shards.use_report(path))


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("settings.json", "model", 7),
        ("settings.json", "weights", "\ud800"),
        ("settings.json", "normalized", "no"),
        ("summary.json", "rows", []),
        ("summary.json", "seconds", 10**400),
    ],
)
def test_values_of_a_folder_of_another_kind(tmp_path: Path, name: str, key: str, value: Any):
    path = shards.written_shards(name)(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused("report", path, lambda: shards.use_report(path))


@pytest.mark.parametrize("use", [shards.use_retrieve, shards.use_search, shards.use_begin])
def test_damaged_parquet(tmp_path: Path, use: Callable[[Path], Any]):
    """pyarrow's errors named no function; extract's list of corrupt images is read from it, too."""
    path = shards.written_shards(shards.METADATA)(tmp_path)
    (path.parents[1] / "shards.jsonl").unlink()
    path.write_bytes(path.read_bytes()[:-20])
    function = use.__name__.removeprefix("use_").replace("begin", "extract")
    if use is shards.use_begin:
        folder = Writer(function, path.parents[1])
        refused(function, path, lambda: extract._resume_at(folder, 1, 100))
    else:
        refused(function, path, lambda: use(path))


@pytest.mark.parametrize(
    "key, value", [("corrupt", "[[1]]"), ("corrupt", DEEP), ("inputs", "-1"), ("inputs", "x")]
)
def test_counts_of_extract_that_are_none(tmp_path: Path, key: str, value: str):
    import pyarrow.parquet as pq

    path = shards.written_shards(shards.METADATA)(tmp_path)
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata(table.schema.metadata | {key.encode(): value.encode()}), path
    )
    folder = Writer("extract", path.parents[1])
    refused("extract", path, lambda: extract._resume_at(folder, 1, 100))


@pytest.mark.parametrize("use", [shards.use_search, shards.use_map])
def test_shards_with_another_number_of_records(tmp_path: Path, use: Callable[[Path], Any]):
    import pyarrow.parquet as pq

    path = shards.written_shards(shards.METADATA)(tmp_path)
    pq.write_table(pq.read_table(path).slice(7), path)
    refused(use.__name__.removeprefix("use_"), path, lambda: use(path))


def test_bytes_behind_the_rows(tmp_path: Path):
    """A header that tells fewer columns gave other rows."""
    path = shards.written_shards(shards.FEATURES)(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"(8, 3)", b"(8, 1)"))
    refused("retrieve", path, lambda: shards.use_retrieve(path))


def test_features_that_are_not_finite(tmp_path: Path):
    path = shards.written_shards(shards.FEATURES)(tmp_path)
    rows = np.load(path)
    rows[2, 1] = np.nan
    np.save(path, rows)
    refused("retrieve", path.parents[1], lambda: shards.use_retrieve(path))


def test_a_seal_of_infinity(tmp_path: Path):
    path = shards.written_shards("shards.jsonl")(tmp_path)
    path.write_text('[Infinity, "a", "b"]\n' + path.read_text())
    assert torch.equal(shards.use_begin(path)[0], torch.tensor([9, 8, 1, 0]))


# -- lists, features, results, thresholds ------------------------------------------------------------


def test_a_csv_header_that_is_no_utf8(tmp_path: Path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"path,l\xe9\na.png,x\n")
    listing = tmp_path / "inputs"
    refused("extract", path, lambda: open_source("extract", str(path), listing, label="", column=None))


def test_blend_parameters_that_are_no_floats(tmp_path: Path):
    """An integer that no tensor takes raised an OverflowError in the first prediction."""
    path = common.saved(classifiers.fitted("SeMoBridgeClassifier"))(tmp_path)
    with_field(path, "fields", lambda fields: fields["params"].__setitem__(0, -(10**30)))
    clf = sb.SeMoBridgeClassifier.load(path)
    with_field(path, "fields", lambda fields: fields.update(scale=-(10**30)))
    assert sb.SeMoBridgeClassifier.load(path).predict_proba(common.rows(7)).shape == (3, 5)
    assert clf.params_.s == -1e30 and clf.decision_function(common.rows(7)).shape == (3, 5)


@pytest.mark.parametrize("group, name", [("numbers", "beta_"), ("params", "beta")])
def test_a_sharpness_below_zero(tmp_path: Path, group: str, name: str):
    path = common.saved(classifiers.fitted("TipAdapter"))(tmp_path)
    with_field(path, "fields", lambda fields: fields[group].update({name: -1.0}))
    refused("TipAdapter.load", path, lambda: sb.TipAdapter.load(path))


def test_features_for_inversion_with_bytes_behind_them(tmp_path: Path):
    path = inputs.make_npy(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"(3, 4)", b"(2, 4)"))
    refused("invert", path, lambda: read_features(str(path), "features"))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
def test_features_for_inversion_that_are_cut(tmp_path: Path, suffix: str):
    path, rows, buffer = tmp_path / f"file{suffix}", torch.ones(3, 4), io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, rows.numpy())
    elif suffix == ".pt":
        torch.save(rows, buffer)
    else:
        save_file({"features": rows}, path)
        buffer = io.BytesIO(path.read_bytes())
    path.write_bytes(buffer.getvalue()[:-9])
    refused("invert", path, lambda: read_features(str(path), "features"))


@pytest.mark.parametrize("label", [-1, 2**63 - 1, 2**40, float("nan"), float("inf"), 1j])
def test_labels_that_number_no_class(tmp_path: Path, label: complex):
    """Sums are kept by class number: the largest one asked for the memory."""
    path = inputs.features_file(".safetensors")(tmp_path)
    found = load_file(path)
    dtype = {float: torch.float64, complex: torch.complex64}.get(type(label), torch.int64)
    found["labels"] = found["labels"].to(dtype)
    found["labels"][0] = label
    save_file(found, path)
    test = tmp_path / "test.npz"
    refused("fewshot", path, lambda: fewshot_problems.of_files(path, None, test))


@pytest.mark.parametrize(
    "line",
    [
        '{"problem": "x"}',
        '{"problem": {}, "stamp": {}}',
        '{"episode": ["a", 1, []], "of": "", "records": []}',
        '{"episode": ["a", 1, 2], "of": "", "records": [{}]}',
        DEEP,
    ],
    ids=len,
)
def test_results_that_are_none(tmp_path: Path, line: str):
    path = inputs.make_results(tmp_path)
    with open(path, "a") as file:
        file.write(line + "\n")
    if line == DEEP:  # as a line cut short by a kill
        fewshot_store.Store(path)
    else:
        refused("fewshot", path, lambda: fewshot_store.Store(path))


@pytest.mark.parametrize("steps", [[[0, "eag?r"]], [[0, ""]]])
def test_thresholds_that_name_no_backend(tmp_path: Path, steps: Any):
    path = inputs.make_thresholds(tmp_path)
    record = json.loads(path.read_text())
    record["devices"]["card"]["calls"]["topk float32"] = steps
    path.write_text(json.dumps(record))
    refused("calibrate", path, lambda: thresholds.read(path))


def test_thresholds_nested_too_deeply(tmp_path: Path):
    path = tmp_path / "thresholds.json"
    path.write_text(DEEP)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        thresholds.read(path)
