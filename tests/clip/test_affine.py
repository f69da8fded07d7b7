"""Projections with a bias: Bridge, IsoCLIP and class texts against NumPy in float64 with a one appended."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.clip import encode_image, encode_text, image_projection, text_projection
from tests.support.assertions import assert_close, assert_figures, assert_row_relative, assert_same_bits
from tests.support.towers import TEXT_CONFIG, VISION, D, custom_text_model, timm_linear

TEXT, RANK = 48, 24
IDS = torch.zeros(3, 16, dtype=torch.int64)
for _row, _length in enumerate((5, 9, 16)):
    IDS[_row, :_length] = torch.arange(100, 100 + _length) + 7 * _row
    IDS[_row, 0], IDS[_row, _length - 1] = 49406, 49407
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def affine_model() -> nn.Module:
    """open_clip with a bias at the end of both towers, as SigLIP's text and PE-Core's images."""
    torch.manual_seed(5)
    model = timm_linear(bias=True)
    model.text = custom_text_model({**TEXT_CONFIG, "proj_bias": True}).text
    with torch.no_grad():
        model.text.text_projection.bias.normal_()
        model.visual.head.proj.bias.normal_()
    return model.eval()


def own(layer: nn.Linear) -> np.ndarray:  # [K + 1, D]
    """The layer's matrix and bias in float64."""
    weight, bias = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
    return np.vstack([weight.T, bias])


def unit(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x / np.linalg.norm(x, axis=-1, keepdims=True))


def ones(x: Tensor) -> np.ndarray:
    return np.hstack([x.double().numpy(), np.ones((len(x), 1))])


def projected(x: Tensor, side: str, image: np.ndarray, text: np.ndarray, top: int, bottom: int) -> Tensor:
    """IsoCLIP as the paper writes it, on rows with a one appended."""
    u, _, ht = np.linalg.svd(image @ text.T, full_matrices=False)
    rank = min(*image.shape, *text.shape)
    basis = (u if side == "image" else ht.T)[:, :rank][:, top : rank - bottom]
    return unit(ones(x) @ basis @ basis.T @ (image if side == "image" else text))


def test_what_stands_before_the_projection() -> None:
    model = affine_model()
    with torch.no_grad():
        images, texts = model.encode_image(IMAGES).double(), model.encode_text(IDS).double()
    for rows, layer, want in (
        (encode_image(model, IMAGES, project=False), model.visual.head.proj, images),
        (encode_text(model, IDS, project=False), model.text.text_projection, texts),
    ):
        assert_row_relative(torch.from_numpy(ones(rows) @ own(layer)), want, "features", dtype=torch.float32)


@pytest.mark.parametrize("projection", [text_projection, image_projection])
def test_the_bias_is_asked_for(projection) -> None:
    model = affine_model()
    layer = model.text.text_projection if projection is text_projection else model.visual.head.proj
    assert_same_bits(projection(model, bias=True).double(), torch.from_numpy(own(layer)))
    with pytest.raises(
        TypeError, match=r"_projection: model must be linear without bias .*; bias=True appends"
    ):
        projection(model)
    with pytest.raises(TypeError, match=r"bias must be True or False, got int 1"):
        projection(model, bias=1)
    with torch.no_grad():
        layer.bias.zero_()  # PE-Core as timm converts it
    assert_same_bits(projection(model), layer.weight.T)
    assert_same_bits(projection(model, bias=True), layer.weight.T)


@pytest.mark.parametrize("atol", [0.0, 0.7])
def test_bridge(atol: float) -> None:
    model = affine_model()
    w = own(model.text.text_projection)
    bridge = sb.Bridge.from_clip(model, atol=atol, text_length=2.5)
    assert bridge.text_projection.shape == (TEXT + 1, D) == tuple(reversed(bridge.inverse.shape))
    f = torch.randn(6, D)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    kept = s > atol
    assert bridge.rank == kept.sum() and (atol == 0 or kept.sum() < RANK)
    inverse = (vt[kept].T / s[kept]) @ u[:, kept].T
    e = f.double().numpy() @ inverse
    e *= 2.5 / np.linalg.norm(e, axis=1, keepdims=True)
    assert_close(bridge(f), unit(e @ w), "bridge")
    assert_close(bridge(f, normalize=False), torch.from_numpy(e @ w), "bridge")
    assert_close(bridge(f, project=False, normalize=False), torch.from_numpy(e), "chain")
    bias = torch.randn(TEXT + 1)
    e = f.double().numpy() @ inverse + bias.double().numpy()
    assert_close(bridge(f, class_bias=bias), unit(e @ w), "chain")


def test_a_bridge_gives_a_text_back() -> None:
    """(x, 1) comes back from x·W + b where W has more columns than the tower is wide."""
    torch.manual_seed(1)
    w, b, x = torch.randn(8, 20).double(), torch.randn(20).double(), torch.randn(5, 8).double()
    bridge = sb.Bridge(w, text_bias=b, atol=0.0, text_length=1.0)
    t = x @ w + b
    assert_close(bridge(t), unit(t.numpy()), "bridge")
    assert_close(bridge(3 * t, project=False), unit(ones(x)), "chain")


def test_zeros_are_no_bias() -> None:
    w = torch.randn(8, 6)
    for bias in (None, torch.zeros(6), np.zeros(6, dtype=np.float32)):
        assert_same_bits(sb.Bridge(w, text_bias=bias).text_projection, w)
    iso = sb.IsoCLIP(w, w, image_bias=torch.zeros(6), k_top=1, k_bottom=1)
    x = torch.randn(4, 8)
    assert_same_bits(iso.image(x), sb.IsoCLIP(w, w, k_top=1, k_bottom=1).image(x))


def test_class_texts_have_a_one_appended() -> None:
    model, names = affine_model(), ["red apple", "dog"]
    got = sb.class_text_features(model, names, ("{}", lambda name: f"a photo of {name}"))
    tokens = __import__("open_clip").tokenizer.SimpleTokenizer(context_length=16)
    lengths = []
    for i, name in enumerate(names):
        with torch.no_grad():
            rows = encode_text(model, tokens([name, f"a photo of {name}"]), project=False)
        before = ones(rows)
        after = before @ own(model.text.text_projection)
        for have, want in ((got.hidden, before), (got.projected, after)):
            assert_row_relative(have[i], unit(unit(want).mean(0).numpy()), "features")
        lengths.append(np.linalg.norm(before, axis=1).mean())
    assert_figures(got.length, torch.tensor(np.mean(lengths)), "features", dtype=torch.float32)
    bridge = sb.Bridge.from_clip(model, text_length=got.length)
    shots = torch.randn(8, D)
    clf = sb.SeMoBridgeT(bridge, got.projected, got.hidden, class_names=names, steps=3, warmup=0)
    assert clf.fit(shots, ["dog", "red apple"] * 4).bridge_.inverse.shape == (D, TEXT + 1)


@pytest.mark.parametrize("side", ["image", "text"])
def test_isoclip(side: str) -> None:
    model = affine_model()
    a, w = own(model.visual.head.proj), own(model.text.text_projection)
    iso = sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3, side=side)
    x = (
        encode_image(model, IMAGES, project=False)
        if side == "image"
        else encode_text(model, IDS, project=False)
    )
    apply = iso.image if side == "image" else iso.text
    want = projected(x, side, a, w, 2, 3)
    assert_close(apply(x), want, "op")
    small = apply(x, compress=True)
    assert small.shape[1] == RANK - 5
    assert_close(small @ small.T, want @ want.T, "op", dtype=torch.float32)
    native = unit(ones(x) @ (a if side == "image" else w))
    assert_close(iso.native_map(side)(x), native, "op")
    with torch.no_grad():
        features = model.encode_image(IMAGES) if side == "image" else model.encode_text(IDS)
    assert_row_relative(iso.native_map(side)(x), unit(features.double().numpy()), "features")
    assert iso.fit(x).n_features_in_ == x.shape[1] == (VISION if side == "image" else TEXT)
    assert_close(torch.as_tensor(iso.transform(x.numpy())), want, "op", dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"before the projection, width {x.shape[1]}, got"):
        apply(torch.randn(2, x.shape[1] + 1))


def test_isoclip_chooses_its_cuts_on_rows_with_the_one() -> None:
    model = affine_model()
    iso = sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3)
    x = torch.randn(24, VISION)
    y = torch.arange(24) % 4
    iso.tune(x, y, k_top=[0, 3], k_bottom=[0, 5])
    a, w = own(model.visual.head.proj), own(model.text.text_projection)
    for top, bottom, score in iso.search_:
        rows = projected(x, "image", a, w, top, bottom).float()
        assert score == sb.retrieval_metrics(rows, rows, y, y, same_set=True)["mAP"]


def test_files(tmp_path: Path) -> None:
    model = affine_model()
    bridge, iso = sb.Bridge.from_clip(model), sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3)
    f, x = torch.randn(4, D), torch.randn(4, VISION)
    bridge.save(tmp_path / "bridge")
    assert_same_bits(sb.Bridge.load(tmp_path / "bridge")(f), bridge(f))
    iso.save(tmp_path / "iso")
    loaded = sb.IsoCLIP.load(tmp_path / "iso")
    assert_same_bits(loaded.image(x), iso.image(x))
    assert_same_bits(loaded.text_bias, iso.text_bias)
    iso.map("image").save(tmp_path / "map")
    assert_same_bits(sb.LinearMap.load(tmp_path / "map")(x), iso.image(x))

    def kind(name: str) -> str:
        with safe_open(tmp_path / name, framework="pt") as file:
            return file.metadata()["format"]

    # A reader that knows no biases has to refuse the one, and to go on reading the other.
    sb.IsoCLIP(torch.randn(8, 6), torch.randn(7, 6), k_top=1, k_bottom=1).save(tmp_path / "plain")
    assert (kind("iso"), kind("plain")) == ("semobridge-ext isoclip 2", "semobridge-ext isoclip 1")
    other = copy.deepcopy(iso)
    assert_same_bits(other.image(x), iso.image(x))
    with torch.no_grad():
        other.image_bias.add_(1)
    assert not torch.equal(other.image(x), iso.image(x))


def test_checkpoints(tmp_path: Path) -> None:
    """From a file as from the model, whichever library wrote it."""
    model = affine_model()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    bridge = sb.Bridge.from_pretrained(tmp_path / "m.safetensors")
    assert_same_bits(bridge.text_projection, sb.Bridge.from_clip(model).text_projection)
    iso = sb.IsoCLIP.from_pretrained(tmp_path / "m.safetensors", k_top=2, k_bottom=3)
    x = torch.randn(4, VISION)
    assert_same_bits(iso.image(x), sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3).image(x))
    broken = {"text_model.head.weight": torch.eye(4), "text_model.head.bias": torch.full((4,), torch.nan)}
    save_file(broken, tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match=r"text_model\.head\.bias of .* must be finite"):
        sb.Bridge.from_pretrained(tmp_path / "n.safetensors")


REFUSED = {
    "shape": (torch.ones(5), ValueError, r"text_bias must be \[6\], got"),
    "kind": ([1.0] * 6, TypeError, r"text_bias must be"),
    "NaN": (torch.full((6,), torch.nan), ValueError, r"text_bias must"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    bias, error, text = REFUSED[case]
    with pytest.raises(error, match=rf"^Bridge: {text}"):
        sb.Bridge(torch.randn(8, 6), text_bias=bias)
    with pytest.raises(error, match=rf"^IsoCLIP: {text}"):
        sb.IsoCLIP(torch.randn(8, 6), torch.randn(8, 6), text_bias=bias, k_top=1, k_bottom=1).image(
            torch.ones(1, 8)
        )


def test_published_cuts_of_a_model_whose_bias_is_zero() -> None:
    """PE-Core ends in a Linear layer whose bias timm's conversion fills with zeros."""
    model = affine_model()
    with torch.no_grad():
        model.visual.head.proj.bias.zero_()
    iso = sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3)
    assert iso.image_bias is None
    a = own(model.visual.head.proj)[:-1]
    x = torch.randn(3, VISION)
    w = own(model.text.text_projection)
    u = np.linalg.svd(a @ w.T, full_matrices=False)[0][:, 2 : RANK - 3]
    assert_close(iso.image(x), unit(x.double().numpy() @ u @ u.T @ a), "op")
