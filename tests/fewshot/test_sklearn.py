"""scikit-learn's own checks; the library itself never needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import semobridge_ext as sb

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

# The bridge has a fixed width, the checks draw data of many: "identity" is the form for any width.
ESTIMATORS = [
    sb.SeMoBridgeClassifier("identity"),
    sb.SeMoBridgeT("identity", losses={"text_projected": 0, "text_embedded": 0}, steps=3),
    sb.NearestClassMean(),
    sb.LDA(),
]


@pytest.mark.filterwarnings("default")
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


def test_import_needs_no_sklearn_nor_optuna():
    code = "import semobridge_ext, sys; assert not {'sklearn', 'optuna', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
