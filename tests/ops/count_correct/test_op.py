"""The search's counts against the formula itself, for every trial."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext._ops.count_correct.op import CorrectCounter
from semobridge_ext._ops.count_correct.reference import count_correct
from tests.support.problems import make


def plain(clf: sb.SeMoBridgeClassifier, z: Similarities, targets: Tensor, params: BlendParams) -> int:
    return count_correct(z, targets, clf.exponents_, params)


def random_params(n: int, seed: int = 0) -> list[BlendParams]:
    g = torch.Generator().manual_seed(seed)
    top = torch.tensor([1.5, 10, 10, 10, 1, 1, 1], dtype=torch.float64)
    return [BlendParams(*row) for row in (torch.rand(n, 7, generator=g, dtype=torch.float64) * top).tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2, 50), (40, 2, 300), (150, 1, 400)], ids=str)
def test_every_count_equals_the_formula(isa, shape, dtype):
    classes, shots, queries = shape
    p = make(classes, shots, queries, noise=1.3, dtype=dtype)
    clf = sb.SeMoBridgeClassifier(p.bridge(dtype), p.text).fit(p.shots, p.labels)
    objective = CorrectCounter(clf._operand, p.queries, p.targets)
    trials, z = random_params(200), clf.similarities(p.queries)
    want = [plain(clf, z, p.targets, t) for t in trials]
    assert len(set(want)) > 3 and min(want) < queries  # the parameters matter
    assert objective.correct(trials) == want
    assert [objective.correct([t])[0] for t in trials[:20]] == want[:20]
    assert [objective.correct_plain(t) for t in trials[:20]] == want[:20]
    assert objective.candidates < 0.6 * classes * queries  # something was pruned


EDGES = {
    "no text": (0.5, 2, 3, 4, 0, 1, 1), "text only": (0.5, 2, 3, 4, 1, 0, 0),
    "one block": (0, 2, 3, 4, 0, 0, 1), "no weights": (1, 2, 3, 4, 0, 0, 0),
    "flat": (0, 0, 0, 0, 1, 1, 1), "flat, weighted": (1.5, 0, 0, 0, 1, 1, 1),
    "one flat": (0.7, 5, 0, 3, 1, 1, 1), "tiny sharpness": (0.7, 1e-9, 1e-9, 1e-9, 1, 1, 1),
    "steep": (1.5, 300, 200, 250, 1, 1, 1), "very steep": (0, 2000, 2000, 2000, 1, 1, 1),
    "negative exponent": (-2, 2, 3, 4, 1, 1, 1), "negative weight": (0.5, 2, 3, 4, 1, -0.5, 1),
    "tiny weights": (0.5, 2, 3, 4, 1e-9, 1e-12, 1e-10), "large weights": (0.5, 2, 3, 4, 1e6, 1e5, 1e4),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_edges_of_the_space(edge):
    p = make(30, 2, 200, noise=1.3)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    params = BlendParams(*map(float, EDGES[edge]))
    got = CorrectCounter(clf._operand, p.queries, p.targets).correct([params])
    assert got == [plain(clf, clf.similarities(p.queries), p.targets, params)]


def test_ties_go_to_the_lower_class():
    """Classes that are copies of one another tie in every block; some only in some blocks."""
    p = make(8, 1, 120, noise=1.0)
    order = torch.argsort(p.labels)
    shots, text = p.shots[order], p.text.clone()
    shots[5], text[5] = shots[2], text[2]
    shots[1] = shots[6]
    text[3] = text[0]
    clf = sb.SeMoBridgeClassifier(p.bridge(), text).fit(shots, torch.arange(8))
    trials = [*random_params(100), BlendParams(0, 1, 1, 1, 1, 0, 0), BlendParams(0, 1, 2, 3, 0, 1, 1)]
    z = clf.similarities(p.queries)
    assert CorrectCounter(clf._operand, p.queries, p.targets).correct(trials) == [
        plain(clf, z, p.targets, t) for t in trials
    ]


@pytest.mark.parametrize("sampler", ["random", "optuna"])
@pytest.mark.parametrize("redundant", [True, False])
def test_tune_keeps_the_first_best_and_tells_the_truth(sampler, redundant):
    if sampler == "optuna":
        pytest.importorskip("optuna", reason="Optuna is not installed; pip install optuna")
    p = make(20, 2, 150, noise=1.4)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    clf.tune(p.queries, p.targets, n_trials=40, sampler=sampler, seed=3, redundant=redundant)
    z, found = clf.similarities(p.queries), clf.search_
    assert len(found.history) == 40
    for params, accuracy in found.history:
        assert accuracy == plain(clf, z, p.targets, params) / 150
        assert redundant or max(params[4:]) == 1.0
    best = max(a for _, a in found.history)
    assert found.trial == [a for _, a in found.history].index(best)
    assert found.accuracy == best and found.best == found.history[found.trial][0] == clf.params_
    again = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    again.tune(p.queries, p.targets, n_trials=40, sampler=sampler, seed=3, redundant=redundant)
    assert again.search_ == found
    assert abs(round(150 * clf.score(p.queries, p.targets)) - round(150 * found.accuracy)) <= 1


def test_fixed_ranges_and_batches():
    p = make(20, 2, 150, noise=1.4)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    clf.tune(p.queries, p.targets, n_trials=30, sampler="random", fixed={"lambda1": 0.0, "s": 0.25},
             ranges={"beta": (2.0, 3.0)}, batch=7)  # fmt: skip
    assert len(clf.search_.history) == 30
    assert all(h.lambda1 == 0 and h.s == 0.25 and 2 <= h.beta <= 3 for h, _ in clf.search_.history)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_trials": 0}, "n_trials"), ({"batch": 1.5}, "batch"), ({"sampler": "grid"}, "sampler"),
        ({"ranges": {"delta": (0, 1)}}, "delta"), ({"ranges": {"beta": (2, 1)}}, "low <= high"),
        ({"fixed": {"x": 1.0}}, "got x"),
    ],
)  # fmt: skip
def test_refusals(arguments, words):
    p = make(4, 2, 10)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match=words):
        clf.tune(p.queries, p.targets, **arguments)


def test_missing_optuna_is_named(monkeypatch):
    p = make(4, 2, 10)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"semobridge-ext\[search\]"):
        clf.tune(p.queries, p.targets)
    clf.tune(p.queries, p.targets, n_trials=2, sampler="random")


def test_a_thousand_trials_equal_the_formula():
    p = make(100, 2, 500, width=48, noise=1.8)
    clf = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    trials, z = random_params(1000, seed=1), clf.similarities(p.queries)
    got = CorrectCounter(clf._operand, p.queries, p.targets).correct(trials)
    assert got == [plain(clf, z, p.targets, t) for t in trials] and len(set(got)) > 50
