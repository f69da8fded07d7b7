"""scikit-learn's own checks of estimators that do not derive from it; tests/sklearn/ has those that do."""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from tests.support.problems import make

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

# The bridge has a fixed width, the checks draw data of many: "identity" is the form for any width.
ESTIMATORS = [
    sb.SeMoBridgeClassifier("identity"),
    sb.SeMoBridgeT("identity", losses={"text_projected": 0, "text_embedded": 0}, steps=3),
    sb.NearestClassMean(),
    sb.LDA(),
]


@pytest.mark.filterwarnings("ignore:Estimator .* does not inherit:UserWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_estimator_checks(estimator):
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"])[:300] for r in results if r["status"] == "failed"}
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 40


def test_clone_and_params():
    from sklearn.base import clone

    clf = sb.SeMoBridgeClassifier("identity", alpha=3.0)
    copy = clone(clf)
    assert copy is not clf and copy.get_params() == clf.get_params()
    copy.set_params(alpha=4.0, lambda1=0.0)
    assert (copy.alpha, copy.lambda1, clf.alpha) == (4.0, 0.0, 3.0)
    with pytest.raises(ValueError, match="delta"):
        copy.set_params(delta=1)


CLOSED = {
    "GDA": lambda text: sb.GDA(text, alpha=3.0),
    "ProKeR": lambda text: sb.ProKeR(text, beta=3.0),
    "LPPlusPlus": lambda text: sb.LPPlusPlus(text, steps=3),
    "ProLIP": lambda text: sb.ProLIP(torch.eye(24), text, steps=3),
}


@pytest.mark.parametrize("name", CLOSED)
def test_clone_of_estimators_with_text(name):
    from sklearn.base import clone

    p = make(4, 3, 20)
    clf = CLOSED[name](p.text).fit(p.shots, p.labels)
    copy = clone(clf)
    assert not hasattr(copy, "classes_") and torch.equal(copy.text_features, p.text)
    assert torch.equal(copy.fit(p.shots, p.labels).logits(p.queries), clf.logits(p.queries))
    drawn = clf.fit_seeds(p.shots, p.labels, shots=1, seeds=(0, 1))
    assert [len(c.predict(p.queries)) for c in drawn] == [20, 20]


def test_draws_take_what_fit_takes():
    """Numbers of the names, as scikit-learn's ensembles pass them, and classes of fewer rows than shots."""
    p = make(4, 3, 20)
    named = sb.GDA(p.text, class_names=["a", "b", "c", "d"])
    (drawn,) = named.fit_seeds(p.shots, p.labels, shots=3, seeds=(0,))
    assert torch.equal(drawn.logits(p.queries), sb.GDA(p.text).fit(p.shots, p.labels).logits(p.queries))
    few = (p.labels != 2).nonzero().flatten().tolist() + (p.labels == 2).nonzero().flatten().tolist()[:1]
    (all_there,) = sb.TipAdapter(p.text).fit_seeds(p.shots[few], p.labels[few], shots=3, seeds=(0,))
    assert torch.bincount(all_there.labels_).tolist() == [3, 3, 1, 3]


@pytest.mark.parametrize("name", CLOSED)
def test_two_classes_and_names(name):
    """Scores of two classes are one column, files keep names, and no pickle is read or written."""
    p = make(2, 3, 20)
    y = ["b" if label else "a" for label in p.labels.tolist()]
    clf = CLOSED[name](p.text).set_params(class_names=["a", "b"]).fit(p.shots, y)
    decision, logits = clf.decision_function(p.queries), clf.logits(p.queries)
    assert decision.shape == (20,) and torch.equal(decision, logits[:, 1] - logits[:, 0])
    assert clf.predict(p.queries).tolist() == ["ab"[int(d > 0)] for d in decision]
    assert clf.predict_proba(p.queries.numpy()).shape == (20, 2)
