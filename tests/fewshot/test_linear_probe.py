"""LP++ against autograd and torch.optim.SGD in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot.reference import linear_probe
from tests.support.assertions import assert_close, assert_figures
from tests.support.problems import Problem, make


def trained(p: Problem, **options) -> tuple[torch.Tensor, ...]:
    x, text = normalize(p.shots.double(), dim=1), normalize(p.text.double(), dim=1)
    return linear_probe(x, p.labels, text, **options)


def logits_of(p: Problem, w: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    q = normalize(p.queries.double(), dim=1)
    return q @ w.T + b + alpha * (q @ normalize(p.text.double(), dim=1).T)


@pytest.mark.parametrize("shots,width", [(6, 10), ([1, 2, 3, 1, 2], 24), (1, 40)])
def test_steps_of_autograd(shots, width):
    """Also in the span of fewer shots than dimensions."""
    p = make(5, shots, 30, width=width, noise=3.0, dtype=torch.float64)
    clf = sb.LPPlusPlus(p.text, steps=60).fit(p.shots, p.labels)
    w, b, alpha, losses = trained(p, steps=60)
    assert_figures(clf.losses_, losses, "probe_losses")
    assert_close(clf.coef_, w, "probe_training")
    assert_close(clf.intercept_, b, "probe_training")
    assert_close(clf.alpha_, alpha, "probe_training")
    assert_close(clf.logits(p.queries), logits_of(p, w, b, alpha), "probe_training")
    start = trained(p, steps=0)
    assert float((w - start[0]).abs().max()) > 1e-2
    if len(p.shots) > width:  # else they are told apart before α has moved
        assert float((alpha - start[2]).abs().min()) > 1e-3
    assert float(losses[-1]) < 0.5 * float(losses[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_short_dtypes(dtype):
    p = make(5, 4, 30, noise=3.0, dtype=dtype)
    clf = sb.LPPlusPlus(p.text, steps=25).fit(p.shots, p.labels)
    w, b, alpha, _ = trained(p, steps=25)
    assert clf.coef_.dtype is torch.float32
    assert_close(clf.logits(p.queries), logits_of(p, w, b, alpha), "probe_training")


def test_validation_keeps_the_last_of_the_best():
    p = make(8, 2, 90, noise=1.5, seed=2, dtype=torch.float64)
    right = []
    for steps in range(1, 41):
        w, b, alpha, _ = trained(p, steps=steps)
        right.append(int((logits_of(p, w, b, alpha).argmax(dim=1) == p.targets).sum()))
    want = max(step for step, count in enumerate(right, 1) if count == max(right))
    clf = sb.LPPlusPlus(p.text, steps=40).fit(p.shots, p.labels, validation=(p.queries, p.targets))
    assert clf.best_step_ == want > right.index(max(right)) + 1  # not the first of them
    assert clf.score(p.queries, p.targets) == max(right) / 90
    every = sb.LPPlusPlus(p.text, steps=40, eval_every=7).fit(
        p.shots, p.labels, validation=(p.queries, p.targets)
    )
    seen = [7, 14, 21, 28, 35, 40]
    assert every.best_step_ == max(s for s in seen if right[s - 1] == max(right[i - 1] for i in seen))


def test_no_steps_are_the_start():
    p = make(4, 3, 20, dtype=torch.float64)
    clf = sb.LPPlusPlus(p.text, steps=0).fit(p.shots, p.labels, validation=(p.queries, p.targets))
    w = trained(p, steps=1)[0]
    assert clf.best_step_ == 0 and not torch.equal(clf.coef_, w) and len(clf.losses_) == 0
    x = normalize(p.shots, dim=1)
    sums = torch.stack([x[p.labels == c].sum(dim=0) for c in range(4)])
    assert_close(clf.coef_, sums, "probe_training")


def test_refusals():
    p = make(5, 2, 20)
    with pytest.raises(
        ValueError, match=r"LPPlusPlus.fit: steps must be a whole number from 0 up, got int -1"
    ):
        sb.LPPlusPlus(p.text, steps=-1).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="eval_every must be a whole number from 1 up"):
        sb.LPPlusPlus(p.text, eval_every=0).fit(p.shots, p.labels)
    clf = sb.LPPlusPlus(p.text, momentum=1e30)
    with pytest.raises(
        ValueError, match=r"LPPlusPlus.fit: the loss must stay finite, got NaN or infinity at"
    ):
        clf.fit(p.shots, p.labels)
    assert not hasattr(clf, "classes_")
    with pytest.raises(ValueError, match="must be finite, got NaN or inf in 1 of 10 rows"):
        sb.LPPlusPlus(p.text).fit(
            torch.where(torch.arange(10).unsqueeze(1) == 3, torch.nan, p.shots), p.labels
        )
