"""The callables of Ray Data as plain classes: what one process computes, and what the driver refuses."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from tests.support.assertions import assert_same_bits

N = 6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The arrays are small; conftest puts the count back."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawings() -> np.ndarray:  # [N, H, W, 3] uint8
    return sb.load_picto("arrows").images[:N].numpy()


@pytest.fixture(scope="module")
def features(drawings: np.ndarray) -> np.ndarray:  # [N, D]
    model, preprocess, _ = sb.load_picto_clip()
    from PIL import Image

    pixels, threads = torch.stack([preprocess(Image.fromarray(d)) for d in drawings]), torch.get_num_threads()
    torch.set_num_threads(1)  # last bits of the model's products hang on it
    with torch.inference_mode():
        found = model.encode_image(pixels).numpy()
    torch.set_num_threads(threads)
    return found


def png(drawing: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    return file.getvalue()


def objects(values: list) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def test_encode_takes_every_form_of_an_image(
    drawings: np.ndarray, features: np.ndarray, tmp_path: Path
) -> None:
    encoded = [png(d) for d in drawings]
    paths = [tmp_path / f"{i}.png" for i in range(N)]
    for path, data in zip(paths, encoded, strict=True):
        path.write_bytes(data)
    forms = {
        "arrays": drawings, "bytes": objects(encoded), "paths": objects([str(p) for p in paths]),
        "dictionaries": objects([{"bytes": data, "path": None} for data in encoded]),
    }  # fmt: skip
    encode = sb.ray.Encode(column="picture")
    for name, column in forms.items():
        found = encode({"picture": column, "id": np.arange(N)})
        assert_same_bits(torch.from_numpy(found["features"]), torch.from_numpy(features))
        assert found["error"].tolist() == [""] * N and found["id"].tolist() == list(range(N)), name


def test_an_image_that_cannot_be_decoded_keeps_its_row(drawings: np.ndarray) -> None:
    data = [png(d) for d in drawings]
    data[1], data[4] = data[1][:60], b"no image"
    found = sb.ray.Encode(normalize=True, dtype="float16")({"image": objects(data)})
    assert found["features"].dtype == np.float16
    assert np.isnan(found["features"]).all(axis=1).tolist() == [i in (1, 4) for i in range(N)]
    assert [bool(why) for why in found["error"]] == [i in (1, 4) for i in range(N)]
    assert "UnidentifiedImageError" in found["error"][4]
    lengths = np.linalg.norm(found["features"][[0, 2, 3, 5]].astype(np.float64), axis=1)
    assert (np.abs(lengths - 1) < 2**-9).all()
    none = sb.ray.Encode()({"image": objects([b"", b"x"])})
    assert none["features"].shape == (2, 192) and np.isnan(none["features"]).all()


def test_encode_before_the_projection(drawings: np.ndarray) -> None:
    found = sb.ray.Encode(before_projection=True)({"image": drawings})["features"]
    model, _, _ = sb.load_picto_clip()
    assert_same_bits(
        torch.from_numpy(found),
        sb.clip.encode_image(model, sb.picto_transform(torch.from_numpy(drawings)), project=False),
    )


@pytest.mark.parametrize("kind", ["array", "lists", "table"])
def test_map(features: np.ndarray, tmp_path: Path, kind: str) -> None:
    bridge = sb.Bridge.from_clip(sb.load_picto_clip()[0])
    bridge.save(tmp_path / "bridge.safetensors")
    batch: Any = {"features": features, "label": np.asarray(list("abcdef"))}
    if kind == "lists":
        batch["features"] = objects(list(features))
    if kind == "table":
        arrow = pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
        batch = arrow.table({"features": features.tolist(), "label": list("abcdef")})
        batch = batch.set_column(
            0, "features", batch.column("features").cast(arrow.list_(arrow.float32(), features.shape[1]))
        )
    given = sb.ray.Map.arguments(mapping=tmp_path / "bridge.safetensors", output="bridged")
    (tmp_path / "bridge.safetensors").unlink()  # no node needs it
    found = sb.ray.Map(**given)(batch)
    assert_same_bits(torch.from_numpy(found["bridged"]), bridge(torch.from_numpy(features)))
    assert list(found["label"]) == list("abcdef") and list(found) == ["features", "label", "bridged"]


def _estimators() -> dict[str, object]:
    text = torch.randn(3, 8)
    return {
        "NearestClassMean": sb.NearestClassMean(), "LDA": sb.LDA(), "GDA": sb.GDA(text),
        "TipAdapter": sb.TipAdapter(text), "ProKeR": sb.ProKeR(text),
        "SeMoBridgeClassifier": sb.SeMoBridgeClassifier(sb.Bridge(torch.randn(8, 8)), text),
    }  # fmt: skip


@pytest.mark.parametrize("name", _estimators())
def test_classify(name: str, tmp_path: Path) -> None:
    x, y = torch.randn(12, 8), [0, 1, 2] * 4
    clf = _estimators()[name].fit(x, y)
    clf.save(tmp_path / "clf.safetensors")
    queries = torch.randn(5, 8).numpy()
    classify = sb.ray.Classify(tmp_path / "clf.safetensors", scores="scores")
    found = classify({"features": queries, "label": np.zeros(5)})
    again = type(clf).load(tmp_path / "clf.safetensors")
    assert found["predicted"].tolist() == again.predict(queries).tolist()
    assert_same_bits(torch.from_numpy(found["scores"]), torch.from_numpy(again.logits(queries)))
    assert len(set(found["predicted"].tolist())) > 1 and found["label"].tolist() == [0] * 5
    assert classify({"features": queries[:0]})["scores"].shape == (0, 3)


@pytest.mark.parametrize("kind", ["oti", "ovi"])
def test_invert(kind: str, features: np.ndarray) -> None:
    model, _, tokenizer = sb.load_picto_clip()
    options = {"steps": 4, "num_tokens": 2} if kind == "oti" else {"steps": 2, "num_tokens": 1}
    invert = sb.ray.Invert(kind=kind, rows=N, seed=3, **options)
    parts = [invert({"features": features[part]}) for part in (slice(0, 4), slice(4, N))]
    shape = (2, 192) if kind == "oti" else (1, parts[0]["tokens"].shape[2])
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02
    rows = torch.from_numpy(features)
    if kind == "oti":
        want = sb.oti(model, rows, tokenizer=tokenizer, steps=4, num_tokens=2, init=start)
    else:
        want = sb.ovi(model, rows, steps=2, num_patches=1, init=start)
    assert_same_bits(torch.from_numpy(np.concatenate([p["tokens"] for p in parts])), want.tokens)
    assert_same_bits(torch.from_numpy(np.concatenate([p["inverted"] for p in parts])), want.features)
    assert parts[0]["steps_done"].tolist() == [options["steps"]] * 4


def test_invert_from_a_learned_start(tmp_path: Path, features: np.ndarray) -> None:
    model, _, tokenizer = sb.load_picto_clip()
    rows = torch.from_numpy(features)
    phi = sb.InversionMap.fit(
        model, rows, pilots=6, steps=2, refine=(), train_steps=0, tokenizer=tokenizer, ridge=1.0
    )
    phi.save(tmp_path / "map.safetensors")
    given = sb.ray.Invert.arguments(start=tmp_path / "map.safetensors", steps=2, rows=N)
    found = sb.ray.Invert(**given)({"features": features})
    want = sb.oti(model, rows, tokenizer=tokenizer, steps=2, init=phi)
    assert_same_bits(torch.from_numpy(found["tokens"]), want.tokens)


REFUSED = {
    "a near name": (sb.ray.Encode, {"model": "vit-b-3", "pretrained": "x"}, ValueError, "did you mean"),
    "a model": (sb.ray.Encode, {"model": torch.nn.Linear(1, 1)}, TypeError, "model must be a str"),
    "a dtype": (sb.ray.Encode, {"dtype": "int8"}, ValueError, "dtype must be float32 or float16, got"),
    "pixels": (sb.ray.Encode, {"max_pixels": 0}, ValueError, "max_pixels must be a whole number from 1 up"),
    "a column": (sb.ray.Encode, {"column": 3}, TypeError, "column must be a non-empty str, got int 3"),
    "no mapping": (sb.ray.Map, {"mapping": "nowhere"}, FileNotFoundError, "mapping must be an existing file"),
    "no bytes of one": (sb.ray.Map, {"mapping": b"other"}, ValueError, "mapping must be a saved mapping"),
    "an output": (sb.ray.Map, {"mapping": b"", "output": ""}, TypeError, "output must be a non-empty str"),
    "no estimator": (sb.ray.Classify, {"estimator": b"other"}, ValueError, "estimator must be a saved est"),
    "a kind": (sb.ray.Invert, {"kind": "both"}, ValueError, "kind must be oti or ovi, got str 'both'"),
    "steps": (sb.ray.Invert, {"steps": -1}, ValueError, "steps must be an int of at least 0"),
    "weights": (sb.ray.Invert, {"weights": "int8"}, ValueError, 'weights must be None or "bfloat16"'),
    "a start of ovi": (sb.ray.Invert, {"kind": "ovi", "start": b"x"}, ValueError, "start must stand beside"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_the_driver_refuses(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # nobody is asked for a cluster
    stage, given, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told) as caught:
        stage.arguments(**given)
    assert str(caught.value).startswith(f"ray.{stage.__name__}: ")


def test_a_saved_estimator_is_no_mapping(tmp_path: Path) -> None:
    sb.NearestClassMean().fit(torch.eye(2), [0, 1]).save(tmp_path / "clf.safetensors")
    with pytest.raises(ValueError, match=r"mapping must be a saved mapping.*NearestClassMean"):
        sb.ray.Map(tmp_path / "clf.safetensors")
    sb.LinearMap(torch.eye(2, dtype=torch.float64)).save(tmp_path / "map.safetensors")
    with pytest.raises(ValueError, match=r"saved APE, .* got format 'semobridge-ext linear map 1'"):
        sb.ray.Classify(tmp_path / "map.safetensors")


def test_a_batch_without_the_column() -> None:
    with pytest.raises(ValueError, match=r"column of the batch, got 'image', and the batch has img; name"):
        sb.ray.Encode()({"img": np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(TypeError, match=r"batch must be a dictionary of arrays or a pyarrow\.Table"):
        sb.ray.Encode()([1])
    sb_map = sb.ray.Map.arguments(mapping=_identity())
    with pytest.raises(ValueError, match="column 'features' must hold vectors of one length"):
        sb.ray.Map(**sb_map)({"features": objects([np.zeros(2), np.zeros(3)])})


def _identity() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "map.safetensors"
        sb.LinearMap(torch.eye(2, dtype=torch.float64)).save(path)
        return path.read_bytes()


def test_search_refuses_before_a_cluster_is_asked() -> None:
    queries = torch.eye(2)
    for given, kind, told in (
        ((torch.ones(2), None, 1), ValueError, "queries must be"),
        ((queries, None, -1), ValueError, "k must be an int from 0 up, got int -1"),
        ((queries, None, 1.5), TypeError, "k must be an int from 0 up, got float 1.5"),
    ):
        with pytest.raises(kind, match=told):
            sb.ray.topk(*given)
    with pytest.raises(ValueError, match=r"exclude must be \[2\]"):
        sb.ray.topk(queries, None, 1, exclude=[0])
    with pytest.raises(TypeError, match="exclude must be whole numbers"):
        sb.ray.topk(queries, None, 1, exclude=[0.5, 1.0])
    with pytest.raises(TypeError, match="column must be a str"):
        sb.ray.topk(queries, None, 1, column=3)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray must be installed .* pip install 'semobridge-ext\[ray\]'"):
        sb.ray.topk(torch.eye(2), None, 1)
