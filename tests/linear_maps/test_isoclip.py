"""IsoCLIP against the paper's formula in float64, its compression, its models, its refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.clip import encode_image, encode_text
from semobridge_ext.clip.affine import Affine
from semobridge_ext.linear_maps.spectrum import PUBLISHED
from tests.support.assertions import (
    assert_close,
    assert_row_relative,
    assert_same_bits,
)
from tests.support.isoclip import F64, WIDTH, T, V, paper, unit
from tests.support.samples import DTYPES
from tests.support.towers import (
    VISION_MODELS,
    D,
    hugging_face_model,
    open_clip_model,
    openai_model,
    timm_linear,
)

# -- the formula -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_formula(matrices, dtype: torch.dtype, side: str):
    iso = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2, text_k_top=1, text_k_bottom=4)
    x = torch.randn(4, 6, V if side == "image" else T).to(dtype)
    cut = (3, 2) if side == "image" else (1, 4)
    got = getattr(iso, side)(x)
    assert got.dtype is dtype
    assert_close(got, paper(x, *matrices, *cut, side), "op")


@pytest.mark.parametrize("shape", [(20, 14, 12), (12, 20, 12), (9, 20, 12), (20, 8, 12), (12, 12, 12)])
def test_any_shape_of_model(shape):
    v, t, d = shape
    a, w = torch.randn(v, d), torch.randn(t, d)
    x = torch.randn(7, v, dtype=F64)
    iso = sb.IsoCLIP(a, w, k_top=2, k_bottom=1)
    rank = min(shape)
    assert iso.singular_values.shape == (rank,)
    assert_close(iso.singular_values, torch.linalg.svdvals(a.double() @ w.double().T)[:rank], "matrix")
    assert_row_relative(iso.image(x), paper(x, a, w, 2, 1, "image"), "isoclip", context="wide")
    assert iso.image(x, compress=True).shape == (7, rank - 3)


def test_text_side_takes_the_image_cut_where_it_has_none(matrices):
    iso, x = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2), torch.randn(5, T)
    assert_close(iso.text(x), paper(x, *matrices, 3, 2, "text"), "op")


def test_no_cut_is_native(matrices):
    iso, x = sb.IsoCLIP(*matrices, k_top=0, k_bottom=0), torch.randn(5, V, dtype=F64)
    want = unit(x @ matrices[0].double())
    assert_row_relative(iso.image(x), want, "isoclip", context="nothing cut")
    assert_row_relative(iso.native_map("image")(x), want, "linear_map", context="native")


def test_gradient(matrices):
    iso = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2)
    x = torch.randn(2, V, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(iso.image, (x,))
    assert torch.autograd.gradcheck(lambda x: iso.image(x, compress=True), (x,))


# -- compression -------------------------------------------------------------------------------------


def test_compression_is_exact(matrices):
    iso = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2)
    x = torch.randn(300, V, dtype=F64)
    want, small = paper(x, *matrices, 3, 2, "image"), iso.image(x, compress=True)
    assert small.shape == (300, WIDTH - 5)
    assert_close(small @ small.T, want @ want.T, "matrix")
    # The factor is Cholesky's.
    u = torch.linalg.svd(matrices[0].double() @ matrices[1].double().T)[0][:, 3 : WIDTH - 2]
    rows = u.T @ matrices[0].double()
    c = torch.linalg.cholesky(rows @ rows.T)
    assert_close(small @ small.T, unit(x @ u @ c) @ unit(x @ u @ c).T, "matrix")
    assert_close(iso.map(compress=True).matrix.abs(), (u @ c).abs(), "matrix")


def test_compression_ranks_the_same(matrices):
    iso = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2)
    x = torch.randn(500, V, dtype=F64)  # float32 would swap neighbours that are level to its rounding
    wide, small = iso.image(x), iso.image(x, compress=True)
    want = (wide @ wide.T).argsort(dim=1, descending=True)
    assert torch.equal((small @ small.T).argsort(dim=1, descending=True), want)
    found = iso.topk(x, x, 20)
    assert torch.equal(found.indices, want[:, :20])
    assert torch.equal(found.indices[:, 0], torch.arange(500))
    excluded = iso.topk(x, x, 20, exclude=torch.arange(500))
    assert torch.equal(excluded.indices[:, :19], found.indices[:, 1:])


def test_published_widths():
    """The compressed widths that follow from the published cuts: 312, 262 and 318."""
    for name, (v, t, d), width in (
        ("ViT-B/32", (768, 512, 512), 312),
        ("vit-b-16", (768, 512, 512), 262),
        ("ViT-L-14", (1024, 768, 768), 318),
    ):
        generator = torch.Generator().manual_seed(0)
        a, w = torch.randn(v, d, generator=generator), torch.randn(t, d, generator=generator)
        iso = sb.IsoCLIP._made(Affine(a, None), Affine(w, None), name, {"compress": True})
        assert iso.map("image").out_features == width
        assert iso.map("text").in_features == t
    assert set(PUBLISHED) >= {"ViT-B/32", "OpenCLIP ViT-B/16"}


# -- models ------------------------------------------------------------------------------------------

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[49406, 5, 9, 49407] + [0] * 12, [49406, 7, 3, 11, 49407] + [0] * 11])
MODELS = {
    "open_clip": open_clip_model,
    "OpenAI": openai_model,
    "Hugging Face": hugging_face_model,
    "timm": timm_linear,
}


@pytest.mark.parametrize("name", MODELS)
def test_from_clip(name: str):
    model = MODELS[name]()
    iso = sb.IsoCLIP.from_clip(model, k_top=2, k_bottom=3)
    x, t = encode_image(model, IMAGES, project=False), encode_text(model, IDS, project=False)
    a, w = iso.image_projection, iso.text_projection
    assert_close(iso.image(x), paper(x, a, w, 2, 3, "image"), "op")
    assert_close(iso.text(t), paper(t, a, w, 2, 3, "text"), "op")
    with torch.no_grad():
        native = unit(encode_image(model, IMAGES).double())
        assert_row_relative(iso.native_map("image")(x), native, "linear_map", context="native")
        kept = iso.image(x)
        for p in model.parameters():
            p.zero_()
    assert_same_bits(iso.image(x), kept)
    assert a.shape[1] == D


def test_siglip_is_refused_with_the_reason():
    with pytest.raises(TypeError, match=r"without one \(SigLIP's attention pooling .*linear projector"):
        sb.IsoCLIP.from_clip(VISION_MODELS["SigLIP timm"]())


def test_embedded_model():
    model, _, _ = sb.load_picto_clip()
    iso = sb.IsoCLIP.from_clip(model, k_top=20, k_bottom=20)
    data = sb.load_picto("flags")
    x = encode_image(model, sb.picto_transform(data.images[:8]), project=False)
    assert_close(iso.image(x), paper(x, model.visual.proj, model.text_projection, 20, 20, "image"), "op")
    with pytest.raises(ValueError, match=r"leave one of the 192 directions with k_bottom, got 150 and 50"):
        sb.IsoCLIP.from_clip(model, published="ViT-B/32")


# -- state -------------------------------------------------------------------------------------------


def test_copies_and_files(matrices, tmp_path: Path):
    iso, x = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2, text_k_top=1, compress=True), torch.randn(6, V)
    want = iso.image(x)
    for twin in (copy.deepcopy(iso), pickle.loads(pickle.dumps(iso))):
        assert_same_bits(twin.image(x), want)
    iso.save(tmp_path / "iso")
    loaded = sb.IsoCLIP.load(tmp_path / "iso")
    assert_same_bits(loaded.image(x), want)
    assert {n: v for n, v in loaded.get_params().items() if "proj" not in n} == {
        n: v for n, v in iso.get_params().items() if "proj" not in n
    }
    chosen = sb.IsoCLIP(*matrices).fit(x.repeat(5, 1), [0, 1] * 15)
    chosen.save(tmp_path / "fitted")
    assert_same_bits(sb.IsoCLIP.load(tmp_path / "fitted").transform(x), chosen.transform(x))
    (tmp_path / "cut").write_bytes((tmp_path / "iso").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"IsoCLIP.load: .*cut must be a whole safetensors file"):
        sb.IsoCLIP.load(tmp_path / "cut")


def test_changed_matrices_are_seen(matrices):
    iso, x = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2), torch.randn(6, V)
    iso.image(x)
    matrices[0].mul_(torch.randn(V, 1))
    assert_close(iso.image(x), paper(x, *matrices, 3, 2, "image"), "op")
    iso.image_projection = torch.randn(V, WIDTH)
    assert_close(iso.image(x), paper(x, iso.image_projection, matrices[1], 3, 2, "image"), "op")


# -- refusals ----------------------------------------------------------------------------------------


def make(**options) -> sb.IsoCLIP:
    options = {"k_top": 3, "k_bottom": 2, **options}
    return sb.IsoCLIP(torch.randn(V, WIDTH), torch.randn(T, WIDTH), **options)


THREE = Affine(torch.eye(3), None)
X = torch.ones(4, V)
BAD = [
    (lambda: make().tune(X, range(4)), ValueError, r"IsoCLIP.tune: y must have a label of two rows, got 4"),
    (
        lambda: make().topk(X, torch.ones(4, T), 1, gallery_side="text"),
        ValueError,
        r"IsoCLIP.topk: gallery_side must be 'image', .* comparing across modalities means nothing",
    ),
    (lambda: make().image(torch.ones(2, T)), ValueError, r"like text features, whose projector is \.text"),
    (lambda: make().text(X), ValueError, r"look like image features, whose projector is \.image"),
    (lambda: make().image(torch.ones(2, WIDTH)), ValueError, r"look projected already; take them with clip"),
    (lambda: make().image(torch.ones(2, 3)), ValueError, r"width 20, got .*project=False"),
    (lambda: make().image(X.long()), TypeError, "x must be float32"),
    (lambda: make(k_top=None).image(X), ValueError, r"be chosen before use, got none; .*published"),
    (lambda: make(k_top=-1).image(X), ValueError, "k_top must be ≥ 0"),
    (lambda: make(k_top=1.5).image(X), TypeError, "k_top must be an int"),
    (lambda: make(k_top=10).image(X), ValueError, r"leave one of the 12 directions .*, got 10 and 2"),
    (
        lambda: make(text_k_top="unpublished").text(torch.ones(1, T)),
        ValueError,
        r"text_k_top must be chosen before use, got no published value; pass text_k_top",
    ),
    (lambda: make(side="audio").transform(X), ValueError, "side must be 'image' or 'text'"),
    (lambda: sb.IsoCLIP(torch.eye(3), torch.eye(4)).fit(X), ValueError, r"text_projection must be \[T, 3\]"),
    (lambda: sb.IsoCLIP(k_top=0, k_bottom=0).image(X), TypeError, "image_projection must be a torch.Tensor"),
    (lambda: make(k_top=None).fit(X), ValueError, "y must be given to choose the cuts"),
    (lambda: make().tune(X, [0, 0, 1, 1], k_top=[40]), ValueError, "k_top must leave a direction"),
    (lambda: make().tune(X, [0, 0, 1, 1], k_top=[-1]), ValueError, "k_top must hold ints ≥ 0"),
    (lambda: make().tune(X, [0, 0, 1, 1], metric="AUC"), ValueError, "metric must be .mAP., .*, got .AUC.;"),
    (lambda: make().fit(torch.ones(2, 5)), ValueError, "X has 5 features, but it is expecting 20"),
    (
        lambda: sb.IsoCLIP._made(THREE, THREE, "ViT-H", {}),
        ValueError,
        r"published must be one of ViT-B/32.*tune",
    ),
    (
        lambda: sb.IsoCLIP._made(THREE, THREE, "ViT-B/32", {"k_top": 3}),
        ValueError,
        "published must stand alone, without k_top",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call,kind,text", BAD, ids=[text[:40] for _, _, text in BAD])
def test_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_matrices_written_in_inference_mode(matrices):
    x = torch.randn(3, V)
    with torch.inference_mode():
        image, text = (m.clone() for m in matrices)
        iso = sb.IsoCLIP(image, text, k_top=3, k_bottom=2)
        for _ in range(3):
            image.copy_(torch.randn(V, WIDTH))
            assert_close(iso.image(x), paper(x, image, text, 3, 2, "image"), "op")
