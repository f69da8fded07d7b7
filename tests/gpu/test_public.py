"""The public functions on every device and backend against float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import _digest
from semobridge_ext.retrieval.reference import retrieval_metrics as reference
from tests.support import towers
from tests.support.assertions import assert_close, assert_figures, assert_row_relative
from tests.support.places import PLACES, Place, W, rows
from tests.support.problems import Problem, make

pytestmark = pytest.mark.parametrize("place", PLACES)
F32, F64 = torch.float32, torch.float64
DTYPES = (F32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 32, 33, 300, 0])
def test_bridge(place: Place, n: int, dtype: torch.dtype):
    f, bridge = rows(n, 48, dtype), sb.Bridge(W).to(place.device)
    with place.use("bridge"), torch.no_grad():
        got = bridge(f.to(place.device))
    assert got.device.type == place.device.type and got.dtype is dtype and got.shape == f.shape
    if n:
        want = sb.reference.bridge(f.double(), W.double(), inverse=sb.reference.pinv(W.double()))
        # Plain PyTorch rounds the feature between its two products to the dtype of the input.
        folded = (place.device.type == "cpu" and place.backend == "auto") or place.backend == "native"
        assert_close(got.cpu(), want, "bridge" if folded else "chain")


def test_a_row_stays_alone(place: Place):
    f = rows(70, 48)
    f[3], f[40, 7] = 0, float("nan")
    with place.use("bridge"), torch.no_grad():
        got = sb.Bridge(W).to(place.device)(f.to(place.device)).cpu()
    assert (got[3] == 0).all() and torch.isnan(got[40]).any()
    keep = [i for i in range(70) if i not in (3, 40)]
    want = sb.reference.bridge(f[keep].double(), W.double(), inverse=sb.reference.pinv(W.double()))
    assert_close(got[keep], want, "chain")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_project_normalize(place: Place, normalize: bool, dtype: torch.dtype):
    x, matrix, bias = rows(37, 48, dtype), rows(48, 20).T.contiguous().T, rows(1, 20)[0]
    with place.use("project_normalize"):
        got = sb.ops.project_normalize(
            x.to(place.device), matrix.to(place.device), bias=bias.to(place.device), scale=0.7,
            normalize=normalize,
        )  # fmt: skip
    want = sb.reference.project_normalize(
        x.double(), matrix.double(), bias=bias.double(), scale=0.7, normalize=normalize
    )
    assert_close(got.cpu(), want, "chain")


def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """Gradients of a weighted sum of the output."""
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*own)
    seed = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return [g.cpu() for g in torch.autograd.grad((out * seed).sum(), own)]


def test_project_normalize_grad(place: Place):
    x, matrix = rows(37, 48), rows(48, 20)
    with place.use("project_normalize_grad"):
        got = gradients(sb.ops.project_normalize, x.to(place.device), matrix.to(place.device))
    want = gradients(sb.reference.project_normalize, x.double(), matrix.double())
    for ours, theirs in zip(got, want, strict=True):
        assert_close(ours, theirs, "op_grad")


def support() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    labels = torch.randint(11, (230,), generator=g)
    unit = torch.nn.functional.normalize
    return unit(rows(21, 48), dim=1), unit(rows(230, 48), dim=1), labels, torch.rand(230, generator=g)


def test_support_logits(place: Place):
    q, k, labels, weights = support()
    with place.use("support_logits"):
        got = sb.support_logits(*(t.to(place.device) for t in (q, k, labels)), 11, beta=5.5,
                                weights=weights.to(place.device))  # fmt: skip
    want = sb.reference.support_logits(q.double(), k.double(), labels, 11, beta=5.5, weights=weights.double())
    assert_close(got.cpu(), want, "op")


def test_support_logits_grad(place: Place):
    q, k, labels, weights = support()

    def ours(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return sb.support_logits(q, k, labels.to(q.device), 11, beta=5.5, weights=w)

    def theirs(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return sb.reference.support_logits(q, k, labels, 11, beta=5.5, weights=w)

    with place.use("support_logits_grad"):
        got = gradients(ours, *(t.to(place.device) for t in (q, k, weights)))
    want = gradients(theirs, *(t.double() for t in (q, k, weights)))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, "op_grad")


@pytest.mark.parametrize("k", [1, 10, 128])
def test_topk(place: Place, k: int):
    # Small whole numbers: exact in any order, with ties.
    g = torch.Generator().manual_seed(3)
    q, gallery = (torch.randint(-3, 4, (n, 24), generator=g).float() for n in (9, 700))
    exclude = torch.arange(9) * 5
    with place.use("topk"):
        got = sb.topk(q.to(place.device), gallery.to(place.device), k, exclude=exclude.to(place.device))
    want = sb.reference.topk(q.double(), gallery.double(), k, exclude=exclude)
    assert torch.equal(got.scores.cpu().double(), want[0])
    assert torch.equal(got.indices.cpu(), want[1])


def test_retrieval_metrics(place: Place):
    g = torch.Generator().manual_seed(3)
    x, labels = rows(150, 24), torch.randint(9, (150,), generator=g)
    with place.use("retrieval_metrics"):
        on = [t.to(place.device) for t in (x, x, labels, labels)]
        got = sb.retrieval_metrics(*on, same_set=True)
    want = reference(x.double(), x.double(), labels, labels, same_set=True).nanmean(0)
    assert got["mAP"] > 0.05 and got["queries"] == 150
    names = ("mAP", "mAP@R", "R-Precision", "Recall@1", "Recall@5", "Recall@10")
    assert_figures([got[name] for name in names], want, "metric", dtype=F32)


def fitted(p: Problem) -> sb.SeMoBridgeClassifier:
    return sb.SeMoBridgeClassifier(p.bridge(), p.text, alpha=0.7, beta=2.0).fit(p.shots, p.labels)


def test_predict(place: Place):
    p = make(queries=90)
    clf = fitted(p)
    want = fitted(Problem(*(t.double() if t.is_floating_point() else t for t in p)))
    with place.use("predict"):
        labels, logits = (f(p.queries.to(place.device)) for f in (clf.predict, clf.decision_function))
    assert_close(logits.cpu(), want.decision_function(p.queries.double()), "op", dtype=F32)
    assert (labels.cpu() == want.predict(p.queries.double())).float().mean() > 0.98


def test_semobridge_t(place: Place):
    p = make(classes=5, shots=[1, 2, 3, 4, 5])

    def train(device: torch.device, dtype: torch.dtype) -> sb.SeMoBridgeT:
        clf = sb.SeMoBridgeT(sb.Bridge(p.projection.to(dtype)), p.text, p.hidden, preset="fast", steps=40)
        return clf.fit(p.shots.to(device, dtype), p.labels)

    want = train(torch.device("cpu"), F64)
    with place.use("SeMoBridgeT"):
        got = train(place.device, F32)
    ratios = got.losses_.cpu().double() / want.losses_
    assert_figures(ratios, torch.ones(40), "device_loss", dtype=F32)
    assert want.losses_[-1] < 0.97 * want.losses_[0]


@pytest.mark.parametrize("kind", ["plain", "plain bidirectional", "open_clip", "SigLIP text"])
def test_oti(place: Place, kind: str):
    plain = kind in towers.PLAIN_MODELS
    make = towers.PLAIN_MODELS[kind] if plain else towers.TEXT_MODELS[kind]
    model = make()
    f, init = towers.targets(5, towers.D, F32), towers.start(5, 1, towers.TEXT, F32)
    options = {"steps": 20, "record_steps": (0, 7, 20)}
    options |= {"tokenizer": towers.PLAIN_TOKENIZER} if plain else {}
    want = sb.reference.oti(make().double(), f.double(), init=init.double(), **options)
    with place.use("oti"):
        got = sb.oti(model.to(place.device), f.to(place.device), init=init, **options)
    assert got.features.device.type == place.device.type
    for step, features in want.recorded.items():
        assert_row_relative(got.recorded[step].cpu(), features, "descent", context=f"step {step}")
    assert_figures(got.losses, want.losses, "device_loss", dtype=F32, scale=1.0)


@pytest.mark.parametrize("kind", ["plain", "open_clip"])
def test_ovi(place: Place, kind: str):
    make = (towers.PLAIN_MODELS | towers.VISION_MODELS)[kind]
    model = make()
    f, init = towers.targets(3, towers.D, F32), towers.start(3, 2, towers.VISION, F32)
    want = sb.reference.ovi(make().double(), f.double(), num_patches=2, init=init.double(), steps=20)
    with place.use("ovi"):
        got = sb.ovi(model.to(place.device), f.to(place.device), num_patches=2, init=init, steps=20)
    assert_row_relative(got.features.cpu(), want.features, "descent")


def test_autocast_changes_nothing(place: Place):
    """CLIP code often runs under autocast; similarities of 8 bits would be another method."""
    p, f = make(queries=90), rows(40, 48)
    clf, bridge = fitted(p), sb.Bridge(W).to(place.device)

    def run() -> list[Tensor]:
        with place.use("bridge"), torch.no_grad():
            found = [
                bridge(f.to(place.device)),
                sb.ops.project_normalize(f.to(place.device), f.T.to(place.device)),
            ]
        with place.use("predict"):
            return [*found, clf.decision_function(p.queries.to(place.device))]

    want = run()
    with torch.autocast(place.device.type, dtype=torch.bfloat16):
        got = run()
    for ours, plain in zip(got, want, strict=True):
        assert torch.equal(ours, plain)


def test_training_under_autocast(place: Place):
    p = make(classes=5, shots=[1, 2, 3, 4, 5])

    def train() -> Tensor:
        clf = sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, preset="fast", steps=5)
        return clf.fit(p.shots.to(place.device), p.labels).losses_

    with place.use("SeMoBridgeT"):
        want = train()
        with torch.autocast(place.device.type, dtype=torch.bfloat16):
            assert_figures(train() / want, torch.ones(5), "training_loss", dtype=F32)


def test_devices_that_differ_are_named(place: Place):
    if place.device.type == "cpu":
        pytest.skip("there is one device only")
    with sb.backend(place.backend), pytest.raises(ValueError, match=r"^topk: .* must be on .*cuda.*; "):
        sb.topk(rows(2, 4).to(place.device), rows(3, 4), 1)


def test_a_digest_knows_no_place(place: Place, monkeypatch: pytest.MonkeyPatch):
    """Copied from the device in pieces, strided views too."""
    values = rows(70, 48)
    want = _digest.digest([values, values[:, ::2]])
    there = values.to(place.device)
    for size in (64, 1 << 24):
        monkeypatch.setattr(_digest, "_CHUNK_BYTES", size)
        assert _digest.digest([there, there[:, ::2]]) == want
