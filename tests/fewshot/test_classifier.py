"""SeMoBridgeClassifier against the float64 formula, growth, files and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.eager import class_exponents
from tests.support.assertions import assert_close, assert_figures, assert_same_bits, name_of
from tests.support.problems import Problem, make, reference_blocks, reference_logits
from tests.support.tolerances import tolerance

PARAMS = {"s": 0.7, "alpha": 2.0, "beta": 3.0, "gamma": 1.5, "lambda1": 0.4, "lambda2": 0.5, "lambda3": 0.9}


def fitted(p: Problem, bridge=None, **params) -> sb.SeMoBridgeClassifier:
    bridge = p.bridge(p.projection.dtype) if bridge is None else bridge
    return sb.SeMoBridgeClassifier(bridge, p.text, **params).fit(p.shots, p.labels)


@pytest.mark.parametrize("bridge", [None, "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (7, 3, 60, 20), (33, 2, 61, 67), (70, 1, 113, 31)], ids=str)
def test_formula(isa, bridge, dtype, shape):
    classes, shots, queries, width = shape
    p = make(classes, shots, queries, width, dtype=dtype)
    clf = fitted(p, bridge, **PARAMS)
    want = reference_logits(p, PARAMS, bridged=bridge is None)
    got = clf.logits(p.queries)
    assert got.dtype is dtype and float(want.std()) > 1e-3
    assert_close(got, want, "logits")
    for block, exact in zip(
        clf.similarities(p.queries), reference_blocks(p, bridge is None)[:3], strict=True
    ):
        assert_close(block, exact, "logits")
    # The fused argmax sees the very logits that the other mode writes.
    assert torch.equal(clf.predict(p.queries), got.argmax(dim=1))
    top = want.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 4 * tolerance("logits", name_of(dtype)).relative
    assert clear.any() and torch.equal(got.argmax(dim=1)[clear], want.argmax(dim=1)[clear])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_classes_go_to_the_lower(isa, dtype):
    """Copies of a class in other lanes and panels of the tile: their logits tie to the bit."""
    p = make(40, 2, 80, dtype=dtype)
    order = torch.argsort(p.labels, stable=True)
    shots, text = p.shots[order].reshape(40, 2, -1), p.text.clone()
    for low, high in ((3, 4), (3, 20), (9, 1), (12, 37), (30, 0)):
        shots[high], text[high] = shots[low], text[low]
    labels = torch.arange(40).repeat_interleave(2)
    clf = sb.SeMoBridgeClassifier(p.bridge(dtype), text, **{**PARAMS, "s": 0.0}).fit(
        shots.reshape(80, -1), labels
    )
    queries = shots[:, 0]
    logits = clf.logits(queries)
    lowest = (logits == logits.max(dim=1, keepdim=True).values).double().argmax(dim=1)
    assert {(3, 4), (3, 20), (1, 9), (12, 37), (0, 30)} <= {
        (int(lowest[c]), c) for c in (4, 20, 9, 37, 30)
    }  # the ties are there
    assert torch.equal(clf.predict(queries), lowest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_read_exactly(dtype):
    p = make(9, 2, 40, 32)
    p = p._replace(shots=p.shots.to(dtype), queries=p.queries.to(dtype), text=p.text.to(dtype))
    want = reference_logits(p, PARAMS)
    assert_close(fitted(p, **PARAMS).logits(p.queries), want, "logits", dtype=torch.float32)


def test_eager_backend_agrees():
    p = make(9, 2, 40)
    clf, want = fitted(p, **PARAMS), reference_logits(p, PARAMS)
    for name in ("native", "eager"):
        with sb.backend(name):
            assert_close(clf.logits(p.queries), want, "logits", context=name)


def test_rows_do_not_depend_on_their_batch_or_the_threads():
    p = make(40, 2, 150, 48)
    clf, threads = fitted(p, **PARAMS), torch.get_num_threads()
    whole = clf.logits(p.queries)
    assert torch.equal(torch.cat([clf.logits(p.queries[i : i + 1]) for i in range(150)]), whole)
    try:
        torch.set_num_threads(1)
        assert torch.equal(clf.logits(p.queries), whole)
    finally:
        torch.set_num_threads(threads)


def test_strided_queries_and_zero_row():
    p = make(9, 2, 40)
    clf = fitted(p, **PARAMS)
    wide = torch.cat([p.queries, p.queries], dim=1)[::2, : p.queries.shape[1]]
    assert torch.equal(clf.logits(wide), clf.logits(wide.contiguous()))
    zero = clf.similarities(torch.zeros(1, p.queries.shape[1]))
    assert all(torch.equal(z, torch.zeros_like(z)) for z in zero)


def test_class_exponents_floor():
    """p_cc close to 0 and to 1: the floors keep D_c between 0 and log2((1 + 1e-6)/1e-6)."""
    eye = torch.eye(2, dtype=torch.float64)
    d = class_exponents(torch.stack([eye[0] * 80, eye[0] * 80]), eye)
    want = torch.tensor([0.0, math.log2((1 + 1e-6) / 1e-6)], dtype=torch.float64)
    assert_close(d, want, "matrix")
    raw, text = torch.randn(2, 5, 8, dtype=torch.float64).unbind()
    p = torch.exp(raw @ text.T)
    want = torch.log2((1 + 1e-6) / ((p / p.sum(dim=1, keepdim=True)).diagonal() + 1e-6))
    assert_close(class_exponents(raw, text), want, "matrix")


def test_unequal_shots_and_augmented_copies_are_shots():
    p = make(4, [1, 2, 5, 3], 30)
    want = reference_logits(p, PARAMS)
    assert_close(fitted(p, **PARAMS).logits(p.queries), want, "logits")
    twice = p._replace(shots=torch.cat([p.shots, p.shots * 0.5]), labels=p.labels.repeat(2))
    want = reference_logits(twice, PARAMS)
    clf = fitted(twice, **PARAMS)
    assert_close(clf.logits(p.queries), want, "logits")
    assert clf.counts_.tolist() == [2, 4, 10, 6]


def test_adding_shots_equals_fitting_them_at_once():
    p = make(6, 4, 30)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text, **PARAMS)
    order = torch.argsort(p.labels, stable=True)
    first = order[::4]
    rest = torch.tensor(sorted(set(range(len(order))) - set(first.tolist())))
    clf.fit(p.shots[first], p.labels[first])
    before = clf.logits(p.queries)
    clf.add_shots(p.shots[rest], p.labels[rest])
    assert float((before - clf.logits(p.queries)).abs().max()) > 1e-3
    assert_close(clf.logits(p.queries), reference_logits(p, PARAMS), "logits")


def test_adding_classes_equals_fitting_them_at_once():
    p = make(6, 2, 30)
    old = p.labels < 4
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text[:4], **PARAMS).fit(p.shots[old], p.labels[old])
    clf.add_classes([4, 5], p.text[4:], p.shots[~old], p.labels[~old])
    assert_close(clf.logits(p.queries), reference_logits(p, PARAMS), "logits")
    with pytest.raises(ValueError, match="new and distinct"):
        clf.add_classes([5], p.text[5:], p.shots[~old], p.labels[~old])
    with pytest.raises(ValueError, match="shot of every new class"):
        clf.add_classes([6, 7], p.text[:2], p.shots[:1], [6])
    with pytest.raises(ValueError, match="hold one row per new class"):
        clf.add_classes([6], None, p.shots[:1], [6])


@pytest.mark.parametrize(
    "names", [["a", "b", "c"], [("x", 1), ("x", 2), ("y", 1)], [10, 20, 30], ["a", 2, ("b",)]]
)
def test_any_hashable_class_names(names, tmp_path):
    p = make(3, 2, 30)
    y = [names[i] for i in p.labels]
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text, class_names=names).fit(p.shots, y)
    got = [names.index(v if not isinstance(v, np.generic) else v.item()) for v in clf.predict(p.queries)]
    assert got == fitted(p).predict(p.queries).tolist() and len(set(got)) == 3
    clf.save(tmp_path / "clf.safetensors")
    again = sb.SeMoBridgeClassifier.load(tmp_path / "clf.safetensors")
    assert list(again.predict(p.queries)) == list(clf.predict(p.queries))


def test_save_and_load_keep_everything(tmp_path):
    p = make(6, 2, 60)
    clf = fitted(p, **PARAMS).tune(p.queries, p.targets, n_trials=20, sampler="random")
    path = tmp_path / "clf.safetensors"
    clf.save(path)
    again = sb.SeMoBridgeClassifier.load(path)
    assert again.params_ == clf.params_ and again.probability_scale_ == clf.probability_scale_
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    for grown in (clf, again):
        grown.add_shots(p.queries[:5], p.targets[:5])
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"clf\.safetensors.*damaged"):
        sb.SeMoBridgeClassifier.load(path)
    p.bridge().save(path)
    with pytest.raises(ValueError, match="SeMoBridgeClassifier 1"):
        sb.SeMoBridgeClassifier.load(path)


def test_without_text_the_shots_alone_decide():
    p = make(5, 3, 40)
    clf = sb.SeMoBridgeClassifier(p.bridge()).fit(p.shots, p.labels)
    _, z2, z3, _ = reference_blocks(p)
    want = torch.exp(z2 - 1) + torch.exp(z3 - 1) + math.exp(-1)
    assert_close(clf.logits(p.queries), want, "logits")


def test_probabilities_are_calibrated_by_tune():
    p = make(5, 3, 200, noise=1.5)
    clf = fitted(p).tune(p.queries, p.targets, n_trials=20, sampler="random")
    proba = clf.predict_proba(p.queries)
    assert_figures(proba.sum(dim=1), torch.ones(200), "length", dtype=torch.float32)
    assert torch.equal(proba.argmax(dim=1), clf.predict(p.queries))

    def loss(scale: float) -> float:
        return float(torch.nn.functional.cross_entropy(scale * clf.logits(p.queries).double(), p.targets))

    best = loss(clf.probability_scale_)
    assert best < loss(clf.probability_scale_ * 1.05) and best < loss(clf.probability_scale_ / 1.05)


def without_class(p: Problem) -> Problem:
    return p._replace(shots=p.shots[p.labels != 2], labels=p.labels[p.labels != 2])


def with_nan(p: Problem) -> Problem:
    return p._replace(shots=p.shots.clone().index_fill_(0, torch.tensor([3]), float("nan")))


BAD = {
    "class without shots": (without_class, "shot of every class"),
    "label without text": (lambda p: p._replace(text=p.text[:-1]), "without text or shots"),
    "NaN feature": (with_nan, "finite.*first: 3"),
    "width of text": (lambda p: p._replace(text=p.text[:, :-1]), "have width"),
    "width of shots": (lambda p: p._replace(shots=p.shots[:, :-1], text=p.text[:, :-1]), "bridge's width"),
    "NaN text": (lambda p: p._replace(text=p.text * float("nan")), "text_features must be finite"),
    "one dimension": (lambda p: p._replace(shots=p.shots[0]), "2-D"),
    "too few labels": (lambda p: p._replace(labels=p.labels[1:]), "one per row"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    p = make(4, 2, 10)
    bridge = p.bridge()
    change, words = BAD[case]
    bad = change(p)
    with pytest.raises(ValueError, match=words):
        sb.SeMoBridgeClassifier(bridge, bad.text).fit(bad.shots, bad.labels)


def test_more_refusals():
    p = make(4, 2, 10)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text)
    with pytest.raises(ValueError, match="fitted first"):
        clf.predict(p.queries)
    clf.fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="expecting 24 features"):
        clf.predict(p.queries[:, :-1])
    with pytest.raises(ValueError, match="finite"):
        clf.predict(p.queries * float("inf"))
    with pytest.raises(ValueError, match="got 9 without"):
        clf.score(p.queries, [9] * 10)
    with pytest.raises(TypeError, match="hashable"):
        clf.score(p.queries, [[1]] * 10)
    with pytest.raises(TypeError, match="'picto' or 'identity'"):
        sb.SeMoBridgeClassifier("vit").fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="distinct"):
        sb.SeMoBridgeClassifier(p.bridge(), p.text, class_names=["a", "a", "b", "c"]).fit(p.shots, ["a"] * 8)
    with pytest.raises(TypeError, match="must be float32"):
        clf.predict(torch.ones(2, 24, dtype=torch.int64))


def test_inputs_are_not_modified():
    p = make(4, 2, 10)
    copies = [v.clone() for v in p]
    fitted(p).tune(p.queries, p.targets, n_trials=3, sampler="random").predict_proba(p.queries)
    assert all(torch.equal(a, b) for a, b in zip(p, copies, strict=True))


def test_shots_meet_the_bridge_on_their_own_device() -> None:
    """Features of a GPU and a bridge that lies on the CPU; `meta` stands in for the GPU."""
    p = make()
    trained = sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, preset="fast", steps=1)
    for clf in (sb.SeMoBridgeClassifier(p.bridge(), p.text), trained):
        clf.fit(p.shots, p.labels)
        rows = clf._bridge_shots(p.shots.to("meta"), p.labels.to("meta"))
        assert rows.device.type == "meta" and rows.shape == p.shots.shape
        assert clf.bridge_.inverse.device.type == clf.bridge_.text_projection.device.type == "cpu"


def test_a_bridge_that_is_written_to_after_the_fit(tmp_path: Path):
    """The caller may train the bridge on: sums, file and later shots stay with the one that was fitted."""
    p = make(4, 3, 20)
    bridge = p.bridge()
    clf = sb.SeMoBridgeClassifier(bridge, p.text).fit(p.shots, p.labels)
    whole = sb.SeMoBridgeClassifier(p.bridge(), p.text)
    whole.fit(torch.cat([p.shots, p.queries[:5]]), torch.cat([p.labels, p.targets[:5]]))
    before = clf.logits(p.queries)
    with torch.no_grad():
        bridge.inverse.copy_(torch.randn(bridge.inverse.shape))
    bridge.text_length = 3.0
    clf.save(tmp_path / "clf")
    assert_same_bits(sb.SeMoBridgeClassifier.load(tmp_path / "clf").logits(p.queries), before)
    clf.add_shots(p.queries[:5], p.targets[:5])
    assert_close(clf.logits(p.queries), whole.logits(p.queries).double(), "logits")
    assert clf.get_params()["bridge"] is bridge
