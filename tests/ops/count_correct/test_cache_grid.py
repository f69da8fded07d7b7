"""The counts of a cache model's grid against every logit in float64, a value after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from semobridge_ext._ops.count_correct.cache_grid import CacheGrid

BETAS, ALPHAS = (0.3, 2.0, 9.0), (4.0, 0.1, 1.0, 30.0)  # not in order
CLOSE = 1e-4  # of the largest logit: nearer ones are left to rounding


def problem(
    counts: list[int], rows: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """Keys of as many a class, in no order, queries, text logits and labels."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(len(counts), width, generator=g, dtype=torch.float64)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=g)]

    def near(classes: Tensor) -> Tensor:
        noise = torch.randn(len(classes), width, generator=g, dtype=torch.float64)
        return normalize(means[classes] + 1.2 * noise, dim=1).to(dtype)

    own = torch.randint(len(counts), (rows,), generator=g)
    text = (3 * torch.randn(rows, len(counts), generator=g, dtype=torch.float64)).to(dtype)
    return near(labels), labels, near(own), text, own


def plain(
    keys: Tensor, labels: Tensor, x: Tensor, text: Tensor, own: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:  # [B, G, A] each: rows right for certain, and those too near to say
    classes = text.shape[1]
    votes = one_hot(labels, classes).double()
    cosines = x.double() @ keys.double().T
    sets = torch.ones(1, len(keys), dtype=torch.float64) if weights is None else weights.double()
    right = torch.zeros(len(BETAS), len(sets), len(ALPHAS), dtype=torch.int64)
    unsure = torch.zeros_like(right)
    for b, beta in enumerate(BETAS):
        for g, w in enumerate(sets):
            cache = torch.exp(-beta * (1 - cosines)) @ (votes * w.unsqueeze(1))
            for a, alpha in enumerate(ALPHAS):
                logits = text.double() + alpha * cache
                others = logits.scatter(1, own.unsqueeze(1), -torch.inf)
                lead = logits.gather(1, own.unsqueeze(1)).squeeze(1) - others.amax(dim=1)
                near = lead.abs() < CLOSE * logits.abs().amax(dim=1)
                right[b, g, a], unsure[b, g, a] = ((lead > 0) & ~near).sum(), near.sum()
    return right, unsure


COUNTS = {
    "one class": [5], "two classes": [40, 1], "one shot": [1] * 70, "even": [16] * 20,
    "uneven": [3, 50, 1, 1, 17, 2, 9, 16, 33, 1, 4, 8, 15], "many": [2, 1, 3] * 100,
}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True], ids=["ones", "weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", COUNTS)
def test_counts_are_those_of_the_formula(isa, counts, dtype, weighted):
    made = problem(COUNTS[counts], 150, 24, dtype)
    keys, labels, x, text, own = made
    weights = None
    if weighted:
        weights = torch.rand(3, len(keys), generator=torch.Generator().manual_seed(1)).to(dtype) + 0.1
    right, unsure = plain(*made, weights)
    got = CacheGrid(keys, labels, text.shape[1], weights).count(x, text, own, BETAS, ALPHAS)
    assert got.shape == right.shape
    assert ((got >= right) & (got <= right + unsure)).all(), (got - right, unsure)
    assert unsure.float().mean() < 0.02 * len(x)
    if len(COUNTS[counts]) > 1:
        assert got.min() < got.max()


def test_ties_go_to_the_lower_class_whatever_the_order_of_keys(isa):
    """Class 3 has more keys than class 1 and stands before it; its second one, opposite, adds exactly 0."""
    key = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    other = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(4)), dim=1)
    cache, labels = torch.cat([other, key, -key, other, key]), torch.tensor([0, 3, 3, 2, 1])
    text = torch.tensor([[-9.0, 1.0, -9.0, 1.0]]).expand(2, -1)
    grid = CacheGrid(cache, labels, 4, None)
    found = grid.count(key.expand(2, -1), text, torch.tensor([1, 3]), (50.0,), (1.0, 2.0))
    assert found.tolist() == [[[1, 1]]]  # the row of class 1 is right, that of class 3 is not
    assert grid.count(key, text[:1], torch.tensor([1]), (50.0,), (1.0,)).item() == 1


def test_the_text_alone_decides_where_caches_agree(isa):
    keys = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    grid = CacheGrid(keys.expand(2, -1).contiguous(), torch.tensor([0, 1]), 2, None)
    text = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    found = grid.count(keys.expand(2, -1), text, torch.tensor([0, 0]), (1.0,), (0.5, 100.0))
    assert found.tolist() == [[[1, 1]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_with_nan_is_wrong_and_alone(isa, dtype):
    keys, labels, x, text, own = problem([4] * 9, 40, 16, dtype)
    grid = CacheGrid(keys, labels, 9, None)
    each = [grid.count(x[i : i + 1], text[i : i + 1], own[i : i + 1], BETAS, ALPHAS) for i in range(40)]
    x, text = x.clone(), text.clone()
    x[7, 3], text[11, 2] = torch.nan, torch.nan
    got = grid.count(x, text, own, BETAS, ALPHAS)
    assert torch.equal(got, sum(c for i, c in enumerate(each) if i not in (7, 11)))
    assert any(each[i].any() for i in (7, 11))


def test_threads_and_blocks_change_no_count(monkeypatch):
    keys, labels, x, text, own = problem([3, 9, 1, 20], 101, 16, torch.float32)
    grid = CacheGrid(keys, labels, 4, None)
    want = grid.count(x, text, own, BETAS, ALPHAS)
    monkeypatch.setattr("semobridge_ext._ops.count_correct.cache_grid._CELLS", 7 * len(keys))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(grid.count(x, text, own, BETAS, ALPHAS), want)
    finally:
        torch.set_num_threads(before)
    assert grid.count(x[:0], text[:0], own[:0], BETAS, ALPHAS).sum() == 0
