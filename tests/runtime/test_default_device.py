"""A GPU by default, inputs on the CPU: what is made on the way stays with the inputs, behind every door."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import assert_same_scores

N, D, T, C = 12, 192, 192, 4
NAMES = ["arrow", "flag", "house", "star"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


X, OTHER, TEXT = drawn(N, D), drawn(N, D, seed=1), drawn(C, D)
LABELS = torch.arange(N) % C
WORDS = [NAMES[c] for c in LABELS.tolist()]
PROJECTION, SECOND, CONCEPTS = drawn(T, D), drawn(T, D, seed=1), drawn(20, D, seed=2)
EVERY, EVEN = torch.arange(N), torch.tensor([True, False] * N)
IDENTITY = torch.eye(D)
PAIRS, WEIGHTS, TWO = torch.stack([EVERY, EVERY], dim=1), torch.full((N,), 0.5), torch.arange(2)
IMAGES = drawn(2, 3, 48, 48).clamp(0, 1)


@pytest.fixture(scope="module")
def clip() -> Any:
    return sb.load_picto_clip()


def leaves(value: Any) -> Iterator[Tensor]:
    """Every number in what a call hands back."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value) if value.dtype.kind in "fiub" else torch.zeros(0, device="cpu")
    elif isinstance(value, (bool, int, float)):
        yield torch.tensor([value], dtype=torch.float64, device="cpu")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name in value:
            yield from leaves(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def stored(thing: Any, path: Path) -> Any:
    thing.save(path / f"{type(thing).__name__}.safetensors")
    return type(thing).load(path / f"{type(thing).__name__}.safetensors")


# -- doors: each takes the embedded CLIP, its transform and tokenizer, and a folder ------------------------


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


def _few_shot(clip: Any, home: Path) -> Any:
    """Beyond test_plain_modes.py: names that are not sorted, files, and what is added later."""
    back = [*reversed(NAMES), "tree"]
    clf = sb.SeMoBridgeClassifier(sb.Bridge(IDENTITY), TEXT, class_names=back[:C]).fit(X, WORDS)
    again = stored(clf, home)
    again.add_shots(OTHER, WORDS).add_classes(["tree"], TEXT[:1], X[:2], ["tree"] * 2)
    cache = stored(sb.TipAdapter(TEXT, class_names=back[:C]).fit(X, WORDS), home)
    return clf.similarities(OTHER), clf.predict_proba(OTHER), again.logits(OTHER), cache.logits(OTHER)


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


def _reports(clip: Any, home: Path) -> Any:
    pytest.importorskip("scipy")
    scores = X[:, :2].sigmoid()
    truth = (OTHER[:, :2] > 0).long()
    report = sb.incremental_report([truth, truth.tolist()], [[scores, None], [scores, scores.numpy()]])
    return report, str(report), tuple(sb.gcd_accuracy(LABELS, LABELS.flip(0), [0, 1]))


def _diagnosis(clip: Any, home: Path) -> Any:
    found = sb.diagnose(
        X, WORDS, sb.LinearMap.pca(X, 3), other=TEXT, other_mapping=sb.LinearMap.pca(X, 3), resamples=5
    )
    return found.before.values, found.after.values, found.difference


def _number_of_classes(clip: Any, home: Path) -> Any:
    pytest.importorskip("scipy")
    y = [w if i % 2 else None for i, w in enumerate(WORDS)]
    return sb.estimate_num_classes(X[:, :8], y, max_classes=6, draws=2)


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


def _coop(clip: Any, home: Path) -> Any:
    given = {"n_ctx": 2, "epochs": 1, "batch_size": 8}
    learner = sb.CoOp(clip[0], NAMES, **given).fit(X, WORDS)
    path = home / "coop.safetensors"
    learner.save(path)
    again = sb.CoOp.load(path, clip[0])
    (drawn_anew,) = sb.CoOp(clip[0], NAMES, **given).fit_seeds(X, WORDS, shots=1, seeds=[0])
    return (
        learner.logits(OTHER), learner.predict_proba(OTHER.numpy()), again.logits(OTHER),
        drawn_anew.logits(OTHER), learner.score(OTHER, WORDS), learner.features_for(["boat"]),
    )  # fmt: skip


def _kdpl(clip: Any, home: Path) -> Any:
    given = {"n_ctx": 2, "ctx_init": None, "epochs": 1, "batch_size": 8}
    learner = sb.KDPL(clip[0], TEXT, NAMES, **given).fit(X, OTHER)
    path = home / "kdpl.safetensors"
    learner.save(path)
    return (
        learner.logits(OTHER),
        sb.KDPL.load(path, clip[0]).predict_proba(OTHER),
        learner.features_for(["boat"]),
    )


def _re_tune(clip: Any, home: Path) -> Any:
    known = (LABELS[:, None] == TWO).long()
    prompts = TEXT.reshape(2, 2, D)
    model = sb.RETune(epochs=1).fit(X, known, prompts)
    model.partial_fit(X, 1 - known)
    again = stored(model, home).add_findings(prompts.flip(0), findings=["a", "b"])
    return (
        model.decision_function(OTHER), model.predict(OTHER), model.predict_proba(OTHER.numpy()),
        model.score(OTHER, known), again.decision_function(OTHER),
    )  # fmt: skip


def _discovery(clip: Any, home: Path) -> Any:
    y = [w if i % 2 and w in NAMES[:2] else None for i, w in enumerate(WORDS)]
    small = {"width": 8, "hidden": 8, "projection": 4, "epochs": 1, "batch_size": 8}
    gcd = sb.SpectralGCD(TEXT, num_classes=C, **small).fit(X, y, teacher=(X, TEXT))
    again = stored(gcd, home)
    found = gcd.logits(OTHER), gcd.predict_proba(OTHER.numpy()), again.logits(OTHER)
    pytest.importorskip("scipy")
    return *found, gcd.score(X, WORDS), gcd.losses_


def _filter(clip: Any, home: Path) -> Any:
    spectral = sb.SpectralFilter().fit(X, CONCEPTS)
    parts = sb.SpectralFilter().partial_fit(X, CONCEPTS).partial_fit(OTHER)
    names = [name for name in vars(spectral) if name.endswith("_") and not name.startswith("_")]
    return [getattr(one, name) for one in (spectral, parts, stored(spectral, home)) for name in sorted(names)]


def _inversions(clip: Any, home: Path) -> Any:
    model = clip[0]
    seed = torch.Generator().manual_seed(3)
    found = sb.oti(model, X[:3], steps=1, generator=seed), sb.ovi(model, X[:2], steps=1, generator=seed)
    given = {"pilots": 8, "steps": 1, "refine": (), "hidden": 4, "train_steps": 2}
    start = stored(sb.InversionMap.fit(model, X, generator=torch.Generator().manual_seed(3), **given), home)
    return [
        (one.tokens, one.features, one.losses) for one in (*found, sb.oti(model, X[:3], steps=1, init=start))
    ]


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
    "few-shot": _few_shot, "references": _references,
    "Gallery": _gallery, "SupportSet": _support_set, "ops": _ops, "gradients": _gradients,
    "metrics": _metrics, "reports": _reports, "diagnose": _diagnosis,
    "estimate_num_classes": _number_of_classes, "texts": _texts, "images": _images, "embedded": _embedded,
    "CoOp": _coop, "KDPL": _kdpl, "RETune": _re_tune,
    "SpectralGCD": _discovery, "SpectralFilter": _filter, "inversions": _inversions, "folders": _folders,
    "export_gallery": _export,
}  # fmt: skip
EAGER = {"Bridge", "IsoCLIP", "LinearMap", "Gallery", "SupportSet", "ops", "gradients", "SpectralFilter"}
CASES = [(name, "auto") for name in DOORS] + [(name, "eager") for name in DOORS if name in EAGER]


@contextmanager
def default_device(name: str | None) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_default_device_takes_nothing(clip: Any, name: str, backend: str, tmp_path: Path) -> None:
    found = []
    for device in (None, "meta"):  # whatever strays to the second is lost
        home = tmp_path / str(device)
        home.mkdir()
        with default_device(device), sb.backend(backend):
            found.append(list(leaves(DOORS[name](clip, home))))
    want, got = found
    assert any(v.isfinite().all() and v.any() for v in want) and len(want) == len(got)
    for a, b in zip(got, want, strict=True):
        assert a.device.type == "cpu" and a.dtype is b.dtype and a.shape == b.shape
    assert_same_scores(
        *(torch.cat([v.detach().double().flatten() for v in values]) for values in (got, want))
    )
