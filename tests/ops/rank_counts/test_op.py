"""_ops/rank_counts: counts against the whole ranking, on scores that are exact in every dtype.

What follows from the counts is tested in tests/retrieval/test_metrics.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semobridge_ext._ops.rank_counts.cpu import query_block
from semobridge_ext._ops.rank_counts.op import MAX_ENTRIES, Marked, RankCounts, blocks, rank_counts
from semobridge_ext._ops.rank_counts.reference import rank_counts as oracle
from tests.support.samples import DTYPES

# queries, gallery rows, width, largest entry: one of each, odd sizes, several tiles, hardly any tie.
SHAPES = [(1, 1, 1, 1), (7, 90, 5, 3), (60, 2500, 6, 2), (300, 333, 17, 9)]


def problem(n: int, g: int, d: int, high: int, exclude: bool = False) -> tuple[Tensor, Tensor, Marked]:
    """Small whole numbers, whose products are exact and tie; each query has rows of its own marked."""
    queries, gallery = (torch.randint(-high, high + 1, (m, d)).float() for m in (n, g))
    rows, begin = torch.randint(0, g, (3 * g,)), torch.randint(0, 2 * g, (n,))
    end = begin + torch.randint(1, g + 1, (n,))
    left = rows[(begin + end) // 2] if exclude else None
    return queries, gallery, distinct(rows, begin, end, left)


def distinct(rows: Tensor, begin: Tensor, end: Tensor, exclude: Tensor | None) -> Marked:
    """Each query's marked rows once."""
    runs = [rows[b:e].unique() for b, e in zip(begin.tolist(), end.tolist(), strict=True)]
    ends = torch.tensor([len(run) for run in runs]).cumsum(0)
    begins = ends - torch.tensor([len(run) for run in runs])
    return Marked(torch.cat(runs), begins, ends, exclude)


def ranked(queries: Tensor, gallery: Tensor, marked: Marked) -> list[tuple[Tensor, ...]]:
    """What the oracle says of each query."""
    scores = queries.double() @ gallery.double().T
    found = []
    for i in range(len(queries)):
        mine = marked.rows[marked.begin[i] : marked.end[i]]
        found.append(oracle(scores[i], mine, -1 if marked.exclude is None else int(marked.exclude[i])))
    return found


@cache
def ranked_problem(shape: tuple, exclude: bool) -> tuple[Tensor, Tensor, Marked, list[tuple[Tensor, ...]]]:
    """One for all dtypes and instruction sets: the oracle takes longer than they do."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(sum(shape))
        given = problem(*shape, exclude=exclude)
    return *given, ranked(*given)


def check(got: RankCounts, queries: Tensor, gallery: Tensor, marked: Marked, wanted: Any = None) -> None:
    assert got.offsets[0] == 0 and torch.equal(got.offsets.diff(), marked.sizes())
    some = 0
    for i, want in enumerate(wanted or ranked(queries, gallery, marked)):
        found = (values[got.offsets[i] : got.offsets[i + 1]] for values in got[1:4])
        for name, a, b in zip(("scores", "greater", "equal"), found, want, strict=True):
            assert torch.equal(a.double(), b.double()), f"{name} of query {i}"
        some += int(want[1].sum())
    assert len(gallery) < 10 or some > 0, "nothing stands above anything"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_are_those_of_the_ranking(shape: tuple, exclude: bool, dtype: torch.dtype, isa: str):
    queries, gallery, marked, wanted = ranked_problem(shape, exclude)
    rows = torch.arange(len(queries))
    got = rank_counts(queries.to(dtype), gallery.to(dtype), rows, marked)
    check(got, queries, gallery, marked, wanted)
    assert got.scores.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


def test_rows_of_the_queries_in_any_order(isa: str):
    queries, gallery, marked = problem(40, 200, 9, 3)
    order = torch.randperm(40)
    check(rank_counts(queries, gallery, order, marked), queries[order], gallery, marked)


@pytest.mark.parametrize("exclude", [False, True])
def test_scores_in_the_order_of_the_marked_rows(exclude: bool, isa: str):
    queries, gallery, marked = problem(30, 150, 9, 3, exclude=exclude)
    got = rank_counts(queries, gallery, torch.arange(30), marked, in_order=True)
    check(got, queries, gallery, marked)
    scores = queries @ gallery.T  # whole numbers: exact
    for i in range(30):
        mine = marked.rows[marked.begin[i] : marked.end[i]]
        if exclude:
            mine = mine[mine != marked.exclude[i]]
        assert torch.equal(got.in_order[got.offsets[i] : got.offsets[i + 1]], scores[i, mine])
    assert not torch.equal(got.in_order, got.scores)


def test_strided_rows(isa: str):
    queries, gallery, marked = problem(30, 150, 9, 3)
    wide = torch.full((150, 14), float("nan"))
    wide[:, 3:12] = gallery
    check(rank_counts(queries, wide[:, 3:12], torch.arange(30), marked), queries, gallery, marked)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int, isa: str):
    queries, gallery, marked, wanted = ranked_problem((200, 1500, 20, 4), False)
    torch.set_num_threads(threads)
    check(rank_counts(queries, gallery, torch.arange(200), marked), queries, gallery, marked, wanted)


def test_nan_and_infinity_rank_where_stated(isa: str):
    gallery = torch.tensor([float("nan"), 3.0, -torch.inf, torch.inf, 1.0, 2.0]).unsqueeze(1)
    marked = Marked(torch.arange(6), torch.tensor([0]), torch.tensor([6]))
    got = rank_counts(torch.ones(1, 1), gallery, torch.tensor([0]), marked)
    assert got.greater.tolist() == [4, 4, 3, 2, 1, 0] and got.equal.tolist() == [2, 2, 1, 1, 1, 1]


@given(st.integers(1, 30), st.integers(1, 200), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_any_shape(n: int, g: int, d: int, seed: int, exclude: bool):
    torch.manual_seed(seed)
    queries, gallery, marked = problem(n, g, d, 2, exclude=exclude)
    scores = queries.double() @ gallery.double().T
    got = rank_counts(queries, gallery, torch.arange(n), marked)
    for i in range(n):
        mine = marked.rows[marked.begin[i] : marked.end[i]]
        want = oracle(scores[i], mine, int(marked.exclude[i]) if exclude else -1)
        part = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        assert torch.equal(got.greater[part], want[1]) and torch.equal(got.equal[part], want[2])


def test_blocks_cover_the_queries_once():
    sizes = torch.randint(0, MAX_ENTRIES // 700, (3000,))
    sizes[1234] = 2 * MAX_ENTRIES  # more than one call should take: it goes alone
    cuts = blocks(sizes)
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(3000))
    for cut in cuts:
        length = cut.stop - cut.start
        assert length <= query_block() and (length == 1 or int(sizes[cut].sum()) <= MAX_ENTRIES)
    assert len(cuts) > 3
