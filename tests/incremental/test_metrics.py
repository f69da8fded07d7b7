"""Average precision and AUC against scikit-learn, and against counted pairs and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from semobridge_ext.incremental import average_precision, roc_auc
from tests.support.assertions import assert_figures


def problem(count: int, levels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Few levels make many ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (count, 4)), rng.integers(-levels, levels + 1, (count, 4)) / levels


def by_threshold(y: list[int], s: list[float]) -> float:
    """Average precision, each score as a threshold."""
    total, recall = 0.0, 0.0
    for level in sorted(set(s), reverse=True):
        taken = [label for label, score in zip(y, s, strict=True) if score >= level]
        total += (sum(taken) / sum(y) - recall) * sum(taken) / len(taken)
        recall = sum(taken) / sum(y)
    return total


def by_pairs(y: list[int], s: list[float]) -> float:
    pairs = [(a, b) for a, u in zip(s, y, strict=True) if u for b, v in zip(s, y, strict=True) if not v]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("count,levels", [(7, 2), (50, 3), (400, 1), (300, 10**6)])
def test_scikit_learn_agrees(count: int, levels: int):
    y, s = problem(count, levels, count)
    assert_figures(average_precision(y, s), average_precision_score(y, s, average=None), "multilabel")
    assert_figures(roc_auc(y, s), roc_auc_score(y, s, average=None), "multilabel")
    rounded = torch.from_numpy(s).half()
    wide = rounded.double().numpy()
    assert_figures(
        average_precision(y, rounded), average_precision_score(y, wide, average=None), "multilabel"
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-2, 2)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_definitions(rows: list[tuple[int, int]]):
    y, s = [u for u, _ in rows], [float(v) * 0.5 for _, v in rows]
    columns = torch.tensor(y)[:, None], torch.tensor(s)[:, None]
    precision, auc = float(average_precision(*columns)), float(roc_auc(*columns))
    if sum(y) == 0:
        assert np.isnan(precision) and np.isnan(auc)
        return
    assert_figures(precision, by_threshold(y, s), "multilabel")
    assert np.isnan(auc) if sum(y) == len(y) else auc == pytest.approx(by_pairs(y, s))


def test_unknown_labels_have_no_part():
    y, s = problem(60, 3, 0)
    hidden = np.random.default_rng(1).random(y.shape) < 0.4
    want = [average_precision_score(y[~h, d], s[~h, d]) for d, h in enumerate(hidden.T)]
    as_tensor = torch.where(torch.tensor(hidden), -1, torch.tensor(y))
    for marked in (np.where(hidden, np.nan, y), np.where(hidden, -1, y), as_tensor):
        assert_figures(average_precision(marked, s), want, "multilabel")


def test_zeros_of_both_signs_are_one_score():
    y, s = torch.tensor([[1], [0]]), torch.tensor([[-0.0], [0.0]])
    assert roc_auc(y, s).item() == 0.5 and average_precision(y, s).item() == 0.5


@pytest.mark.parametrize("metric", [average_precision, roc_auc])
@pytest.mark.parametrize(
    "y,s,kind,told",
    [
        ([[1], [2]], [[0.0], [1.0]], ValueError, r"Y must hold 0, 1, NaN or −1, got 2 in row 1, column 0"),
        ([1, 0], [[0.0], [1.0]], ValueError, r"Y must be \[N, L\], got .*; pass one column per finding"),
        ([["a"]], [[0.0]], TypeError, r"Y must hold numbers, got <U1 values; write 0, 1"),
        ([[1], [0]], [[0.0, 1.0]], ValueError, r"scores must be \[2, 1\], got .*; pass one score per label"),
        ([[1], [0]], [[0.0], [float("nan")]], ValueError, r"scores must be finite, got NaN or inf in 1 of 2"),
    ],
)
def test_bad_input_is_named(metric, y, s, kind, told):
    with pytest.raises(kind, match=f"{metric.__name__}: {told}"):
        metric(y, s)
