"""Numbers that spoil a classifier, and training that diverged, are errors; the estimator stays as it was."""

from __future__ import annotations

import inspect

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.fewshot.conventions import TUNE
from tests.support.problems import make

NAN, INF = float("nan"), float("inf")


def estimators(name: str, value: float):
    text = torch.eye(3)
    return {
        "classifier": lambda: sb.SeMoBridgeClassifier("identity", text, **{name: value}),
        "trained": lambda: sb.SeMoBridgeT("identity", text, text, steps=1, **{name: value}),
        "tip": lambda: sb.TipAdapter(text, **{name: value}),
        "tip-f": lambda: sb.TipAdapterF(text, epochs=1, **{name: value}),
        "ape": lambda: sb.APE(text, **{name: value}),
        "zero-shot": lambda: sb.ZeroShot(text, **{name: value}),
        "gda": lambda: sb.GDA(text, **{name: value}),
        "proker": lambda: sb.ProKeR(text, **{name: value}),
        "probe": lambda: sb.LPPlusPlus(text, **{name: value}),
        "prolip": lambda: sb.ProLIP(text, text, **{name: value}),
        "mean": lambda: sb.NearestClassMean(**{name: value}),
    }


CASES = [("classifier", n) for n in ("s", "alpha", "gamma", "lambda2", "probability_scale")]
CASES += [("trained", n) for n in ("logit_scale", "weight_decay", "lr", "beta")]
CASES += [("tip", "alpha"), ("tip", "beta"), ("tip-f", "lr"), ("ape", "w0"), ("ape", "gamma")]
CASES += [("zero-shot", "logit_scale"), ("mean", "logit_scale")]
CASES += [("gda", "alpha"), ("proker", "beta"), ("proker", "ridge"), ("probe", "momentum"), ("prolip", "lr")]
CASES += [("prolip", "penalty"), ("prolip", "logit_scale")]


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("kind,name", CASES)
def test_numbers(kind: str, name: str, value: float):
    clf = estimators(name, value)[kind]()
    with pytest.raises(ValueError, match=rf"\.fit: {name} must be finite, got float (nan|inf)"):
        clf.fit(torch.eye(3), [0, 1, 2])
    assert not hasattr(clf, "classes_")


TUNED = [
    sb.SeMoBridgeClassifier, sb.SeMoBridgeT, sb.TipAdapter, sb.TipAdapterF, sb.APE, sb.APET, sb.GDA, sb.LDA,
    sb.ProKeR, sb.ProLIP,
]  # fmt: skip


def test_keywords_of_no_tune():
    """What one estimator's tune takes all others ignore; a slip of the pen is none of these."""
    own = [set(inspect.signature(kind.tune).parameters) - {"self", "X", "y", "unused"} for kind in TUNED]
    assert set(TUNE) == set().union(*own)
    eye, y = torch.eye(3).repeat(2, 1), [0, 1, 2, 0, 1, 2]
    for kind in ("tip", "ape", "gda", "proker", "prolip"):
        clf = estimators("logit_scale", 100.0)[kind]().fit(eye, y)
        words = {name: 1 for name in TUNE if name not in inspect.signature(clf.tune).parameters}
        clf.tune(eye, y, **words)
        name = type(clf).__name__
        told = rf"{name}\.tune: unused must be keywords of .*, got gird=str 'dtd'; did you mean grid"
        with pytest.raises(TypeError, match=told):
            clf.tune(eye, y, gird="dtd")
    with pytest.raises(TypeError, match=r"LDA\.tune: .* got quick=bool True; estimators take alphas, batch"):
        sb.LDA().fit(eye, y).tune(eye, y, quick=True)


def test_names_of_classes_are_told_by_their_argument():
    with pytest.raises(TypeError, match=r"TipAdapter\.fit: class_names must be a list of class names"):
        sb.TipAdapter(torch.eye(3), class_names="abc").fit(torch.eye(3), list("abc"))


def test_losses_and_fixed():
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="losses must map"):
        sb.SeMoBridgeT("identity", eye, eye, losses={"few_shot": INF}).fit(eye, [0, 1, 2])
    clf = sb.SeMoBridgeClassifier("identity", eye).fit(eye, [0, 1, 2])
    with pytest.raises(ValueError, match="fixed must hold finite numbers"):
        clf.tune(eye, [0, 1, 2], n_trials=2, sampler="random", fixed={"s": NAN})


def diverging(p, **options) -> sb.SeMoBridgeT:
    return sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, lr=1e30, warmup=0, steps=6, **options)


def test_a_diverged_loss_is_an_error_and_leaves_the_estimator():
    p = make(4, 3, 16, 12, 20)
    clf = diverging(p)
    with pytest.raises(
        ValueError, match=r"the loss must stay finite, got .* at step \d of 6; lower lr=1e\+30"
    ):
        clf.fit(p.shots, p.labels)
    assert not hasattr(clf, "classes_") and not hasattr(clf, "bridge_")
    with pytest.raises(ValueError, match="must be fitted first"):
        clf.predict(p.queries)
    clf.set_params(lr=1e-4).fit(p.shots, p.labels)
    want = clf.logits(p.queries)
    with pytest.raises(ValueError, match="must stay finite"):
        clf.set_params(lr=1e30).fit(p.shots, p.labels)
    assert torch.equal(clf.logits(p.queries), want)


def test_a_loss_that_diverged_after_the_kept_step_is_a_warning():
    p = make(4, 3, 16, 12, 20)
    clf = diverging(p, eval_every=1)
    with pytest.warns(UserWarning, match=r"the loss must stay finite, got .* Kept are the parameters"):
        clf.fit(p.shots, p.labels, validation=(p.queries, p.targets))
    assert torch.isfinite(clf.logits(p.queries)).all()


def test_tip_adapter_f_that_diverged():
    p = make(4, 3, 16, 12, 20)
    with pytest.raises(ValueError, match=r"TipAdapterF\.fit: the loss must stay finite"):
        sb.TipAdapterF(-p.text, logit_scale=3e38, epochs=2).fit(p.shots, p.labels)
