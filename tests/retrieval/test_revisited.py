"""retrieval: the ROxford and RParis protocols, by hand and against a sorted ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from tests.support.assertions import assert_figures


def ranked(scores: list[float], easy: list[int], hard: list[int], junk: list[int]) -> dict:
    gallery = torch.tensor(scores)[:, None]
    return sb.revisited_metrics(torch.ones(1, 1), gallery, [easy], [hard], [junk], per_query=True)


def sorted_ranking(scores: np.ndarray, positive: np.ndarray, junk: np.ndarray, ks=(1, 5, 10)) -> list[float]:
    """The protocol as its paper states it, on a sorted list with the junk struck out."""
    ranking = [i for i in np.argsort(-scores, kind="stable") if i not in set(junk.tolist())]
    ranks = [r for r, i in enumerate(ranking) if i in set(positive.tolist())]
    if not ranks:
        return [float("nan")] * (1 + len(ks))
    ap = 0.0
    for j, r in enumerate(ranks):
        left = 1.0 if r == 0 else j / r
        ap += (left + (j + 1) / (r + 1)) / 2 / len(ranks)
    precision = []
    for k in ks:
        cut = min(k, ranks[-1] + 1)
        precision.append(sum(r < cut for r in ranks) / cut)
    return [ap, *precision]


def test_by_hand(isa: str):
    # ranking: 0 1 2 3 4; easy 1, hard 3, junk 0
    m = ranked([5.0, 4.0, 3.0, 2.0, 1.0], [1], [3], [0])
    assert m["easy"]["mAP"] == 1.0  # 0 and 3 removed: the easy one is first
    # medium: 0 removed; ranks 0 and 2: ((1 + 1)/2 + (1/2 + 2/3)/2)/2
    assert m["medium"]["mAP"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    # hard: 0 and 1 removed; rank 1: (0/1 + 1/2)/2
    assert m["hard"]["mAP"] == pytest.approx(1 / 4)
    assert m["medium"]["mP@1"] == 1.0 and m["medium"]["mP@5"] == pytest.approx(2 / 3)
    assert m["hard"]["mP@1"] == 0.0 and m["hard"]["mP@10"] == 0.5


def test_ties_by_hand(isa: str):
    # one positive tied with one other, on top: rank 1/2; AP = (0/(1/2) + 1/(3/2))/2
    assert ranked([2.0, 2.0, 1.0], [0], [], [])["easy"]["mAP"] == pytest.approx(1 / 3)
    # tied with junk only: the junk is not there
    assert ranked([2.0, 2.0, 1.0], [0], [], [1])["easy"]["mAP"] == 1.0
    # two positives tied with one other: ranks 1/3 and 1 + 2/3
    want = ((0 + 1 / (4 / 3)) / 2 + (1 / (5 / 3) + 2 / (8 / 3)) / 2) / 2
    assert ranked([2.0, 2.0, 2.0], [0, 2], [], [])["easy"]["mAP"] == pytest.approx(want)


# Scores in float64, so that rounding cannot swap two neighbours of the oracle's ranking.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_matches_the_sorted_ranking(dtype: torch.dtype, isa: str):
    rng = np.random.default_rng(3)
    n, g, d = 23, 1500, 40
    query, gallery = torch.randn(n, d, dtype=torch.float64), torch.randn(g, d).to(dtype)
    lists: dict[str, list] = {"easy": [], "hard": [], "junk": []}
    for i in range(n):
        picked = rng.permutation(g)[:60]
        sizes = [0 if i % 7 == 0 else rng.integers(1, 20), rng.integers(0, 20), rng.integers(0, 20)]
        for name, part in zip(lists, np.split(picked, np.cumsum(sizes)), strict=False):
            lists[name].append(part)
    got = sb.revisited_metrics(query, gallery, *lists.values(), per_query=True)
    scores = (query.double() @ gallery.double().T).numpy()
    rules = {
        "easy": (("easy",), ("hard", "junk")),
        "medium": (("easy", "hard"), ("junk",)),
        "hard": (("hard",), ("easy", "junk")),
    }
    for protocol, (positive, junk) in rules.items():
        want = np.array(
            [
                sorted_ranking(
                    scores[i],
                    np.concatenate([lists[name][i] for name in positive]),
                    np.concatenate([lists[name][i] for name in junk]),
                )
                for i in range(n)
            ]
        )
        table = torch.stack(list(got[protocol]["per_query"].values()), 1).numpy()
        assert_figures(table, want, "metric", scale=1.0)
        valid = ~np.isnan(want[:, 0])
        assert got[protocol]["queries"] == valid.sum()
        assert got[protocol]["without_positive"] == n - valid.sum()
        means = [got[protocol]["mAP"], got[protocol]["mP@5"]]
        assert_figures(means, want[valid][:, [0, 2]].mean(0), "metric", scale=1.0)


def expected_ranks(scores: np.ndarray, positive: list[int], junk: list[int]) -> list[float]:
    """Ranks from 0 by the rule for ties, an image at a time."""
    others = [i for i in range(len(scores)) if i not in {*positive, *junk}]
    ranks = []
    for value in sorted({scores[i] for i in positive}, reverse=True):
        m = sum(scores[i] == value for i in positive)
        above = sum(scores[i] > value for i in others) + sum(scores[i] > value for i in positive)
        tied = sum(scores[i] == value for i in others)
        ranks += [above + j - 1 + tied * j / (m + 1) for j in range(1, m + 1)]
    return ranks


@pytest.mark.parametrize("high", [0, 1, 4])
def test_ties_of_many_queries(high: int, isa: str):
    """Whole numbers, which tie within and across the lists; queries with empty lists and without any."""
    rng = np.random.default_rng(high)
    n, g = 12, 60
    query = torch.from_numpy(rng.integers(-high, high + 1, (n, 3))).float()
    gallery = torch.from_numpy(rng.integers(-high, high + 1, (g, 3))).float()
    lists: dict[str, list] = {"easy": [], "hard": [], "junk": []}
    for i in range(n):
        sizes = rng.integers(0, 12, 3) * [i % 4 != 1, i % 4 != 2, i % 4 != 3] * (i != 5)
        for name, part in zip(lists, np.split(rng.permutation(g), np.cumsum(sizes)), strict=False):
            lists[name].append(part.tolist())
    got = sb.revisited_metrics(query, gallery, *lists.values(), precision_at=(1, 7), per_query=True)
    scores = (query @ gallery.T).numpy()
    protocols = {
        "easy": (["easy"], ["hard", "junk"]),
        "medium": (["easy", "hard"], ["junk"]),
        "hard": (["hard"], ["easy", "junk"]),
    }
    for protocol, (kept, removed) in protocols.items():
        want = []
        for i in range(n):
            positive, junk = ([row for name in names for row in lists[name][i]] for names in (kept, removed))
            ranks = expected_ranks(scores[i], positive, junk)
            if not ranks:
                want.append([float("nan")] * 3)
                continue
            each = [(j / r if r > 0 else 1.0) + (j + 1) / (r + 1) for j, r in enumerate(ranks)]
            cuts = [min(k, ranks[-1] + 1) for k in (1, 7)]
            want.append([sum(each) / 2 / len(ranks), *(sum(r + 1 <= k for r in ranks) / k for k in cuts)])
        table = torch.stack(list(got[protocol]["per_query"].values()), 1).numpy()
        assert np.isnan(want).any(), "every query has a positive"
        assert_figures(table, np.array(want), "metric", scale=1.0)


def test_nothing_listed_at_all():
    m = sb.revisited_metrics(torch.ones(2, 3), torch.ones(4, 3), [[], []], [[], []], [[], [1]])
    for protocol in m.values():
        assert protocol["queries"] == 0 and protocol["without_positive"] == 2 and np.isnan(protocol["mAP"])
    m = sb.revisited_metrics(torch.ones(2, 3), torch.ones(4, 3), [[], []], [[], []], [[], []])
    assert m["hard"]["without_positive"] == 2


def test_bad_inputs():
    q, g = torch.ones(1, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"hard must lie in 0\.\.3, got 4 for query 0"):
        sb.revisited_metrics(q, g, [[0]], [[4]], [[]])
    with pytest.raises(ValueError, match="disjoint, got gallery row 2 twice for query 0"):
        sb.revisited_metrics(q, g, [[2]], [[0]], [[2]])
    with pytest.raises(ValueError, match="junk must hold 1 lists, got 2"):
        sb.revisited_metrics(q, g, [[2]], [[0]], [[], []])
    with sb.backend("eager"), pytest.raises(NotImplementedError, match="backend 'native'"):
        sb.revisited_metrics(q, g, [[2]], [[0]], [[1]])
