"""A GPU by default, inputs on the CPU: what is made on the way stays with the inputs, behind every door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import semobridge_ext as sb
from tests.support.default_device import (
    CONCEPTS,
    EVEN,
    EVERY,
    IDENTITY,
    IMAGES,
    LABELS,
    NAMES,
    OTHER,
    PAIRS,
    PROJECTION,
    SECOND,
    TEXT,
    WEIGHTS,
    WORDS,
    C,
    N,
    X,
    check_door,
    stored,
)

# Each takes the embedded CLIP, its transform and tokenizer, and a folder.


def _bridge(clip: Any, home: Path) -> Any:
    mine = stored(sb.Bridge(PROJECTION, atol=0.2), home)
    own, whole = sb.Bridge.from_clip(clip[0]), sb.Bridge(IDENTITY)  # the second drops nothing
    return (
        mine(X),
        mine(X, class_bias=X),
        mine(X.numpy()),
        own(X),
        mine(X, project=False),
        sb.bridge(X, own),
        whole(X),
    )


def _isoclip(clip: Any, home: Path) -> Any:
    iso = stored(sb.IsoCLIP(PROJECTION, SECOND, k_top=8, k_bottom=8), home)
    means = iso.class_means(X, LABELS)
    found = iso.image(X), iso.text(X), iso.image(X, compress=True), iso.map("image")(X), means
    tuned = sb.IsoCLIP.from_clip(clip[0]).tune(X, LABELS, side="image")
    return (
        found,
        iso.topk(X, OTHER, 3),
        iso.singular_values,
        iso.fit_transform(X),
        tuned.get_params()["k_top"],
    )


def _linear_map(clip: Any, home: Path) -> Any:
    pca = stored(sb.LinearMap.pca(X, 3, center=True), home)
    turn = sb.LinearMap.procrustes(X[:, :8], OTHER[:, :8], center=True)
    white = sb.LinearMap.whitening(X[:, :4])
    centred = sb.LinearMap.centering(X.mean(dim=0))
    folded = sb.LinearMap.compose(centred, pca).fold()
    bridged = sb.LinearMap.from_bridge(sb.Bridge(PROJECTION))
    return pca(X), turn(X[:, :8]), white(X[:, :4]), folded(X), bridged(X), pca.with_norm(False)(X.numpy())


def _references(clip: Any, home: Path) -> Any:
    """Those that read no tokenizer, which puts its ids where torch says; oracles may import nothing."""
    ref = sb.reference
    return (
        ref.retrieval_metrics(X, X, LABELS, LABELS, same_set=True), ref.topk(X, OTHER, 3, exclude=LABELS),
        ref.bridge(X, PROJECTION), ref.support_logits(X, OTHER, LABELS, C), ref.prototypes(X, LABELS, C),
        tuple(ref.spectral_filter(X, CONCEPTS)), ref.project_normalize(X, PROJECTION),
        ref.class_weights(TEXT, TEXT, 0.5),
    )  # fmt: skip


def _roles(clip: Any, home: Path) -> Any:
    roles = sb.RoleCentering().fit({"document_text": OTHER, "document_image": X})
    return stored(roles, home).fuse(X, OTHER, 0.3), roles.map_for("document_image")(X)


def _gallery(clip: Any, home: Path) -> Any:
    gallery = stored(sb.Gallery(X, ids=(EVERY + 100).tolist()), home)
    gallery.add(OTHER[:2], ids=[7, 8]).remove([103])
    plain = sb.Gallery(X.numpy(), normalize=True).add(OTHER).copy()
    return (
        gallery.topk(OTHER, 3), gallery.search(OTHER.numpy(), 2), gallery.range_search(OTHER, 0.05),
        gallery.rows_of([7, 100]), gallery.topk(OTHER, 4, exclude=EVERY), plain.kneighbors(),
        gallery.topk(OTHER, 2, allow=range(2, 9)), plain.topk(OTHER, 4, exclude=EVERY, allow=EVEN),
        plain.kneighbors(X, 2), plain.range_search(X, 0.1, exclude=EVERY, allow=EVEN),
    )  # fmt: skip


def _support_set(clip: Any, home: Path) -> Any:
    support = sb.SupportSet(X, LABELS, C, weights=WEIGHTS)
    support.append(OTHER, LABELS.tolist(), weights=WEIGHTS)
    return stored(support, home).logits(TEXT), support.logits(TEXT.numpy(), beta=2.0)


def _ops(clip: Any, home: Path) -> Any:
    return (
        sb.topk(X, OTHER, 3), sb.topk(X.half(), OTHER.half(), N - 1, exclude=LABELS),
        sb.topk(X.numpy(), OTHER.numpy(), N),
        sb.support_logits(X, OTHER, LABELS, C, beta=2.0), sb.support_logits(X, OTHER, LABELS.tolist(), C),
        sb.ops.project_normalize(X, PROJECTION.T), sb.ops.symmetric_kl(X.softmax(1), OTHER.softmax(1)),
    )  # fmt: skip


def _gradients(clip: Any, home: Path) -> Any:
    x = X.clone().requires_grad_()
    loss = sb.support_logits(x, OTHER, LABELS, C).sum() + sb.Bridge(PROJECTION)(x)[:, 0].sum()
    (loss + sb.ops.project_normalize(x, PROJECTION.T)[:, 0].sum()).backward()
    return x.grad


def _metrics(clip: Any, home: Path) -> Any:
    return (
        sb.retrieval_metrics(X, X, WORDS, WORDS, same_set=True, per_query=True),
        sb.retrieval_metrics(X, OTHER, LABELS, LABELS, at_r="R"),
        sb.retrieval_metrics(X, OTHER, relevant=PAIRS), sb.retrieval_metrics(X, OTHER, relevant=[[0]] * N),
        sb.revisited_metrics(X, OTHER, [[0]] * N, [[1, 2]] * N, [[3]] * N, per_query=True),
    )  # fmt: skip


def _texts(clip: Any, home: Path) -> Any:
    model, _, tokenizer = clip
    found = sb.encode_text(model, NAMES, tokenizer=tokenizer)
    classes = sb.class_text_features(model, NAMES, ("a {}", "the {}"), tokenizer=tokenizer)
    return found, tuple(classes), sb.encode_text(model, NAMES, project=False, tokenizer=tokenizer)


def _images(clip: Any, home: Path) -> Any:
    from PIL import Image

    pictures = [Image.new("RGB", (48, 48), (i, 40, 90)) for i in range(3)]
    model, preprocess, _ = clip
    data = sb.load_picto("logos")
    own = sb.clip.encode_image(model, IMAGES), sb.clip.image_projection(model), sb.clip.text_projection(model)
    return sb.encode_images(model, pictures, preprocess=preprocess), sb.picto_transform(data.images[:2]), own


def _embedded(clip: Any, home: Path) -> Any:
    data = sb.load_picto("arrows")
    return sb.load_picto_clip()[0].encode_image(IMAGES), data.images[:2], data.labels


def _folders(clip: Any, home: Path) -> Any:
    pytest.importorskip("pyarrow")
    from tests.support.galleries import write_shards

    write_shards(home / "shards", X, 5, {"label": WORDS})
    mapped = sb.map_shards(home / "shards", home / "mapped", mapping=sb.LinearMap.pca(X, 3), dtype="float32")
    figures = sb.retrieve([home / "shards", home / "mapped"])
    for one in figures.values():
        one.pop("seconds")
    return (
        sb.read_shards(home / "shards", normalize=True).features, sb.read_shards(home / "mapped").features,
        mapped.records, figures, tuple(sb.search(home / "shards", X[:2], k=3))[:2],
    )  # fmt: skip


def _export(clip: Any, home: Path) -> Any:
    sb.export_gallery(X, home / "fbin", format="fbin", mapping=sb.LinearMap.pca(X, 3))
    return [np.fromfile(path, np.uint8) for path in sorted((home / "fbin").rglob("*.fbin"))]


DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "Bridge": _bridge, "IsoCLIP": _isoclip, "LinearMap": _linear_map, "RoleCentering": _roles,
    "references": _references, "Gallery": _gallery, "SupportSet": _support_set, "ops": _ops,
    "gradients": _gradients, "metrics": _metrics, "texts": _texts, "images": _images, "embedded": _embedded,
    "folders": _folders, "export_gallery": _export,
}  # fmt: skip
EAGER = {"Bridge", "IsoCLIP", "LinearMap", "Gallery", "SupportSet", "ops", "gradients"}
CASES = [(name, "auto") for name in DOORS] + [(name, "eager") for name in DOORS if name in EAGER]


@pytest.fixture(scope="module")
def clip() -> Any:
    return sb.load_picto_clip()


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_default_device_takes_nothing(clip: Any, name: str, backend: str, tmp_path: Path) -> None:
    check_door(DOORS[name], clip, backend, tmp_path)
