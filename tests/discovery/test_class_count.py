"""estimate_num_classes: k-means against loops, scores by hand, the search, and counts that are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.discovery import class_count
from semobridge_ext.discovery.semi_supervised import Points, Seeds, clustered

pytest.importorskip("scipy", reason="needed: pip install 'semobridge-ext[discovery]'")


def blobs(classes: int, each: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[classes · each, 24] float64 rows around random directions, of many lengths, and their classes."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(classes, 24, generator=g, dtype=torch.float64), dim=1)
    true = torch.arange(classes * each) % classes
    rows = centres[true] + noise * torch.randn(len(true), 24, generator=g, dtype=torch.float64)
    return rows * (0.5 + torch.rand(len(true), 1, generator=g, dtype=torch.float64)), true


def half_labelled(true: torch.Tensor, old: int) -> list[int | None]:
    """Every second image of the first classes is labelled."""
    half = len(true) // 2
    return [c if c < old and i < half else None for i, c in enumerate(true.tolist())]


def seeded(x: torch.Tensor, known: torch.Tensor, most: int, seed: int = 0) -> tuple[Points, Seeds]:
    points = Points(x)
    return points, Seeds(points, known, most, torch.Generator().manual_seed(seed))


# -- k-means -----------------------------------------------------------------------------------------------


def lloyd(x: np.ndarray, known: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Row by row, until nothing moves."""
    rows = [row / np.sqrt((row**2).sum()) for row in x]
    means, codes = [m.copy() for m in means], None
    while True:
        found = [
            int(k) if k >= 0 else int(np.argmin([((row - m) ** 2).sum() for m in means]))
            for row, k in zip(rows, known, strict=True)
        ]
        if found == codes:
            return np.array(codes)
        codes = found
        for c in range(len(means)):
            mine = [row for row, code in zip(rows, codes, strict=True) if code == c]
            means[c] = sum(mine) / len(mine) if mine else means[c]


@pytest.mark.parametrize("old", [0, 3])
def test_k_means_is_that_of_loops(old: int):
    x, true = blobs(8, 20, 0.25)
    known = torch.where((true < old) & (torch.arange(160) < 80), true, -1)
    points, seeds = seeded(x, known, 10)
    found = clustered(points, seeds, 10, 100)
    means = seeds.means(10).numpy()
    for c in range(old):  # the first clusters begin as the means of the known classes
        mine = torch.nn.functional.normalize(x[known == c], dim=1).mean(dim=0)
        np.testing.assert_array_equal(np.round(means[c], 12), np.round(mine.numpy(), 12))
    want = lloyd(x.numpy(), known.numpy(), means)
    assert found.tolist() == want.tolist() and len(set(want.tolist())) == 10


def test_a_known_row_stays_though_another_mean_is_nearer():
    x, true = blobs(4, 10, 0.05)
    known = torch.where((true < 2) & (torch.arange(40) < 20), true, -1)
    known[0] = 1  # an image of class 0, labelled 1
    points, seeds = seeded(x, known, 4)
    found = clustered(points, seeds, 4, 50)
    assert torch.equal(found[known >= 0], known[known >= 0])
    assert found[20::4].tolist() == [0] * 5  # the unlabelled ones of class 0


def test_seeds_are_distinct_nested_and_of_free_rows():
    x, true = blobs(6, 12, 0.3)
    known = torch.where(true < 2, true, -1)
    seeds = seeded(x, known, 30)[1]
    assert torch.equal(seeds.means(9), seeds.means(30)[:9])
    rows = torch.nn.functional.normalize(x, dim=1)
    drawn = [int((rows == m).all(dim=1).nonzero()) for m in seeds.means(30)[2:]]
    assert len(set(drawn)) == 28 and all(known[i] == -1 for i in drawn)


def test_fewer_distinct_rows_than_clusters_leave_some_empty():
    x = torch.eye(3).repeat(5, 1)
    points, seeds = seeded(x, torch.full((15,), -1), 6)
    found = clustered(points, seeds, 6, 10)
    assert len(set(found.tolist())) == 3
    assert all(len(set(found[i::3].tolist())) == 1 for i in range(3))


# -- what judges -------------------------------------------------------------------------------------------


def judged(monkeypatch: pytest.MonkeyPatch, place: dict[int, int]) -> float:
    """The accuracy of four classes, of which two are anchors, with the others' images put by hand."""
    x, true = blobs(4, 10, 0.1)
    y = half_labelled(true, 4)

    def by_hand(points, seeds, clusters, max_iter):
        held = sorted(set(true.tolist()) - set(true[seeds.known >= 0].tolist()))
        put = torch.tensor([place[held.index(c)] if c in held else 0 for c in true.tolist()])
        return torch.where(seeds.known >= 0, seeds.known, put).clamp(max=clusters - 1)

    monkeypatch.setattr(class_count, "clustered", by_hand)
    return sb.estimate_num_classes(x, y, max_classes=6, anchors=0.5).accuracy[-1]


@pytest.mark.parametrize(
    ("place", "want"),
    [
        ({0: 2, 1: 3}, 1.0),  # a cluster each
        ({0: 4, 1: 2}, 1.0),  # whichever
        ({0: 2, 1: 2}, 0.5),  # joined
        ({0: 0, 1: 1}, 0.0),  # in the anchors' clusters, which are theirs
        ({0: 0, 1: 3}, 0.5),
    ],
)
def test_held_out_classes_are_judged(monkeypatch: pytest.MonkeyPatch, place: dict[int, int], want: float):
    assert judged(monkeypatch, place) == want


def test_divided_classes_lose_what_is_not_in_their_largest_cluster(monkeypatch: pytest.MonkeyPatch):
    x, true = blobs(3, 20, 0.1)
    thirds = torch.where(torch.arange(60) % 15 < 6, 3, 0)  # of each class' ten labelled, four go elsewhere

    def by_hand(points, seeds, clusters, max_iter):
        return (true + thirds).clamp(max=clusters - 1)

    monkeypatch.setattr(class_count, "clustered", by_hand)
    found = sb.estimate_num_classes(x, half_labelled(true, 3), max_classes=6)
    kept = [int((thirds[:30][true[:30] == c] == 0).sum()) for c in range(3)]
    assert found.accuracy[-1] == sum(max(k, 10 - k) for k in kept) / 30 < 1


# -- the search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [5, 6, 41, 97, 250, 499, 500])
def test_the_search_finds_a_single_peak(peak: int):
    found = class_count._searched(lambda k: 1 / (1 + abs(k - peak)), 5, 500, 8, False)
    assert found.num_classes == peak and len(found.candidates) < 45
    assert found.candidates == sorted(set(found.candidates)) and found.candidates[0] == 5
    assert found.accuracy[found.candidates.index(peak)] == 1


def test_of_equal_counts_the_smallest_is_taken():
    found = class_count._searched(lambda k: float(20 <= k <= 30), 2, 64, 4, False)
    assert found.num_classes == min(k for k, a in zip(*found[1:], strict=True) if a == 1)
    assert class_count._searched(lambda k: 0.0, 7, 7, 8, False) == (7, [7], [0.0])


# -- the estimate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_known_count_is_found(anchors: float):
    x, true = blobs(24, 16, 0.12)
    found = sb.estimate_num_classes(x, half_labelled(true, 12), anchors=anchors, max_classes=90, draws=3)
    assert abs(found.num_classes - 24) <= 3
    at = dict(zip(found.candidates, found.accuracy, strict=True))
    assert at[found.num_classes] > 0.9 > at[12] and at[90] < 0.6


def test_it_depends_on_the_seed_alone():
    x, true = blobs(12, 10, 0.2)
    y = half_labelled(true, 6)
    small = {"max_classes": 30, "draws": 2, "seed": 3}
    first = sb.estimate_num_classes(x, y, **small)
    torch.rand(7)
    given = [-1 if label is None else label for label in y]
    assert sb.estimate_num_classes(x.numpy() * 4, np.array(given), **small) == first
    named = [None if label is None else f"class {label:02d}" for label in y]
    assert sb.estimate_num_classes(x, named, **small) == first
    assert sb.estimate_num_classes(x, y, **{**small, "seed": 4}) != first


def test_inputs_stay_as_they_are():
    x, true = blobs(4, 6, 0.2)
    before = x.clone()
    sb.estimate_num_classes(x, half_labelled(true, 3), draws=1)
    assert torch.equal(x, before)


# -- errors ------------------------------------------------------------------------------------------------

X = torch.eye(6)
Y = ["a", "a", "b", "b", None, None]
BAD = {
    "one class": ((X, ["a", *[None] * 5]), {}, ValueError, "y must label two classes, got 'a' alone"),
    "no label": ((X, [None] * 6), {}, ValueError, "y must hold a label"),
    "lengths": ((X, Y[:5]), {}, ValueError, "y must have 6 labels"),
    "NaN": ((X * float("nan"), Y), {}, ValueError, "X must be finite"),
    "dtype": ((X.long(), Y), {}, TypeError, "X must be float32"),
    "few": ((X, [*"abcabc"]), {"max_classes": 2}, ValueError, "max_classes must be from 3, the labelled"),
    "many": ((X, Y), {"max_classes": 7}, ValueError, "max_classes must be .* to 6, the images, got int 7"),
    "half a class": ((X, Y), {"max_classes": 2.5}, TypeError, "max_classes must be a whole number"),
    "anchors": ((X, Y), {"anchors": 1.5}, ValueError, "anchors must be ≥ 0 and at most 1"),
    "draws": ((X, Y), {"draws": 0}, ValueError, "draws must be ≥ 1"),
    "points": ((X, Y), {"points": 1}, ValueError, "points must be ≥ 2"),
    "max_iter": ((X, Y), {"max_iter": 0}, ValueError, "max_iter must be ≥ 1"),
    "seed": ((X, Y), {"seed": -1}, ValueError, "seed must be ≥ 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str):
    given, options, kind, told = BAD[case]
    with pytest.raises(kind, match=rf"^estimate_num_classes: {told}"):
        sb.estimate_num_classes(*given, **options)


def test_scipy_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"^estimate_num_classes: SciPy .*'semobridge-ext\[discovery\]'"):
        sb.estimate_num_classes(X, Y)
