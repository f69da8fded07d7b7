"""mAP@R as Cross-the-Gap and IsoCLIP published it, against a ranking that is sorted and cut as theirs is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from tests.support.assertions import assert_figures

BACKENDS = pytest.mark.parametrize("backend", ["native", "eager"])


def cut_as_published(order: np.ndarray, labels: np.ndarray, query: int) -> float:
    """AP@R of one query: R is counted with the query in the gallery, which is then removed."""
    top = int((labels == labels[query]).sum())
    relevant = labels[order] == labels[query]
    hits = relevant[:top]
    total = int(relevant.sum())
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / total) if total else 0.0


def oracle(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """The mean over every order of tied items."""
    found = []
    for i, row in enumerate(scores):
        others = np.delete(np.arange(len(row)), i)
        orders = [np.array(o) for o in permutations(others) if (np.diff(row[list(o)]) <= 0).all()]
        found.append(float(np.mean([cut_as_published(o, labels, i) for o in orders])))
    return found


@BACKENDS
def test_ties_and_lone_queries(backend):
    g = torch.Generator().manual_seed(5)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 1])  # 2 has no other
    x = torch.randint(-2, 3, (7, 2), generator=g).float()
    x[4] = x[0]
    want = oracle((x @ x.T).numpy(), labels.numpy())
    with sb.backend(backend):
        m = sb.retrieval_metrics(x, x, labels, labels, same_set=True, per_query=True, at_r="published")
        plain = sb.retrieval_metrics(x, x, labels, labels, same_set=True, per_query=True)
    assert_figures(m["per_query"]["AP@R"], want, "metric")
    assert_figures(m["mAP@R"], float(np.mean(want)), "metric")
    assert m["queries"] == 7 and plain["queries"] == 6 and m["without_relevant"] == 1
    assert m["mAP@R"] * 7 > plain["mAP@R"] * 6 and m["per_query"]["AP"][5] == 0
    # The other figures differ by the query that counts as 0 alone.
    for name in ("mAP", "R-Precision", "Recall@1"):
        assert_figures(m[name] * 7, plain[name] * 6, "metric")


@BACKENDS
def test_a_set_without_ties(backend):
    g = torch.Generator().manual_seed(6)
    labels = torch.randint(0, 9, (120,), generator=g)
    labels[0] = 77
    x = torch.randn(120, 12, generator=g, dtype=torch.float64)
    scores = (x @ x.T).numpy()
    want = [
        cut_as_published(np.array([j for j in np.argsort(-row) if j != i]), labels.numpy(), i)
        for i, row in enumerate(scores)
    ]
    with sb.backend(backend):
        m = sb.retrieval_metrics(x, x, labels, labels, same_set=True, per_query=True, at_r="published")
    assert_figures(m["per_query"]["AP@R"], want, "metric")


def test_all_relevant_leaves_no_next_place():
    x, labels = torch.eye(4) + 0.1, torch.zeros(4, dtype=torch.int64)
    for backend in ("native", "eager"):
        with sb.backend(backend):
            assert sb.retrieval_metrics(x, x, labels, labels, same_set=True, at_r="published")["mAP@R"] == 1


def test_two_sets_differ_only_by_lone_queries():
    g = torch.Generator().manual_seed(7)
    q, x = torch.randn(20, 6, generator=g), torch.randn(40, 6, generator=g)
    mine, theirs = torch.arange(20) % 5, torch.arange(40) % 4
    plain = sb.retrieval_metrics(q, x, mine, theirs)
    found = sb.retrieval_metrics(q, x, mine, theirs, at_r="published")
    assert plain["without_relevant"] == found["without_relevant"] == 4
    assert_figures(found["mAP@R"] * 20, plain["mAP@R"] * 16, "metric")


def test_other_words_are_refused():
    x, y = torch.eye(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"retrieval_metrics: at_r must be 'R' or 'published', got"):
        sb.retrieval_metrics(x, x, y, y, at_r="theirs")
