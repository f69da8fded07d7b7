"""Zero-shot, nearest class mean and LDA against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.assertions import assert_close
from tests.support.problems import make


def test_zero_shot_is_the_nearest_text():
    p = make(7, 1, 60)
    clf = sb.ZeroShot(p.text, class_names=list("abcdefg")).fit()
    want = (normalize(p.queries.double(), dim=1) @ normalize(p.text.double(), dim=1).T).argmax(dim=1)
    assert [ord(c) - 97 for c in clf.predict(p.queries)] == want.tolist() and len(set(want.tolist())) == 7


def test_nearest_class_mean():
    p = make(7, [1, 2, 3, 4, 1, 2, 3], 60)
    clf = sb.NearestClassMean().fit(p.shots, p.labels)
    means = torch.stack([p.shots[p.labels == c].double().mean(dim=0) for c in range(7)])
    want = 100 * normalize(p.queries.double(), dim=1) @ normalize(means, dim=1).T
    assert_close(clf.logits(p.queries), want, "logits")


@pytest.mark.parametrize("rho", [0.2, 1.0])
def test_lda_posteriors_are_those_of_gaussians(rho):
    p = make(4, 8, 30, width=6)
    clf = sb.LDA(shrinkage=rho).fit(p.shots, p.labels)
    x, q = normalize(p.shots.double(), dim=1), normalize(p.queries.double(), dim=1)
    means = torch.stack([x[p.labels == c].mean(dim=0) for c in range(4)])
    rest = x - means[p.labels]
    s = rest.T @ rest / (32 - 4)
    s = (1 - rho) * s + rho * s.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    log = torch.stack(
        [torch.distributions.MultivariateNormal(m, covariance_matrix=s).log_prob(q) for m in means], dim=1
    )
    want = torch.softmax(log, dim=1)
    assert float(want.std()) > 0.1
    assert_close(clf.predict_proba(p.queries), want, "posterior")


def test_lda_with_one_shot_is_the_nearest_mean():
    p = make(6, 1, 80)
    lda = sb.LDA().fit(p.shots, p.labels)
    unit = normalize(p.shots, dim=1)
    want = torch.cdist(normalize(p.queries, dim=1), unit[torch.argsort(p.labels)]).argmin(dim=1)
    assert lda.shrinkage_ == 1.0 and torch.equal(lda.predict(p.queries), want)


def test_lda_estimate_matches_sklearns_and_tune_looks_at_its_grid():
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is not installed")
    p = make(2, 40, 60, width=10, noise=1.5)
    lda = sb.LDA().fit(p.shots, p.labels)
    assert 0 < lda.shrinkage_ < 1
    x = normalize(p.shots.double(), dim=1)
    rest = x - torch.stack([x[p.labels == c].mean(dim=0) for c in range(2)])[p.labels]
    # sklearn divides by n and uses its own count of samples: equal up to terms of order 1/n.
    want = covariance.OAS(assume_centered=True).fit(rest.numpy()).shrinkage_
    assert 0.9 < lda.shrinkage_ / want < 1.1
    scores = [sb.LDA(shrinkage=r).fit(p.shots, p.labels).score(p.queries, p.targets) for r in sb.LDA.GRID]
    lda.tune(p.queries, p.targets)
    assert lda.shrinkage_ == sb.LDA.GRID[scores.index(max(scores))]


@pytest.mark.parametrize("make_model", [lambda p: sb.ZeroShot(p.text), lambda p: sb.NearestClassMean(),
                                        lambda p: sb.LDA()])  # fmt: skip
def test_files(make_model, tmp_path):
    p = make(5, 3, 20)
    clf = make_model(p).fit(p.shots, p.labels)
    clf.save(tmp_path / "c.safetensors")
    again = type(clf).load(tmp_path / "c.safetensors")
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    assert torch.equal(again.predict(p.queries), clf.predict(p.queries))


def test_refusals():
    p = make(5, 3, 20)
    with pytest.raises(ValueError, match="shrinkage must lie"):
        sb.LDA(shrinkage=2.0).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="two classes"):
        sb.NearestClassMean().fit(p.shots, [1] * 15)
    with pytest.raises(ValueError, match="5 rows of text_features"):
        sb.ZeroShot(p.text, class_names=["a"]).fit()
