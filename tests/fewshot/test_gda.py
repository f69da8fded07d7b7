"""GDA against the published formula with its pseudo-inverse, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot import gda, moments
from semobridge_ext.fewshot.reference import gda_weights
from tests.support.assertions import assert_close
from tests.support.problems import Problem, make


def gda_logits(p: Problem, alpha: float) -> torch.Tensor:
    x, q = normalize(p.shots.double(), dim=1), normalize(p.queries.double(), dim=1)
    w, b = gda_weights(x, p.labels, len(p.text))
    return 100 * q @ normalize(p.text.double(), dim=1).T + alpha * (q @ w + b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shots,width", [(6, 10), ([1, 2, 3, 1, 2], 24), (4, 40)])
def test_formula(dtype, shots, width):
    """More rows than dimensions, fewer, and classes of one shot."""
    p = make(5, shots, 30, width=width, dtype=dtype)
    clf = sb.GDA(p.text, alpha=2.0).fit(p.shots, p.labels)
    got = clf.logits(p.queries)
    assert got.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert_close(got, gda_logits(p, 2.0), "gda")
    assert clf.coef_.dtype is torch.float64 and float(clf.coef_.abs().max()) > 1e-2


def test_one_shot_is_the_text_alone():
    """Without spread the covariance and its pseudo-inverse are zero."""
    p = make(6, 1, 40, dtype=torch.float64)
    clf = sb.GDA(p.text, alpha=50.0).fit(p.shots, p.labels)
    want = gda_logits(p, 50.0)
    assert not clf.coef_.any()
    assert_close(clf.logits(p.queries), want, "gda")
    assert torch.equal(clf.predict(p.queries), sb.ZeroShot(p.text).fit().predict(p.queries))


def test_equal_shots_are_no_spread():
    """Three copies of a shot leave rounding around their mean, which is no covariance."""
    p = make(4, 1, 20)
    once = sb.GDA(p.text).fit(p.shots, p.labels)
    thrice = sb.GDA(p.text).fit(p.shots.repeat(3, 1), p.labels.repeat(3))
    assert not thrice.coef_.any() and torch.equal(thrice.predict(p.queries), once.predict(p.queries))


def test_blocks_do_not_show(monkeypatch):
    p = make(4, 9, 20, dtype=torch.float64)
    monkeypatch.setattr(gda, "CHUNK", 5)
    monkeypatch.setattr(moments, "CHUNK", 5)
    clf = sb.GDA(p.text, alpha=3.0).fit(p.shots, p.labels)
    assert_close(clf.logits(p.queries), gda_logits(p, 3.0), "gda")
    clf.tune(p.queries, p.targets)
    found = clf.alpha_
    monkeypatch.setattr(gda, "CHUNK", 4096)
    assert clf.tune(p.queries, p.targets).alpha_ == found


@pytest.mark.parametrize("seed", range(4))
def test_tune_picks_what_refitting_picks(seed):
    p = make(12, 3, 150, noise=1.8, seed=seed, dtype=torch.float64)
    scores = [
        float((gda_logits(p, alpha).argmax(dim=1) == p.targets).double().mean()) for alpha in sb.GDA.ALPHAS
    ]
    clf = sb.GDA(p.text).fit(p.shots, p.labels).tune(p.queries, p.targets)
    assert len(set(scores)) > 1 and clf.alpha_ == sb.GDA.ALPHAS[scores.index(max(scores))]
    assert clf.score(p.queries, p.targets) == max(scores)


def test_refusals():
    p = make(5, 2, 20)
    with pytest.raises(ValueError, match="alpha must be finite"):
        sb.GDA(p.text, alpha=float("nan")).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="must be finite, got NaN or inf in 1 of 10 rows"):
        sb.GDA(p.text).fit(torch.where(torch.arange(10).unsqueeze(1) == 3, torch.nan, p.shots), p.labels)
    clf = sb.GDA(p.text).fit(p.shots, p.labels)
    assert clf.tune(p.queries, p.targets, alphas=[7.0]).alpha_ == 7.0
    for alphas in ([], [float("inf")]):
        with pytest.raises(ValueError, match=r"GDA.tune: alphas must hold finite numbers"):
            clf.tune(p.queries, p.targets, alphas=alphas)
