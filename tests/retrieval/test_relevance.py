"""Relevant items as pairs and lists: what labels say too is equal to the bit, the rest meets a plain sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import retrieval_metrics
from tests.support.assertions import assert_figures, assert_same_scores


def features(n: int, d: int = 12, levels: int = 0, seed: int = 0) -> Tensor:
    """Unit rows; with levels small whole numbers, of which many scores are tied."""
    g = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(-levels, levels + 1, (n, 3), generator=g).float()
    return torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)


def pairs_of(mask: Tensor) -> Tensor:  # [N, G] bool -> [M, 2]
    return mask.nonzero()


def lists_of(mask: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def one_query(scores: np.ndarray, relevant: np.ndarray, ks: tuple[int, ...]) -> list[float]:
    """Expected values over the orders of tied items, tie after tie, as docs/methods.md §7 has them."""
    r = int(relevant.sum())
    ap = ap_r = rp = 0.0
    misses, before, above = {k: 1.0 for k in ks}, 0, 0
    for level in sorted(set(scores.tolist()), reverse=True):
        tied = scores == level
        t, m = int(tied.sum()), int((relevant & tied).sum())
        for p in range(1, t + 1):
            inner = (p - 1) * (m - 1) / (t - 1) if t > 1 else 0.0
            gain = m / t * (above + 1 + inner) / (before + p)
            ap += gain
            ap_r += gain if before + p <= r else 0.0
            rp += m / t if before + p <= r else 0.0
            for k in ks:
                if before + p <= k:
                    left = t - p + 1
                    misses[k] *= max(0.0, (left - m) / left)
        before, above = before + t, above + m
    return [ap / r, ap_r / r, rp / r, *(1 - misses[k] for k in ks)]


def expected(query: Tensor, gallery: Tensor, mask: Tensor, ks: tuple[int, ...], same_set: bool) -> np.ndarray:
    scores, table = (query.double() @ gallery.double().T).numpy(), []
    for i in range(len(query)):
        keep = np.arange(len(gallery)) != (i if same_set else -1)
        relevant = mask[i].numpy()[keep]
        found = one_query(scores[i][keep], relevant, ks) if relevant.any() else [np.nan] * (3 + len(ks))
        table.append(found)
    return np.array(table)


NAMES = ("AP", "AP@R", "R-Precision", "Recall@1", "Recall@3")


def table_of(found: dict[str, Any]) -> Tensor:
    return torch.stack([found["per_query"][name] for name in NAMES], dim=1)


def assert_same_metrics(got: dict[str, Any], want: dict[str, Any]) -> None:
    """To the bit, NaN and counts included."""
    assert got.keys() == want.keys() and got["per_query"].keys() == want["per_query"].keys()
    for name in want:
        if name != "per_query":
            assert got[name] == want[name], name
    for name, values in want["per_query"].items():
        assert_same_scores(got["per_query"][name].double(), values.double(), name)


# -- what labels say too -----------------------------------------------------------------------------------


@pytest.mark.parametrize("same_set", [False, True])
@pytest.mark.parametrize("levels", [0, 2], ids=["distinct", "tied"])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_labels_give_the_same_bits(same_set: bool, levels: int, backend: str, isa: str):
    g = torch.Generator().manual_seed(1)
    gallery = features(150, levels=levels)
    labels = torch.randint(0, 30, (150,), generator=g)
    labels[:3] = torch.tensor([90, 91, 92])  # alone
    query, mine = (gallery, labels) if same_set else (features(70, levels=levels, seed=2), labels[40:110])
    mask = mine[:, None] == labels
    with sb.backend(backend):
        given = {"same_set": same_set, "recall_at": (1, 3), "per_query": True}
        want = retrieval_metrics(query, gallery, mine, labels, **given)
        shuffled = pairs_of(mask)[torch.randperm(int(mask.sum()), generator=g)]
        twice = torch.cat([shuffled, shuffled[:50]])
        for relevant in (
            shuffled,
            twice,
            twice.numpy(),
            lists_of(mask),
            [np.array(r) for r in lists_of(mask)],
        ):
            assert_same_metrics(retrieval_metrics(query, gallery, relevant=relevant, **given), want)
    assert want["without_relevant"] >= (3 if same_set else 0)


def test_many_queries_are_cut_into_blocks():
    """More queries than one call of the kernel takes, in the order in which they came."""
    g = torch.Generator().manual_seed(2)
    query, gallery = features(2500, 8, seed=3), features(90, 8, seed=4)
    mine, labels = (torch.randint(0, 20, (n,), generator=g) for n in (2500, 90))
    want = retrieval_metrics(query, gallery, mine, labels, per_query=True, recall_at=(1, 3))
    mask = mine[:, None] == labels
    got = retrieval_metrics(query, gallery, relevant=pairs_of(mask), per_query=True, recall_at=(1, 3))
    assert_same_metrics(got, want)


# -- what only pairs say -----------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([0, 1, 3]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_relation_meets_the_definition(seed: int, same_set: bool, lists: bool, levels: int):
    """One-sided relations too; under same_set the diagonal says nothing."""
    g = torch.Generator().manual_seed(seed)
    gallery = features(17, levels=levels, seed=seed)
    query = gallery if same_set else features(11, levels=levels, seed=seed + 1)
    mask = torch.rand(len(query), 17, generator=g) < 0.2
    mask[0, 1] = True
    given = {"same_set": same_set, "recall_at": (1, 3), "per_query": True}
    relevant = lists_of(mask) if lists else pairs_of(mask)
    want = expected(query, gallery, mask, (1, 3), same_set)
    for backend in ("auto", "eager"):
        with sb.backend(backend):
            got = retrieval_metrics(query, gallery, relevant=relevant, **given)
        assert_figures(table_of(got), want, "metric", dtype=torch.float32, scale=1.0)
        count = mask.clone().fill_diagonal_(False).sum(1) if same_set else mask.sum(1)
        assert got["per_query"]["relevant"].tolist() == count.tolist()
        assert got["without_relevant"] == int((count == 0).sum()) and got["queries"] == int((count > 0).sum())
        assert_figures(got["mAP"], np.nanmean(want[:, 0]), "metric", dtype=torch.float32, scale=1.0)


def test_captions_of_images():
    """Texts to images and back, by hand: five captions, three images, one image without a caption."""
    images = torch.eye(3)
    captions = torch.tensor([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0.1, 0.9]])
    of = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 0], [4, 0]])  # the fourth and the fifth are misplaced
    there = retrieval_metrics(captions, images, relevant=of, recall_at=(1, 2))
    # ranks 1, 1, 1, 2 and 3 of the one relevant image: the last query scores 0.9, 0.1, 0
    assert there["mAP"] == pytest.approx((1 + 1 + 1 + 1 / 2 + 1 / 3) / 5)
    assert there["Recall@1"] == 0.6 and there["Recall@2"] == 0.8
    back = retrieval_metrics(images, captions, relevant=of.flip(1), recall_at=(1,))
    # image 0 ranks captions 0, 1, 3, then 2 and 4 tied at 0: relevant at 1, 2, 3 and 4 or 5
    first = (1 + 1 + 1 + (4 / 4 + 4 / 5) / 2) / 4
    assert back["mAP"] == pytest.approx((first + 1) / 2)  # image 1 ranks caption 2 first
    assert back["queries"] == 2 and back["without_relevant"] == 1


def test_inputs_of_all_kinds_stay_and_give_one_result():
    query, gallery = features(5), features(9, seed=1)
    relevant = torch.tensor([[4, 8], [0, 0], [0, 3]])
    before = relevant.clone()
    want = retrieval_metrics(query, gallery, relevant=relevant)
    assert want["queries"] == 2 and want["without_relevant"] == 3
    strided = torch.arange(12).reshape(3, 4)
    strided[:, ::2] = relevant
    lists = [[3, 0], [], torch.tensor([], dtype=torch.int64), (), np.array([8])]
    for other in (relevant.numpy(), strided[:, ::2], lists, tuple(lists)):
        assert retrieval_metrics(query, gallery, relevant=other) == want
    assert torch.equal(relevant, before)
    wide = retrieval_metrics(query.double(), gallery.bfloat16(), relevant=relevant, per_query=True)
    assert wide["per_query"]["AP"].dtype is torch.float64


# -- bad input ---------------------------------------------------------------------------------------------

Q, G = features(4), features(6, seed=1)
LABELS = torch.zeros(4).long(), torch.zeros(6).long()
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type, str]] = {
    "query": (
        (), {"relevant": torch.tensor([[0, 0], [4, 5]])}, ValueError,
        r"relevant must name query rows in 0\.\.3, got the pair \(4, 5\), 1 such in all; rows count from 0",
    ),
    "gallery": (
        (), {"relevant": torch.tensor([[0, 6], [1, -1]])}, ValueError,
        r"relevant must name gallery rows in 0\.\.5, got the pair \(0, 6\), 2 such in all",
    ),
    "in a list": ((), {"relevant": [[0], [1], [2], [9]]}, ValueError, r"rows in 0\.\.5, got the pair"),
    "dtype": ((), {"relevant": torch.zeros(2, 2)}, TypeError, "relevant must hold whole numbers, got"),
    "shape": ((), {"relevant": torch.zeros(2, 3).long()}, ValueError, r"relevant must be \[M, 2\], got"),
    "lists": ((), {"relevant": [[0], [1]]}, ValueError, "relevant must hold 4 lists, one per query"),
    "a number": ((), {"relevant": 3}, TypeError, "relevant must be pairs or a list of lists, got int"),
    "numbers": ((), {"relevant": [0, 1, 2, 3]}, TypeError, "lists of row numbers, got int 0 for query 0"),
    "real rows": ((), {"relevant": [[0.5], [], [], []]}, TypeError, "lists of row numbers, got list"),
    "texts": ((), {"relevant": "0123"}, TypeError, "relevant must be pairs or a list of lists, got 0123"),
    "none": ((), {"relevant": [[]] * 4}, ValueError, "hold relevant items, got none for any of 4"),
    "both": (LABELS, {"relevant": [[0]] * 4}, ValueError, "query_labels must be None beside relevant"),
    "one": ((LABELS[0],), {"relevant": [[0]] * 4}, ValueError, "query_labels must be None beside relevant"),
    "neither": ((), {}, TypeError, "query_labels must be given with the other labels, got None"),
    "half": ((LABELS[0],), {}, TypeError, "gallery_labels must be given with the other labels, got None"),
    "same set": (
        (), {"relevant": [[0]] * 4, "same_set": True}, ValueError,
        r"query must be the gallery, \[6, 12\], under same_set, got .*; drop same_set",
    ),
    "recall": ((), {"relevant": [[0]] * 4, "recall_at": (0,)}, ValueError, "recall_at must be ≥ 1, got"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    labels, given, kind, told = BAD[case]
    with pytest.raises(kind, match=f"retrieval_metrics: .*{told}"):
        retrieval_metrics(Q, G, *labels, **given)


def test_nan_is_refused_as_with_labels():
    with pytest.raises(ValueError, match=r"retrieval_metrics: gallery must hold no NaN"):
        retrieval_metrics(Q, G * float("nan"), relevant=[[0]] * 4)
