"""Weights of shots and shots in parts, against the formulas on the shots repeated or all at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot.reference import gda_weights
from tests.support.assertions import assert_close, assert_figures, assert_same_bits
from tests.support.problems import Problem, make, reference_logits

WEIGHTS = torch.tensor([1, 2, 0, 3] * 5)[:20]


def problem() -> Problem:
    return make(5, 4, 30, width=8, dtype=torch.float64)


def nearest_mean(p: Problem) -> Tensor:
    means = torch.stack([p.shots[p.labels == c].mean(dim=0) for c in range(5)])
    return 100 * normalize(p.queries, dim=1) @ normalize(means, dim=1).T


def lda(p: Problem) -> Tensor:
    x, q = normalize(p.shots, dim=1), normalize(p.queries, dim=1)
    means = torch.stack([x[p.labels == c].mean(dim=0) for c in range(5)])
    rest = x - means[p.labels]
    s = rest.T @ rest / (len(x) - 5)
    s = 0.5 * s + 0.5 * s.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    scaled = torch.linalg.solve(s, means.T)
    return q @ scaled - 0.5 * (means.T * scaled).sum(dim=0)


def gaussians(p: Problem) -> Tensor:
    w, b = gda_weights(normalize(p.shots, dim=1), p.labels, 5)
    q = normalize(p.queries, dim=1)
    return 100 * q @ normalize(p.text, dim=1).T + 2.0 * (q @ w + b)


def cache(p: Problem) -> Tensor:
    q, keys = normalize(p.queries, dim=1), normalize(p.shots, dim=1)
    out = 100 * q @ normalize(p.text, dim=1).T
    for s in range(len(keys)):
        out[:, p.labels[s]] += 1.17 * torch.exp(-2.0 * (1 - q @ keys[s]))
    return out


MODELS: dict[str, tuple[Callable, Callable, str]] = {
    "NearestClassMean": (lambda p: sb.NearestClassMean(), nearest_mean, "logits"),
    "LDA": (lambda p: sb.LDA(shrinkage=0.5), lda, "logits"),
    "GDA": (lambda p: sb.GDA(p.text, alpha=2.0), gaussians, "gda"),
    "TipAdapter": (lambda p: sb.TipAdapter(p.text, beta=2.0), cache, "logits"),
    "SeMoBridgeClassifier": (
        lambda p: sb.SeMoBridgeClassifier(p.bridge(torch.float64), p.text),
        lambda p: reference_logits(p, {}), "logits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_repetitions(name: str):
    """A shot of weight 3 counts three times, one of weight 0 not at all."""
    make_model, oracle, family = MODELS[name]
    p = problem()
    repeated = p._replace(
        shots=p.shots.repeat_interleave(WEIGHTS, dim=0), labels=p.labels.repeat_interleave(WEIGHTS)
    )
    clf = make_model(p).fit(p.shots, p.labels, sample_weight=WEIGHTS.double())
    assert_close(clf.logits(p.queries), oracle(repeated), family)
    unweighted = make_model(p).fit(p.shots, p.labels).logits(p.queries)
    assert float((clf.logits(p.queries) - unweighted).abs().max()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cuts", [[7, 13], [1] * 20, [20]], ids=["two", "one by one", "all"])
def test_parts_are_the_whole(name: str, cuts: list[int]):
    make_model, oracle, family = MODELS[name]
    p, clf = problem(), make_model(problem())
    for x, y in zip(p.shots.split(cuts), p.labels.split(cuts), strict=True):
        assert clf.partial_fit(x, y, classes=range(5)) is clf
    assert_close(clf.logits(p.queries), oracle(p), family)


@pytest.mark.parametrize("name", MODELS)
def test_fit_can_go_on_and_start_again(name: str):
    make_model, oracle, family = MODELS[name]
    p = problem()
    first = torch.cat([torch.arange(20)[p.labels == c][:2] for c in range(5)])
    rest = torch.tensor([i for i in range(20) if i not in first.tolist()])
    clf = make_model(p).fit(p.shots[first], p.labels[first])
    before = clf.logits(p.queries)
    clf.partial_fit(p.shots[rest], p.labels[rest], sample_weight=[1.0] * len(rest))
    assert_close(clf.logits(p.queries), oracle(p), family)
    assert_same_bits(clf.fit(p.shots[first], p.labels[first]).logits(p.queries), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_class_that_waits_for_its_first_shot(name: str):
    """Its text alone answers where there is one beside a cache; elsewhere the error names it."""
    p = problem()
    here = p.labels != 3
    clf = MODELS[name][0](p).partial_fit(p.shots[here], p.labels[here], classes=range(5))
    if name == "TipAdapter":
        assert_close(clf.logits(p.queries), cache(p._replace(shots=p.shots[here], labels=p.labels[here])),
                     "logits")  # fmt: skip
        return
    with pytest.raises(ValueError, match=rf"{name}: must get a shot of every class.*none of \[3\] yet"):
        clf.predict(p.queries)
    clf.partial_fit(p.shots[~here], p.labels[~here])
    assert_close(clf.logits(p.queries), MODELS[name][1](p), MODELS[name][2])


REFUSED = {
    "another width": (lambda clf, p: clf.partial_fit(p.shots[:, :5], p.labels), "X has 5 features"),
    "an unknown class": (lambda clf, p: clf.partial_fit(p.shots, p.labels + 2), "names of the classes"),
    "other classes": (
        lambda clf, p: clf.partial_fit(p.shots, p.labels, classes=[0, 1]), r"classes must be the 5 of this",
    ),
    "a weight below zero": (
        lambda clf, p: clf.partial_fit(p.shots, p.labels, sample_weight=-WEIGHTS),
        r"sample_weight must be finite and ≥ 0, got -3; leave",
    ),
    "weights of zero": (
        lambda clf, p: clf.partial_fit(p.shots, p.labels, sample_weight=0 * WEIGHTS),
        r"sample_weight must weigh a row above zero, got zero in every place",
    ),
    "weights of others": (
        lambda clf, p: clf.fit(p.shots, p.labels, sample_weight=WEIGHTS[:3]),
        r"sample_weight must be 1-D, like y, got \[3\]; pass one weight per row, \[20\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", MODELS)
def test_refusals_change_nothing(name: str, case: str):
    p = problem()
    clf = MODELS[name][0](p).fit(p.shots, p.labels)
    before = clf.logits(p.queries)
    call, told = REFUSED[case]
    with pytest.raises(ValueError, match=rf"{name}\.(partial_)?fit: .*{told}"):
        call(clf, p)
    assert_same_bits(clf.logits(p.queries), before)


def test_gda_needs_more_than_one_shot_of_weight():
    p = problem()
    with pytest.raises(ValueError, match=r"GDA\.fit: sample_weight must add up to more than 1.*got 0\.5"):
        sb.GDA().fit(p.shots, p.labels, sample_weight=np.full(20, 0.025))


def test_a_tuned_lda_keeps_its_shrinkage():
    p = problem()
    clf = sb.LDA().fit(p.shots, p.labels).tune(p.queries, p.targets)
    chosen = clf.shrinkage_
    assert chosen in sb.LDA.GRID and clf.partial_fit(p.shots, p.labels).shrinkage_ == chosen
    assert clf.fit(p.shots, p.labels).shrinkage_ not in sb.LDA.GRID


def test_score_weighs_its_rows():
    p = make(5, 4, 30, width=8, noise=2.0)
    clf = sb.NearestClassMean().fit(p.shots, p.labels)
    right = (clf.predict(p.queries) == p.targets).numpy()
    weights = np.arange(30.0)
    assert 0 < right.mean() < 1
    want = float(weights[right].sum() / weights.sum())
    assert_figures(clf.score(p.queries, p.targets, sample_weight=weights), want, "metric")


@pytest.mark.parametrize("model", [sb.GDA, sb.TipAdapter, sb.TipAdapterF, sb.ProKeR, sb.LPPlusPlus])
def test_without_text_the_images_alone_answer(model, tmp_path):
    """The logits are those beside a text that says nothing; classes are what y holds."""
    p = make(4, 6, 40, width=8, noise=0.4)
    names = [["x", "b", "k", "a"][i] for i in p.labels.tolist()]
    clf = model().fit(p.shots, names)
    assert clf.classes_.tolist() == ["a", "b", "k", "x"]
    hits = [["x", "b", "k", "a"][i] for i in p.targets.tolist()] == clf.predict(p.queries)
    assert np.mean(hits) > 0.8
    clf.save(tmp_path / "file")
    loaded = model.load(tmp_path / "file")
    assert_same_bits(loaded.logits(p.queries), clf.logits(p.queries))
    assert loaded.text_features is None and loaded.fit(p.shots, p.labels).classes_.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("model", [sb.APE, sb.APET, sb.ZeroShot, sb.ProLIP])
def test_without_text_nothing_is_left_of_others(model):
    p = make(4, 2, 4)
    with pytest.raises(ValueError, match=rf"{model.__name__}\.fit: text_features must be given, got none"):
        model().fit(p.shots, p.labels)


def test_gda_without_text_is_the_gaussians():
    p = problem()
    w, b = gda_weights(normalize(p.shots, dim=1), p.labels, 5)
    want = 2.0 * (normalize(p.queries, dim=1) @ w + b)
    assert_close(sb.GDA(alpha=2.0).fit(p.shots, p.labels).logits(p.queries), want, "gda")
