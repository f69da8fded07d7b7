"""retrieval_metrics: hand-worked tables, scikit-learn, torchmetrics' definition, ties, invariances."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import retrieval_metrics
from tests.support.assertions import assert_figures

NAMES = ("AP", "AP@R", "R-Precision", "Recall@1", "Recall@2", "Recall@5")


def of_scores(scores: list[float], relevant: list[int], recall_at=(1, 2, 5)) -> dict[str, float]:
    """The metrics of one query whose gallery has exactly these scores."""
    m = retrieval_metrics(
        torch.ones(1, 1), torch.tensor(scores)[:, None], torch.ones(1).long(), torch.tensor(relevant),
        recall_at=recall_at, per_query=True,
    )  # fmt: skip
    return {name: float(m["per_query"][name]) for name in m["per_query"] if name != "relevant"}


def strict_order(relevant: np.ndarray, recall_at=(1, 2, 5)) -> np.ndarray:
    """The definitions on one ranking without ties, best first."""
    r = int(relevant.sum())
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    hits = precision * relevant
    recall = [float(relevant[:k].any()) for k in recall_at]
    return np.array([hits.sum() / r, hits[:r].sum() / r, precision[r - 1], *recall])


def brute_force(scores: np.ndarray, relevant: np.ndarray, recall_at=(1, 2, 5)) -> np.ndarray:
    """The mean of `strict_order` over every order of the tied items."""
    order = np.argsort(-scores, kind="stable")
    total, count = np.zeros(3 + len(recall_at)), 0
    for shuffled in permutations(order):
        if (np.diff(scores[list(shuffled)]) <= 0).all():
            total += strict_order(relevant[list(shuffled)], recall_at)
            count += 1
    return total / count


# -- by hand -----------------------------------------------------------------------------------------

# scores, relevant, AP, AP@R, R-precision, Recall@1, Recall@2; worked on paper.
TABLE = [
    # no ties: relevant at ranks 1 and 3, AP = (1 + 2/3)/2, only rank 1 is within R = 2
    ([4, 3, 2, 1], [1, 0, 1, 0], 5 / 6, 1 / 2, 1 / 2, 1, 1),
    # all negative scores: the order is what counts; ranks 2 and 4, AP = (1/2 + 2/4)/2
    ([-1, -2, -3, -4], [0, 1, 0, 1], 1 / 2, 1 / 4, 1 / 2, 0, 1),
    # across zero: ranks 1 and 2
    ([0.5, 0.0, -0.5], [1, 1, 0], 1, 1, 1, 1, 1),
    # one relevant tied with one other, on top: rank 1 or 2, AP = (1 + 1/2)/2
    ([2, 2, 1], [1, 0, 0], 3 / 4, 1 / 2, 1 / 2, 1 / 2, 1),
    # one relevant in a tie of three under one other: ranks 2, 3, 4, AP = (1/2 + 1/3 + 1/4)/3
    ([9, 5, 5, 5], [0, 0, 1, 0], 13 / 36, 0, 0, 0, 1 / 3),
    # two relevant in a tie of three: ranks {1,2}, {1,3}, {2,3}: AP = (1 + 5/6 + 7/12)/3, AP@R counts
    # {1,2} 1, {1,3} 1/2, {2,3} 1/4; R-precision 1, 1/2, 1/2
    ([5, 5, 5], [1, 1, 0], 29 / 36, 7 / 12, 2 / 3, 2 / 3, 1),
    # everything tied and relevant: nothing is left to chance
    ([-7, -7], [1, 1], 1, 1, 1, 1, 1),
]


@pytest.mark.parametrize(("scores", "relevant", "ap", "ap_r", "rp", "r1", "r2"), TABLE)
def test_by_hand(scores, relevant, ap, ap_r, rp, r1, r2, isa: str):
    got = of_scores([float(s) for s in scores], relevant)
    want = {"AP": ap, "AP@R": ap_r, "R-Precision": rp, "Recall@1": r1, "Recall@2": r2}
    assert_figures([got[name] for name in want], list(want.values()), "metric", scale=1.0)


@pytest.mark.parametrize("draw", range(25))
def test_ties_are_the_mean_over_all_orders(draw: int):
    rng = np.random.default_rng(draw)
    scores = rng.integers(-2, 2, size=7).astype(np.float64)
    relevant = rng.integers(0, 2, size=7)
    relevant[rng.integers(7)] = 1
    got = of_scores(scores.tolist(), relevant.tolist())
    want = brute_force(scores, relevant)
    assert_figures([got[name] for name in NAMES], want, "metric", scale=1.0)


# -- other programs ----------------------------------------------------------------------------------


def features(n: int, d: int, classes: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, classes, (n,))
    x = torch.randn(classes, d)[labels] + 1.5 * torch.randn(n, d)
    return torch.nn.functional.normalize(x, dim=1).to(dtype), labels


GAP = 1e-6  # a float32 score of these features is off by at most about 2e-7


def distinct(gallery: Tensor, labels: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Leaves out what scores within GAP of another item, so that float32 ranks as float64 does.

    Without a query the gallery is its own.
    """
    while True:
        scores = (gallery if query is None else query).double() @ gallery.double().T
        values, order = scores.sort(1)
        near = order[:, 1:][values.diff(dim=1) < GAP].unique()
        if not len(near):
            assert len(gallery) > 200, "too little is left"
            return gallery, labels
        keep = torch.ones(len(gallery), dtype=torch.bool)
        keep[near] = False
        gallery, labels = gallery[keep], labels[keep]


def test_average_precision_is_scikit_learns(isa: str):
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = distinct(*features(300, 24, 12))
    got = retrieval_metrics(x, x, y, y, same_set=True, per_query=True)["per_query"]["AP"]
    scores = x.double() @ x.double().T
    assert bool((scores < 0).any())
    for i in range(0, len(x), 7):
        keep = torch.arange(len(x)) != i
        want = metrics.average_precision_score((y == y[i])[keep].numpy(), scores[i][keep].numpy())
        assert_figures(got[i], want, "metric", scale=1.0)


def test_metrics_are_those_of_torchmetrics_1_4(isa: str):
    torchmetrics = pytest.importorskip("torchmetrics", minversion="1.4")
    if torchmetrics.__version__.split(".")[:2] != ["1", "4"]:
        pytest.skip("torchmetrics 1.8 and later take scores <= 0 for irrelevant: no oracle here")
    functional = torchmetrics.functional.retrieval
    q, yq = features(60, 24, 8)
    g, yg = distinct(*features(400, 24, 8), q)
    got = retrieval_metrics(q, g, yq, yg, per_query=True)["per_query"]
    scores = q.double() @ g.double().T
    assert bool((scores < 0).any())
    for i in range(60):
        target = yg == yq[i]
        want = {
            "AP": functional.retrieval_average_precision(scores[i], target),
            "R-Precision": functional.retrieval_r_precision(scores[i], target),
            "Recall@5": functional.retrieval_hit_rate(scores[i], target, top_k=5),
        }
        for name, value in want.items():
            assert_figures(got[name][i], value, "metric", dtype=torch.float32, scale=1.0, context=name)


# -- against the sorted ranking, on scores that are exact in every dtype ------------------------------


def integer_problem(n: int, g: int, d: int, classes: int, high: int = 3):
    q, x = (torch.randint(-high, high + 1, (m, d)).float() for m in (n, g))
    return q, x, torch.randint(0, classes, (n,)), torch.randint(0, classes, (g,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 1), (7, 90, 5, 3), (300, 2500, 6, 40), (1100, 60, 4, 2)], ids=str
)
def test_matches_the_sorted_ranking(shape, dtype: torch.dtype, isa: str):
    q, x, yq, yg = integer_problem(*shape)
    ks = (1, 2, 5)
    want = sb.reference.retrieval_metrics(q.double(), x.double(), yq, yg, recall_at=ks)
    got = retrieval_metrics(q.to(dtype), x.to(dtype), yq, yg, recall_at=ks, per_query=True)
    table = torch.stack([got["per_query"][name] for name in NAMES], 1)
    assert_figures(table, want, "metric", scale=1.0)
    valid = ~want[:, 0].isnan()
    assert_figures([got["mAP"], got["mAP@R"]], want[valid, :2].mean(0), "metric", scale=1.0)


def test_the_reference_is_the_definition():
    """reference/ itself against the strict definition, on a ranking without ties."""
    x, y = features(80, 16, 5, torch.float64)
    got = sb.reference.retrieval_metrics(x, x, y, y, same_set=True, recall_at=(1, 2, 5))
    for i in range(80):
        keep = np.arange(80) != i
        order = np.argsort(-(x @ x[i]).numpy()[keep])
        want = strict_order((y == y[i]).numpy()[keep][order])
        assert_figures(got[i], want, "metric", scale=1.0)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_any_shape(n: int, g: int, d: int, classes: int, seed: int):
    torch.manual_seed(seed)
    q, x, yq, yg = integer_problem(n, g, d, classes, high=2)
    yg[0] = yq[0]
    want = sb.reference.retrieval_metrics(q, x, yq, yg, recall_at=(1, 2, 5))
    got = retrieval_metrics(q, x, yq, yg, recall_at=(1, 2, 5), per_query=True)
    table = torch.stack([got["per_query"][name] for name in NAMES], 1)
    assert_figures(table, want, "metric", scale=1.0)


@pytest.mark.parametrize("isa_threads", [1, 2, 5])
def test_threads_and_row_order_do_not_matter(isa_threads: int, isa: str):
    x, y = features(1500, 20, 30)
    torch.set_num_threads(1)
    want = retrieval_metrics(x, x, y, y, same_set=True, per_query=True)["per_query"]
    torch.set_num_threads(isa_threads)
    order = torch.randperm(1500)
    got = retrieval_metrics(x[order], x[order], y[order], y[order], same_set=True, per_query=True)
    for name, values in want.items():
        assert torch.equal(got["per_query"][name], values[order]), name


def test_same_set_leaves_the_query_out(isa: str):
    x, y = features(200, 16, 10)
    both = torch.cat([x, x]), torch.cat([y, y])  # every item has a perfect twin
    with_itself = retrieval_metrics(x, x, y, y, recall_at=(1,))
    assert with_itself["Recall@1"] == 1.0
    without = retrieval_metrics(x, x, y, y, same_set=True, recall_at=(1,))
    assert without["Recall@1"] < 1.0
    twins = retrieval_metrics(
        *[t for t in (both[0], both[0], both[1], both[1])], same_set=True, recall_at=(1,)
    )
    assert twins["Recall@1"] == 1.0


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("at_r", ["R", "published"])
def test_some_rows_of_a_set_ask(backend: str, at_r: str):
    """Their values are those of the whole set's table, in the order that is asked for."""
    x = torch.randint(
        -2, 3, (60, 4), generator=torch.Generator().manual_seed(0)
    ).float()  # ties; exact products
    y, some = torch.arange(60) % 7, [41, 3, 3, 58]
    with sb.backend(backend):
        whole = retrieval_metrics(x, x, y, y, same_set=True, per_query=True, at_r=at_r)
        got = retrieval_metrics(x, x, y, y, same_set=True, per_query=True, at_r=at_r, queries=some)
    for name, values in got["per_query"].items():
        assert torch.equal(values, whole["per_query"][name][some]), name
    assert got["queries"] == 4 and got["mAP"] == pytest.approx(float(whole["per_query"]["AP"][some].mean()))


def test_queries_without_relevant_items_are_reported(isa: str):
    q, g = torch.eye(3), torch.eye(3)
    m = retrieval_metrics(q, g, torch.tensor([0, 5, 2]), torch.tensor([0, 1, 2]), per_query=True)
    assert (m["queries"], m["without_relevant"]) == (2, 1)
    assert m["mAP"] == 1.0 and m["per_query"]["AP"][1].isnan()
    assert m["per_query"]["relevant"].tolist() == [1, 0, 1]
    y = torch.tensor([0, 0, 1])
    m = retrieval_metrics(q, q, y, y, same_set=True)
    assert (m["queries"], m["without_relevant"]) == (2, 1)
    with pytest.raises(ValueError, match="gallery_labels must hold relevant items, got no common label"):
        retrieval_metrics(q, g, torch.tensor([7, 8, 9]), torch.tensor([0, 1, 2]))


def test_infinity_ranks_where_stated(isa: str):
    inf = float("inf")
    scores = [-inf, 3.0, -inf, inf, 1.0, 2.0]
    # inf, 3, 2, 1, then the two -inf tied at the end
    assert of_scores(scores, [0, 0, 0, 1, 0, 0])["AP"] == 1.0
    assert of_scores(scores, [0, 1, 0, 0, 0, 0])["AP"] == pytest.approx(1 / 2)
    assert of_scores(scores, [1, 0, 0, 0, 0, 0])["AP"] == pytest.approx((1 / 5 + 1 / 6) / 2)
    assert of_scores(scores, [1, 0, 1, 0, 0, 0])["AP"] == pytest.approx((1 / 5 + 2 / 6) / 2)
    assert of_scores(scores, [1, 0, 0, 1, 0, 0])["AP"] == pytest.approx((1 + (2 / 5 + 2 / 6) / 2) / 2)


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_rows_without_a_rank_are_named(side: str):
    rows = {"query": torch.ones(3, 2), "gallery": torch.ones(40, 2)}
    labels = torch.zeros(3).long(), torch.arange(40) % 4
    rows[side][1, 0] = float("nan")
    with pytest.raises(ValueError, match=rf"{side} must hold no NaN, got NaN in 1 of \d+ rows \(1\)"):
        retrieval_metrics(*rows.values(), *labels)
    rows[side][1] = torch.tensor([float("inf"), -float("inf")])  # ∞ − ∞
    with pytest.raises(ValueError, match=rf"{side} must give scores that are numbers, got infinity in row 1"):
        retrieval_metrics(*rows.values(), *labels)
    rows[side][1] = float("inf")
    assert retrieval_metrics(*rows.values(), *labels)["queries"] == 3


def test_rows_of_finite_values_with_an_infinite_sum_pass():
    rows, labels = torch.full((6, 40), 3e38), torch.arange(6) % 2
    rows[1::2] *= -1
    for gallery in (rows, rows.clamp(-6e4, 6e4).half()):
        m = retrieval_metrics(torch.ones(6, 1) * torch.eye(1, 40), gallery, torch.zeros(6).long(), labels)
        assert (m["mAP"], m["queries"]) == (1.0, 6)
    rows[4, 7] = float("nan")
    with pytest.raises(ValueError, match=r"gallery must hold no NaN, got NaN in 1 of 6 rows \(4\)"):
        retrieval_metrics(torch.ones(6, 40), rows, labels, labels)


@pytest.mark.parametrize("spread", [1e-45, 1e-38, 1.0, 1e30, 3e38])
def test_buckets_of_any_width(spread: float, isa: str):
    """Scores so close or so far apart that the width of a bucket is subnormal or infinite."""
    steps = torch.tensor([-1.0, -0.999, 0.0, 0.3, 0.9991, 1.0, 1.0, -1.0])
    scores = (steps.double() * spread).float()
    relevant = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0])
    got = of_scores(scores.tolist(), relevant.tolist())
    want = sb.reference.retrieval_metrics(
        torch.ones(1, 1).double(),
        scores[:, None].double(),
        torch.ones(1).long(),
        relevant,
        recall_at=(1, 2, 5),
    )
    assert_figures([got[name] for name in NAMES], want[0], "metric", scale=1.0)


def test_many_relevant_in_one_bucket(isa: str):
    """Half the gallery relevant, one far outlier: every other score falls into the first bucket."""
    g = torch.cat([torch.randn(3000) * 1e-4, torch.tensor([1e4])])
    relevant = (torch.arange(3001) % 2 == 0).long()
    got = of_scores(g.tolist(), relevant.tolist())
    want = sb.reference.retrieval_metrics(
        torch.ones(1, 1), g[:, None], torch.ones(1).long(), relevant, recall_at=(1, 2, 5)
    )
    assert_figures([got[name] for name in NAMES], want[0], "metric", scale=1.0)


def test_recall_beyond_the_gallery_and_options():
    x, y = features(30, 8, 3)
    m = retrieval_metrics(x, x, y, y, recall_at=(100,))
    assert m["Recall@100"] == 1.0 and "per_query" not in m and "Recall@1" not in m
    strided = torch.stack([x, x], -1).flatten(1)[:, ::2]
    assert retrieval_metrics(strided, strided, y, y)["mAP"] == retrieval_metrics(x, x, y, y)["mAP"]
    with sb.backend("eager"):
        assert retrieval_metrics(x, x, y, y)["mAP"] == pytest.approx(retrieval_metrics(x, x, y, y)["mAP"])


X, Y = torch.ones(4, 3), torch.zeros(4).long()
BAD = [
    ({"query": [1.0]}, TypeError, "query must be a torch.Tensor"),
    ({"gallery": X.int()}, TypeError, "gallery must be float32"),
    ({"query": torch.ones(3)}, ValueError, "query must be 2-D and not empty"),
    ({"gallery": torch.ones(0, 3)}, ValueError, "gallery must be 2-D and not empty"),
    ({"query": torch.ones(4, 2)}, ValueError, "query must have width 3"),
    ({"query_labels": Y.float()}, TypeError, "query_labels must hold whole numbers or names"),
    ({"gallery_labels": Y[:2]}, ValueError, r"gallery_labels must be \[4\]"),
    ({"same_set": True, "query": X[:2], "query_labels": Y[:2]}, ValueError, "query must be the gallery"),
    ({"same_set": True, "query_labels": Y + 1}, ValueError, "query must be the gallery"),
    ({"queries": [0]}, ValueError, "queries must choose rows of one set"),
    ({"same_set": True, "queries": [0, 4]}, ValueError, r"queries must lie in 0\.\.3, got 4 at position 1"),
    ({"same_set": True, "queries": [0.5]}, TypeError, r"queries must be \[M\] whole numbers"),
    ({"same_set": True, "queries": []}, TypeError, r"queries must be \[M\] whole numbers"),
    ({"recall_at": (0,)}, ValueError, "recall_at must be ≥ 1"),
    ({"recall_at": (1.5,)}, TypeError, "recall_at must hold ints"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[b[2] for b in BAD])
def test_bad_inputs(change: dict, error: type[Exception], text: str):
    arguments = {"query": X, "gallery": X, "query_labels": Y, "gallery_labels": Y, **change}
    with pytest.raises(error, match=text) as caught:
        retrieval_metrics(**arguments)
    assert str(caught.value).startswith("retrieval_metrics: ") and ";" in str(caught.value)
