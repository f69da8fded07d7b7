"""gcd_accuracy against the authors' numbers and every one-to-one map; names of all kinds."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import semobridge_ext as sb
from semobridge_ext import reference
from tests.support.assertions import assert_figures
from tests.support.vectors import vector

CASES = vector("gcd_accuracy")["outputs"]["cases"]


@pytest.mark.parametrize("case", CASES)
def test_authors_numbers(case):
    true, found, old = (case["inputs"][name] for name in ("y_true", "y_pred", "old"))
    classes = {label for label, is_old in zip(true, old, strict=True) if is_old}
    assert [label in classes for label in true] == old
    assert_figures(list(sb.gcd_accuracy(true, found, classes)), case["v2"], "figure")


CODES = st.integers(0, 4)


@given(st.lists(st.tuples(CODES, CODES), min_size=2, max_size=30), st.sets(CODES, min_size=1))
def test_is_the_best_of_all_maps(pairs, old):
    true, found = [c for c, _ in pairs], [p for _, p in pairs]
    assume(0 < sum(c in old for c in true) < len(true))
    got = sb.gcd_accuracy(true, found, old)
    assert_figures(got.all, reference.gcd_accuracy(true, found, sorted(old))[0], "figure", scale=1)
    shares = sum(c in old for c in true) / len(true)
    assert_figures(shares * got.old + (1 - shares) * got.new, got.all, "figure", scale=1)


def test_one_assignment_serves_all_images():
    """The new class's images lie in the old class's cluster: a map for each kind alone would match both."""
    got = sb.gcd_accuracy([0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0])
    assert got == (0.6, 1.0, 0.0)


def test_names_of_clusters_mean_nothing():
    true, found = [0, 0, 1, 1, 2, 2], [7, 7, 0, 0, 1, 0]
    want = sb.gcd_accuracy(true, found, [0, 1])
    assert want == (5 / 6, 1.0, 0.5)
    words = ["cat", "cat", "dog", "dog", "emu", "emu"]
    for labels, predictions, old in (
        (np.array(true), np.array(found), np.array([0, 1])),
        (torch.tensor(true), torch.tensor(found), torch.tensor([0, 1])),
        (words, found, {"cat", "dog"}),
        (words, ["dog", "dog", "cat", "cat", ("new", 1), "cat"], ("dog", "cat", "never seen")),
        ([10**12 + c for c in true], [-p for p in found], [10**12, 10**12 + 1]),
        ([float(c) for c in true], found, [0.0, 1.0]),
        ([str(c) for c in true], [bool(p) if p < 2 else p for p in found], ["0", "1"]),
    ):
        assert sb.gcd_accuracy(labels, predictions, old) == want


def test_a_kind_without_images_is_nan():
    got = sb.gcd_accuracy([0, 1], [1, 0], [0, 1])
    assert got.all == got.old == 1 and math.isnan(got.new)
    assert math.isnan(sb.gcd_accuracy([0, 1], [1, 0], []).old)


@pytest.mark.parametrize(
    "labels,predictions,old,kind,told",
    [
        ([0, 1], [0], [0], ValueError, r"gcd_accuracy: predictions must hold 2 values, got 1 values; one"),
        ([], [], [0], ValueError, r"labels must hold a value, got none; score at least one"),
        (["a"], ["b"], "a", TypeError, r"old_classes must be several names, got a; pass \[...\] around it"),
        ([[0]], [0], [0], TypeError, r"gcd_accuracy: labels must hold hashable"),
        ([0], [{}], [0], TypeError, r"gcd_accuracy: predictions must hold hashable"),
        (np.array([0.5]), [0], [0], ValueError, r"labels must hold class names|Unknown label type"),
        (np.array([[1, 2]]), [0], [0], ValueError, r"gcd_accuracy: labels must be 1-D"),
        (np.array([np.nan]), [0], [0], ValueError, r"gcd_accuracy: labels must be finite"),
    ],
)  # fmt: skip
def test_bad_input_is_named(labels, predictions, old, kind, told):
    with pytest.raises(kind, match=told):
        sb.gcd_accuracy(labels, predictions, old)


def test_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'semobridge-ext\[discovery\]'"):
        sb.gcd_accuracy([0], [0], [0])
