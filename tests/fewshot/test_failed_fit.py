"""A fit that is refused leaves the estimator as it was: names, features and predictions."""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from tests.support.problems import make

P = make(4, 3, 16, 12, 20)
ESTIMATORS = {
    "classifier": lambda: sb.SeMoBridgeClassifier(P.bridge(), P.text),
    "trained": lambda: sb.SeMoBridgeT(P.bridge(), P.text, P.hidden, steps=1),
    "proker": lambda: sb.ProKeR(P.text),
    "gda": lambda: sb.GDA(P.text),
    "tip": lambda: sb.TipAdapter(P.text),
    "ape": lambda: sb.APE(P.text),
    "probe": lambda: sb.LPPlusPlus(P.text, steps=1),
    "lda": lambda: sb.LDA(),
    "mean": lambda: sb.NearestClassMean(),
    "zero-shot": lambda: sb.ZeroShot(P.text),
}
# What is wrong with each, so that it is seen late: behind the classes, or in the solution itself.
WRONG = {
    "classifier": {"bridge": "nonsense"},
    "trained": {"bridge": sb.Bridge(torch.eye(5))},
    "proker": {"ridge": 1e-300},
    "gda": {"class_names": ["a", "b"]},
    "tip": {"text_features": torch.ones(4, 7)},
    "ape": {"channels": 10**6},
    "probe": {"steps": -1},
    "lda": {"shrinkage": 2.0},
    "zero-shot": {"text_features": torch.ones(4, 7)},
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_are_refused(name: str):
    clf = ESTIMATORS[name]()
    # Other classes and more shots: what a half fit would leave behind cannot pass for the old state.
    kept = {word: getattr(clf, word) for word in WRONG[name]}
    clf.fit(P.shots, P.labels)
    logits, classes = clf.logits(P.queries), clf.classes_
    before = dict(vars(clf))
    clf.set_params(**WRONG[name])
    with pytest.raises((ValueError, TypeError), match="must"):
        clf.fit(torch.cat([P.shots, P.shots]), torch.cat([P.labels, P.labels]))
    clf.set_params(**kept)
    assert vars(clf).keys() == before.keys()
    assert [word for word, value in before.items() if vars(clf)[word] is not value] == []
    assert clf.classes_ is classes
    assert torch.equal(clf.logits(P.queries), logits)


@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - {"zero-shot"}))
def test_shots_that_are_refused(name: str):
    import pandas

    clf = ESTIMATORS[name]().fit(P.shots, P.labels)
    before = dict(vars(clf))
    frame = pandas.DataFrame(P.shots.numpy(), columns=[f"column {i}" for i in range(P.shots.shape[1])])
    with pytest.raises(ValueError, match="must hold at least"):
        clf.fit(frame.iloc[:1], P.labels[:1])  # its names of columns come in before the classes are counted
    assert vars(clf).keys() == before.keys()
    assert [word for word, value in before.items() if vars(clf)[word] is not value] == []
