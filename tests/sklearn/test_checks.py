"""scikit-learn's own checks: of every estimator of the door slow, of one of each kind quick."""

from __future__ import annotations

import pytest

from semobridge_ext import sklearn as door
from tests.support.sklearn_estimators import CLASSIFIERS, EXPECTED, TRANSFORMERS, expected

checks = pytest.importorskip("sklearn.utils.estimator_checks")


@checks.parametrize_with_checks([door.NearestClassMean(), door.LinearMap()])
def test_quick(estimator, check):
    check(estimator)


@pytest.mark.slow
@checks.parametrize_with_checks([*CLASSIFIERS, *TRANSFORMERS], expected_failed_checks=expected)
def test_every(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", CLASSIFIERS + TRANSFORMERS, ids=repr)
def test_columns_of_data_frames(estimator):
    pytest.importorskip("pandas")
    checks.check_dataframe_column_names_consistency(type(estimator).__name__, estimator)


def test_every_class_of_the_door_is_checked():
    checked = {type(e).__name__ for e in CLASSIFIERS + TRANSFORMERS}
    # Its width is that of two matrices; the checks draw data of many widths. test_transformers.py has it.
    assert set(door.__all__) - checked == {"IsoCLIP"} and set(EXPECTED) <= checked
