"""Rows, labels, weights and whole numbers of the wrong kind, of every estimator and search alike."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.retrieval import group_shares
from tests.support.misuse import Case, assert_refused

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TEXT = ROWS[:3]
META = torch.zeros(6, dtype=torch.int64, device="meta")
NAN = float("nan")


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return torch.nested.nested_tensor([LABELS[:2], LABELS[:3]])


def fit(rows: Any = ROWS, labels: Any = LABELS, **given: Any) -> Any:
    return sb.GDA(TEXT).fit(rows, labels, **given)


def pandas_labels() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.Series([*"aabbc", pandas.NA], dtype="string")


# What is no list of rows, and what the message says of it.
NO_ROWS: dict[str, tuple[Any, type[Exception], str]] = {
    "a text": ("abc", TypeError, "X must be rows of numbers, got str 'abc'"),
    "a generator": ((row for row in ROWS), TypeError, "X must be rows of numbers, got generator"),
    "a set": ({1.0}, TypeError, "X must be rows of numbers, got set"),
    "texts": ([["a", "b"]], ValueError, "X must hold numbers, got others .could not convert"),
    "rows of two lengths": ([[1.0, 2.0], [1.0]], ValueError, "X must be rows of one length, got others"),
    "tensors of two lengths": ([ROWS[0], ROWS[1, :2]], ValueError, "X must be rows of one length"),
    "dates": (np.array([["2020-01-01"]], "datetime64[D]"), TypeError, r"got datetime64\[D\] values"),
    "no row": (ROWS[:0], ValueError, r"X must have rows, got 0 sample\(s\)"),
    "no column": ([[]], ValueError, r"X must have columns, got 0 feature\(s\)"),
}
NO_LABELS: dict[str, tuple[Any, type[Exception], str]] = {
    "a text": ("aabbcc", TypeError, "y must be a list of class names .*, got str 'aabbcc'"),
    "a number": (5, TypeError, "y must be a list of class names .*, got int 5"),
    "a set": (set(range(6)), TypeError, "in the order of the rows, got set"),
    "a dictionary": ({i: i for i in range(6)}, TypeError, "in the order of the rows, got dict"),
    "nested": (nested(), TypeError, "y must be a dense 1-D tensor of labels, got a nested"),
    "sparse": (LABELS.to_sparse(), TypeError, "y must be a dense 1-D tensor of labels"),
    "complex": (LABELS.to(torch.complex64), TypeError, "y must be a dense 1-D tensor of labels"),
    "meta": (META, ValueError, "y must hold values, got .* on meta"),
}
WHOLE = {"nested": nested(), "sparse": LABELS.to_sparse()}

CASES: dict[str, Case] = {
    **{f"fit, {n}": (lambda x=x: fit(x), kind, holds) for n, (x, kind, holds) in NO_ROWS.items()},
    **{
        f"predict, {n}": (lambda x=x: fit().predict(x), kind, holds)
        for n, (x, kind, holds) in NO_ROWS.items() if n != "a generator"
    },
    **{f"fit, labels {n}": (lambda y=y: fit(labels=y), kind, holds) for n,
    (y, kind, holds) in NO_LABELS.items()},
    "fit, labels missing in pandas": (
        lambda: sb.LDA().fit(ROWS, pandas_labels()), ValueError, r"None or NaN in 1 of 6 places \(first: 5\)",
    ),
    "classes named by one text": (
        lambda: sb.GDA(TEXT, class_names="abc").fit(ROWS, list("aabbcc")), TypeError,
        "class_names must be a list",
    ),
    "weights of texts": (
        lambda: fit(sample_weight=["a"] * 6), ValueError, "sample_weight must hold numbers",
    ),
    "one weight": (lambda: fit(sample_weight="a"), TypeError, "sample_weight must be rows of numbers"),
    # whole numbers
    **{
        f"{name}, {kind}": (lambda call=call, v=v: call(v), TypeError, "whole numbers|row numbers")
        for kind, v in WHOLE.items()
        for name, call in {
            "exclude": lambda v: sb.topk(ROWS, ROWS, 1, exclude=v),
            "exclude of a Gallery": lambda v: sb.Gallery(ROWS).topk(ROWS, 1, exclude=v),
            "support labels": lambda v: sb.support_logits(ROWS, ROWS, v, 3),
            "metrics labels": lambda v: sb.retrieval_metrics(ROWS, ROWS, v, v),
            "groups": lambda v: group_shares(ROWS, ROWS, v, at=(1,)),
            "relevant": lambda v: sb.retrieval_metrics(ROWS, ROWS, relevant=v),
            "ids": lambda v: sb.Gallery(ROWS, ids=v),
            "remove": lambda v: sb.Gallery(ROWS).remove(v),
        }.items()
    },
    "ids, meta": (lambda: sb.Gallery(ROWS, ids=META), ValueError, "ids must hold values"),
    "groups, meta": (lambda: group_shares(ROWS, ROWS, META, at=(1,)), ValueError, "groups must hold values"),
    "ids, complex": (
        lambda: sb.Gallery(ROWS, ids=torch.arange(6).to(torch.complex64)), TypeError, "be whole numbers",
    ),
    "ids beyond 64 bits": (
        lambda: sb.Gallery(ROWS, ids=np.arange(6).astype(np.uint64) + np.uint64(2**63)),
        TypeError, "ids must be whole numbers",
    ),
    **{
        f"easy images, {name}": (
            lambda easy=easy: sb.revisited_metrics(ROWS[:1], ROWS, easy, [[1]], [[2]]), TypeError, holds,
        )
        for name, easy, holds in (
            ("real numbers", [[0.7]], "easy must hold lists of row numbers, got list .0.7. for query 0"),
            ("texts", [["a"]], "easy must hold lists of row numbers"),
            ("a number", 5, "easy must hold 1 lists, got int 5"),
            ("numbers", [0], "easy must hold lists of row numbers, got int 0 for query 0"),
        )
    },
    "recall_at beyond 32 bits": (
        lambda: sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS, recall_at=(2**70,)),
        ValueError, r"recall_at must lie in 1\.\.2147483647",
    ),
    "diagnose, recall_at beyond 32 bits": (
        lambda: sb.diagnose(ROWS, LABELS, recall_at=(2**70,)), ValueError, "recall_at must be below 2³¹",
    ),
    # numbers and names
    **{
        f"diagnose, {name}={value!r}": (
            lambda name=name, value=value: sb.diagnose(ROWS, LABELS, **{name: value}), kind, f"{name} must",
        )
        for name, value, kind in (
            ("seed", "a", TypeError), ("seed", 1.5, TypeError), ("seed", None, TypeError),
            ("confidence", "a", ValueError), ("confidence", None, ValueError),
        )
    },
    "whitening shrinkage='a'": (
        lambda: sb.LinearMap.whitening(ROWS, shrinkage="a"), TypeError, "shrinkage must be a number",
    ),
    "RoleCentering.fit, meta": (
        lambda: sb.RoleCentering().fit({"a": torch.empty(6, 4, device="meta")}), ValueError, "hold values",
    ),
    "a role that is a list": (
        lambda: sb.RoleCentering({"a": ROWS[0]}).map_for(["a"]), ValueError, "role must be one of a",
    ),
    "one role of two": (
        lambda: sb.RoleCentering({"a": ROWS[0]}).fuse(ROWS, ROWS, roles=("a",)), ValueError,
        "two names of roles",
    ),
    "IsoCLIP metric=None": (lambda: tuned(metric=None), TypeError, "metric must be 'mAP'"),
    "IsoCLIP k_top=5": (lambda: tuned(k_top=5), TypeError, "k_top must be a sequence of whole numbers"),
    "from_faiss(5)": (
        lambda: sb.LinearMap.from_faiss(5), TypeError,
        "transforms must be a list of FAISS transforms, got int 5",
    ),
    "from_onnx(5)": (lambda: sb.LinearMap.from_onnx(5), TypeError, "path must be a str or a path, got int 5"),
}  # fmt: skip


def tuned(**given: Any) -> Any:
    return sb.IsoCLIP(ROWS, ROWS[:5]).tune(torch.randn(6, 6), LABELS, **given)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused_in_the_grammar_of_errors(name: str) -> None:
    if "faiss" in name:
        pytest.importorskip("faiss")
    if "onnx" in name:
        pytest.importorskip("onnx")
    assert_refused(*CASES[name])


def test_a_list_of_tensors_is_rows_whatever_their_dtype() -> None:
    clf = fit()
    want = clf.predict(ROWS).tolist()
    assert clf.predict(list(ROWS)).tolist() == want
    assert clf.predict([row.clone().requires_grad_() for row in ROWS]).tolist() == want
    half = clf.predict(ROWS.bfloat16()).tolist()
    assert clf.predict(list(ROWS.bfloat16())).tolist() == half


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int8])
def test_labels_of_any_dtype_are_labels(dtype: torch.dtype) -> None:
    assert fit(labels=LABELS.to(dtype)).predict(ROWS).tolist() == fit().predict(ROWS).tolist()


def test_whole_numbers_beyond_64_bits_stay_what_they_are() -> None:
    """As labels they are names; turned into int64 two of them would be one, or another."""
    large = [2**63, 2**63, 2**64, 2**64, 5, 5]
    for labels in (large, np.array([2**63, 2**63, 2**64 - 1, 2**64 - 1, 5, 5], np.uint64)):
        found = sb.retrieval_metrics(ROWS, ROWS, labels, labels)
        assert found == sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS)
    kept = sb.Gallery(ROWS, ids=np.arange(6, dtype=np.uint64)).remove(np.array([2], np.uint32))
    assert kept.ids is not None and kept.ids.tolist() == [0, 1, 3, 4, 5]


def test_queries_with_a_gradient_are_searched_as_others() -> None:
    gallery = sb.Gallery(ROWS, normalize=True)
    queries = ROWS.clone().requires_grad_()
    for found, want in zip(gallery.search(queries, 2), gallery.search(ROWS, 2), strict=True):
        np.testing.assert_array_equal(found, want)
    for found, want in zip(gallery.kneighbors(queries, 2), gallery.kneighbors(ROWS, 2), strict=True):
        np.testing.assert_array_equal(found, want)


def test_no_queries_find_nothing_of_the_dtype_of_a_search() -> None:
    for dtype in (torch.float32, torch.float64):
        found = sb.Gallery(ROWS.to(dtype)).range_search(ROWS[:0].to(dtype), 0.5)
        assert found.scores.dtype is dtype and found.indices.dtype is torch.int64
        assert found.limits.tolist() == [0] and len(found.scores) == len(found.indices) == 0


@pytest.mark.parametrize("seed", [np.int64(3), 20240615, 2**40, 2**63, 2**64 + 3, 2**70])
def test_diagnose_takes_any_whole_number_as_a_seed(seed: Any) -> None:
    assert sb.diagnose(ROWS, LABELS, seed=seed, resamples=3).before["mAP"].value > 0
