"""_ops/rank_counts with queries = gallery: the counts of the ranking, the bits of one side alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.rank_counts import op
from semobridge_ext._ops.rank_counts.op import Marked, RankCounts, rank_counts, rank_counts_symmetric
from semobridge_ext._ops.rank_counts.reference import rank_counts as oracle
from semobridge_ext.retrieval import metrics
from tests.support.samples import DTYPES

BLOCK = 1024  # queries of a call of one side, and of a block here


def marked_of(labels: Tensor, asked: Tensor, same_set: bool) -> Marked:
    """The rows of each asked row's label; itself is excluded under `same_set`."""
    by_label = {label: (labels == label).nonzero().flatten() for label in labels.unique().tolist()}
    sizes = {label: len(rows) for label, rows in by_label.items()}
    starts, total = {}, 0
    for label, size in sizes.items():
        starts[label], total = total, total + size
    begin = torch.tensor([starts[label] for label in labels[asked].tolist()])
    end = begin + torch.tensor([sizes[label] for label in labels[asked].tolist()])
    return Marked(torch.cat([*by_label.values()]), begin, end, asked if same_set else None)


def asked_rows(labels: Tensor, same_set: bool, some: int | None = None) -> tuple[Tensor, Tensor]:
    """Queries that have a marked row, and all rows with those first; `some` of them only."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)[labels[order]] - int(same_set)
    asked = order[counts > 0]
    if some is not None:
        asked = asked[torch.randperm(len(asked))[:some]]
    rest = order[~torch.isin(order, asked)]
    return asked, torch.cat([asked, rest])


def both(x: Tensor, labels: Tensor, same_set: bool, some: int | None = None) -> tuple[RankCounts, RankCounts]:
    """Of the symmetric kernel, and of the one-sided one block by block."""
    asked, rows = asked_rows(labels, same_set, some)
    marked = marked_of(labels, asked, same_set)
    got = rank_counts_symmetric(x, rows, marked)
    parts = []
    for part in torch.arange(len(asked)).split(BLOCK):
        exclude = marked.exclude[part] if marked.exclude is not None else None
        mine = Marked(marked.rows, marked.begin[part], marked.end[part], exclude)
        parts.append(rank_counts(x, x, asked[part], mine))
    want = RankCounts(got.offsets, *(torch.cat(fields) for fields in list(zip(*parts, strict=True))[1:4]))
    assert torch.equal(got.offsets.diff(), torch.cat([part.offsets.diff() for part in parts]))
    return got, want


def assert_same(got: RankCounts, want: RankCounts) -> None:
    for name, a, b in zip(got._fields[1:4], got[1:4], want[1:4], strict=True):
        assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {len(a)} differ"


def whole(g: int, d: int, high: int) -> Tensor:
    """Small whole numbers, whose products are exact and tie by the thousand."""
    return torch.randint(-high, high + 1, (g, d)).float()


def assert_ranking(got: RankCounts, x: Tensor, labels: Tensor, same_set: bool) -> None:
    """Of some forty rows, from the first to the last."""
    asked, _ = asked_rows(labels, same_set)
    for i in {*range(0, len(asked), len(asked) // 40 + 1), len(asked) - 1}:
        row = int(asked[i])
        mine = (labels == labels[row]).nonzero().flatten()
        want = oracle(x.double() @ x[row].double(), mine, row if same_set else -1)
        part = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        for a, b in zip(got[1:4], want, strict=True):
            assert torch.equal(a[part].double(), b.double()), f"row {row}"


# Rows, classes, width: a pair, one tile, odd tails, many keys a group; two blocks with a tail in the second.
@pytest.mark.parametrize("shape", [(2, 1, 1), (15, 2, 7), (333, 20, 5), (1500, 60, 3)], ids=str)
@pytest.mark.parametrize("same_set", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_those_of_the_ranking(shape: tuple, same_set: bool, dtype: torch.dtype, isa: str):
    g, classes, d = shape
    x, labels = whole(g, d, 2), torch.randint(0, classes, (g,))
    labels[:2] = 0
    asked, rows = asked_rows(labels, same_set)
    got = rank_counts_symmetric(x.to(dtype), rows, marked_of(labels, asked, same_set))
    assert_ranking(got, x, labels, same_set)
    assert got.scores.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert g < 10 or int(got.greater.sum()) > 0


@given(
    st.integers(2, 300), st.integers(1, 40), st.integers(1, 90), st.sampled_from(DTYPES), st.booleans(),
    st.sampled_from(["random", "copies", "zeros", "one", "odd"]), st.integers(0, 99),
)  # fmt: skip
def test_the_bits_of_one_side(
    g: int, classes: int, d: int, dtype: torch.dtype, same_set: bool, kind: str, seed: int
):
    torch.manual_seed(seed)
    x, labels = torch.randn(g, d).to(dtype), torch.randint(0, classes, (g,))
    labels[:2] = 0
    if kind == "copies":
        x = x[torch.randint(0, (g + 9) // 10, (g,))]
    elif kind == "zeros":
        x[torch.rand(g) < 0.5] = 0
    elif kind == "one":
        x = x[:1].expand(g, d)
    elif kind == "odd":
        x[torch.randint(0, g, (3,)), torch.randint(0, d, (3,))] = torch.tensor(
            [torch.nan, torch.inf, -torch.inf], dtype=dtype
        )
    assert_same(*both(x, labels, same_set))
    assert_same(*both(x, labels, same_set, some=(g + 2) // 3))


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 2900])
def test_blocks_meet(rows: int, isa: str):
    x, labels = torch.randn(rows, 33), torch.randint(0, rows // 5, (rows,))
    assert_same(*both(x, labels, True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int, isa: str):
    x, labels = torch.randn(1400, 70), torch.randint(0, 90, (1400,))
    torch.set_num_threads(threads)
    assert_same(*both(x, labels, True))


def test_marked_rows_of_every_count(isa: str):
    """Around the sizes at which a query's scores take one more register, or a table of buckets."""
    sizes = [1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 129, 300]
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for x in (whole(len(labels), 6, 3), whole(len(labels), 300, 1)):
        asked, rows = asked_rows(labels, False)
        got = rank_counts_symmetric(x, rows, marked_of(labels, asked, False))
        assert_ranking(got, x, labels, False)
        assert_same(*both(x, labels, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_without_order(dtype: torch.dtype, isa: str):
    """NaN ranks with −∞ and infinities with the largest numbers, whichever side of a pair they stand on."""
    x = torch.randn(150, 1, dtype=dtype)
    x[3], x[77], x[78], x[140] = torch.nan, torch.inf, torch.inf, -torch.inf
    x[9] = 0  # its products with infinity are NaN
    labels = torch.arange(150) % 4
    got, want = both(x, labels, False)
    assert_same(got, want)
    most = torch.finfo(dtype).max
    assert bool((got.scores == most).any()) and bool((got.scores == -most).any())


# -- retrieval_metrics, which chooses -----------------------------------------------------------------


def table_of(query: Tensor, gallery: Tensor, labels: Tensor, same_set: bool) -> list[Tensor]:
    found = sb.retrieval_metrics(query, gallery, labels, labels, same_set=same_set, per_query=True)
    return list(found["per_query"].values())


@pytest.mark.parametrize("same_set", [False, True])
def test_metrics_of_one_tensor_are_those_of_two(same_set: bool, monkeypatch, isa: str):
    x, labels = torch.randn(1300, 24), torch.randint(0, 200, (1300,))
    labels[5] = -9  # alone with its label
    calls = []
    monkeypatch.setattr(
        metrics, "rank_counts_symmetric", lambda *a: calls.append(1) or rank_counts_symmetric(*a)
    )
    want = table_of(x, x.clone(), labels, same_set)
    assert not calls
    got = table_of(x, x, labels, same_set)
    assert calls == [1] and bool(got[0].isnan().any()) is same_set
    columns = x.T.contiguous().T  # a copy with unit columns is made of it, once
    others = [table_of(columns, columns, labels, same_set)]
    assert calls == [1, 1]
    monkeypatch.setattr(op, "MAX_ENTRIES", 8 * 1300 + 100)  # too much is marked: block by block
    others.append(table_of(x, x, labels, same_set))
    assert calls == [1, 1]
    for other in (want, *others):
        for a, b in zip(got, other, strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def test_what_fits_at_once():
    many = torch.zeros(op.MAX_ENTRIES // op.QUERY_ENTRIES, dtype=torch.int64)
    assert op.fits_at_once(many)  # the memory of a query without marked rows counts as well
    many[0] = 1
    assert not op.fits_at_once(many)
    assert op.fits_at_once(torch.full((11_788,), 59)) and op.fits_at_once(torch.full((60_502,), 5))


def test_labels_of_the_queries_may_be_others(isa: str):
    x, ours, theirs = torch.randn(300, 8), torch.randint(0, 9, (300,)), torch.randint(3, 12, (300,))
    got = sb.retrieval_metrics(x, x, ours, theirs, per_query=True)["per_query"]
    want = sb.retrieval_metrics(x, x.clone(), ours, theirs, per_query=True)["per_query"]
    for name in want:
        assert torch.equal(got[name].nan_to_num(7), want[name].nan_to_num(7)), name
    assert bool(got["AP"].isnan().any())


@pytest.mark.parametrize("change", ["transposed", "shifted", "wider stride"])
def test_views_of_one_memory_are_not_one_set(change: str):
    base = torch.randn(61, 60)
    query, gallery = {
        "transposed": (base[:60], base[:60].T),
        "shifted": (base[1:], base[:60]),
        "wider stride": (base.flatten()[:1800].view(30, 60), base.flatten()[: 60 * 60].view(60, 60)[::2]),
    }[change]
    labels = torch.arange(len(query)) % 7
    got = table_of(query, gallery, labels, False)
    want = table_of(query.clone(), gallery.clone(), labels, False)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
