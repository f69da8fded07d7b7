"""Gallery: the bits of topk with masks, rows that come later, files, and the verbs of other libraries."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import semobridge_ext as sb
from semobridge_ext import _files
from semobridge_ext._ops.topk import prepared
from semobridge_ext.runtime import backend as _backend
from tests.support.assertions import assert_close, assert_figures, assert_same_scores
from tests.support.samples import DTYPES


def assert_same(got: sb.TopK, want: sb.TopK) -> None:
    assert torch.equal(got.indices, want.indices)
    assert_same_scores(got.scores, want.scores)


def among(queries: Tensor, rows: Tensor, kept: Tensor, k: int, exclude: Tensor | None = None) -> sb.TopK:
    """A search over the kept rows alone, with the numbers of all; query by query where one is excluded."""
    if exclude is None:
        found = sb.topk(queries, rows[kept], k)
        return sb.TopK(found.scores, kept[found.indices])
    each = [among(q[None], rows, kept[kept != e], k) for q, e in zip(queries, exclude, strict=True)]
    return sb.TopK(torch.cat([f.scores for f in each]), torch.cat([f.indices for f in each]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_topk(dtype: torch.dtype, code_isa: str):
    rows, queries = torch.randn(6000, 40).to(dtype), torch.randn(9, 40)
    gallery = sb.Gallery(rows)
    assert len(gallery) == 6000 and gallery.width == 40
    for n in (1, 9):
        assert_same(gallery.topk(queries[:n], 7), sb.topk(queries[:n], rows, 7))
        assert_same(sb.topk(queries[:n], gallery, 7), sb.topk(queries[:n], rows, 7))
    own = torch.arange(9)
    assert_same(sb.topk(queries, gallery, 7, exclude=own), sb.topk(queries, rows, 7, exclude=own))


@pytest.mark.parametrize("parts", [(6000,), (4097, 1903), (1, 31, 33, 5000, 935), (5000, 0, 1000)], ids=str)
def test_rows_may_come_in_parts(parts: tuple[int, ...]):
    rows = torch.randint(-2, 3, (6000, 36)).float()  # ties between the parts
    queries, own = rows[:20] + 0.0, torch.arange(20) * 300
    first, *others = rows.split(list(parts))
    gallery = sb.Gallery(first)
    for part in others:
        assert gallery.add(part) is gallery
    assert len(gallery) == 6000
    assert_same(gallery.topk(queries, 50), sb.topk(queries, rows, 50))
    assert_same(gallery.topk(queries, 50, exclude=own), sb.topk(queries, rows, 50, exclude=own))
    allow = torch.rand(6000) < 0.3
    kept = allow.nonzero().squeeze(1)
    assert_same(gallery.topk(queries, 50, allow=allow), among(queries, rows, kept, 50))
    assert_same(gallery.topk(queries, 50, allow=allow, exclude=own), among(queries, rows, kept, 50, own))
    inside = torch.arange(4000, 5007)
    assert_same(gallery.topk(queries, 50, allow=range(4000, 5007)), among(queries, rows, inside, 50))
    assert_same(gallery.topk(queries, 1006, allow=range(4000, 5007), exclude=own),
                among(queries, rows, inside, 1006, own))  # fmt: skip


@given(st.integers(1, 200), st.lists(st.integers(0, 80), max_size=4), st.integers(0, 99))
def test_any_parts(first: int, others: list[int], seed: int):
    torch.manual_seed(seed)
    total = first + sum(others)
    rows = torch.randint(-1, 2, (total, 5)).float()
    queries, exclude = rows[:3], torch.arange(3)[: len(rows[:3])]
    gallery = sb.Gallery(rows[:first])
    for part in rows[first:].split(others) if others else ():
        gallery.add(part)
    k = seed * (total - 1) // 99
    assert_same(gallery.topk(queries, k, exclude=exclude), sb.topk(queries, rows, k, exclude=exclude))


@pytest.mark.parametrize("backend", ["eager", "native", "auto"])
def test_backends_and_gradients(backend: str):
    rows, queries = torch.randn(5000, 40), torch.randn(8, 40, requires_grad=True)
    allow, own = torch.rand(5000) < 0.5, torch.arange(8)
    kept = allow.nonzero().squeeze(1)
    want = among(queries.detach(), rows, kept, 6, own)
    with sb.backend(backend):
        found = sb.Gallery(rows).topk(queries, 6, allow=allow, exclude=own)
    assert torch.equal(found.indices, want.indices)
    found.scores.sum().backward()
    assert_close(queries.grad, rows[want.indices].double().sum(1), "op_grad")


class Lists(TorchDispatchMode):
    """Counts what is made with a whole number for each of so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.made = rows, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.made += isinstance(out, Tensor) and out.dtype is torch.int64 and out.numel() >= self.rows
        return out


@pytest.mark.parametrize("allow", [None, range(30, 9000)])
def test_no_list_of_all_rows_numbers_them(allow: range | None, monkeypatch: pytest.MonkeyPatch):
    """Every search on a GPU, and under other backends, wrote 8 or 16 bytes for each row of the gallery."""
    rows, queries = torch.randn(9001, 8), torch.randn(2, 8)
    own = torch.tensor([-1, 40])
    gallery = sb.Gallery(rows)
    want = gallery.topk(queries, 3, exclude=own, allow=allow)
    monkeypatch.setattr(prepared, "direct", lambda *_: "")  # as on a GPU
    with Lists(8000) as lists:
        assert_same(gallery.topk(queries, 3, exclude=own, allow=allow), want)
    assert lists.made == 0


def test_nan_rows_rank_last_in_every_part():
    rows = torch.randn(100, 8)
    rows[3], rows[60], rows[99] = math.nan, math.nan, math.inf
    gallery = sb.Gallery(rows[:50]).add(rows[50:])
    assert_same(gallery.topk(torch.ones(1, 8), 100), sb.topk(torch.ones(1, 8), rows, 100))


def test_normalize():
    rows, queries = torch.randn(300, 16) * 7, torch.randn(5, 16) * 3
    unit, ask = (torch.nn.functional.normalize(x.double(), dim=1) for x in (rows, queries))
    gallery = sb.Gallery(rows[:200], normalize=True).add(rows[200:])
    assert_close(gallery.topk(queries, 5).scores, (ask @ unit.T).topk(5).values, "op")
    assert "normalize=True" in repr(gallery) and gallery.topk(queries, 5).scores.max() <= 1.00001
    zero = sb.Gallery(torch.zeros(3, 4), normalize=True).topk(torch.zeros(1, 4), 3)
    assert zero.scores.tolist() == [[0, 0, 0]]


def test_memory_is_what_is_said():
    rows = torch.randn(6400, 512)
    codes = sb.Gallery(rows).nbytes - rows.nbytes
    assert codes == 6400 * (512 + 12)
    assert sb.Gallery(rows.half()).nbytes - rows.nbytes // 2 == codes
    assert sb.Gallery(rows.double()).nbytes == 2 * rows.nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files(dtype: torch.dtype, tmp_path):
    rows, queries = torch.randn(5000, 40).to(dtype), torch.randn(9, 40)
    rows[17] = math.nan
    file = tmp_path / "g.safetensors"
    gallery = sb.Gallery(rows[:4000], normalize=dtype is torch.float32).add(rows[4000:])
    gallery.save(file)
    loaded = sb.Gallery.load(file)
    assert len(loaded) == 5000 and loaded.nbytes == sb.Gallery(rows).nbytes
    assert_same(loaded.topk(queries, 7), gallery.topk(queries, 7))
    loaded.add(rows[:3])
    assert len(loaded) == 5003


def test_a_large_file_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "MAPPED_FROM", 1)
    rows = torch.randn(5000, 40)
    file = tmp_path / "g.safetensors"
    sb.Gallery(rows).save(file)
    gallery = sb.Gallery.load(file)
    assert str(file) in Path("/proc/self/maps").read_text()
    assert_same(gallery.topk(rows[:5], 7), sb.topk(rows[:5], rows, 7))


def test_memory_mapped_rows(tmp_path):
    rows = torch.randn(5000, 40)
    np.save(tmp_path / "rows.npy", rows.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="c"))
    assert_same(sb.Gallery(mapped).topk(rows[:5], 7), sb.topk(rows[:5], rows, 7))


@pytest.mark.parametrize("change", ["codes", "bounds", "short", "normalize", "no codes", "foreign"])
def test_inconsistent_files_are_refused(change: str, tmp_path):
    rows = torch.randn(100, 16)
    file = tmp_path / "g.safetensors"
    sb.Gallery(rows).save(file)
    tensors, meta = _files.load_tensors("test", file, "semobridge-ext gallery 1", ("rows", "codes", "bounds"))
    tensors = {name: value.clone() for name, value in tensors.items()}
    if change == "codes":
        tensors["codes"] = tensors["codes"][:, :-4]
    elif change == "bounds":
        tensors["bounds"] = tensors["bounds"][:, :2]
    elif change == "short":
        tensors["codes"] = tensors["codes"][:-1]
    elif change == "no codes":
        del tensors["bounds"]
    elif change == "normalize":
        meta["normalize"] = "3"
    else:
        meta["format"] = "another"
    _files.save_tensors(file, tensors, meta)
    with pytest.raises(ValueError, match=r"^Gallery.load: .*g.safetensors"):
        sb.Gallery.load(file)


# -- the verbs of other libraries ----------------------------------------------------------------------


def test_kneighbors_as_in_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="pip install scikit-learn")
    rows, queries = torch.randn(700, 24).numpy(), torch.randn(20, 24).numpy()
    theirs = neighbors.NearestNeighbors(n_neighbors=6, metric="cosine").fit(rows)
    ours = sb.Gallery(torch.from_numpy(rows), normalize=True)
    for X in (queries, None):
        distance, index = theirs.kneighbors(X, 6)
        got = ours.kneighbors(X, 6)
        np.testing.assert_array_equal(got[1], index)
        assert_figures(
            torch.from_numpy(got[0]), torch.from_numpy(distance), "figure", dtype=torch.float32, scale=1
        )
        np.testing.assert_array_equal(ours.kneighbors(X, 6, return_distance=False), index)
    assert ours.kneighbors(rows[:3], 1)[0].min() >= 0
    with pytest.raises(ValueError, match="normalize=True"):
        sb.Gallery(torch.from_numpy(rows)).kneighbors(queries)


def test_search_as_in_faiss():
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    rows, queries = torch.randn(700, 24).numpy(), torch.randn(20, 24).numpy()
    index = faiss.IndexFlatIP(24)
    index.add(rows)
    theirs, ours = index.search(queries, 6), sb.Gallery(torch.from_numpy(rows)).search(queries, 6)
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert_close(torch.from_numpy(ours[0]), torch.from_numpy(theirs[0]).double(), "op")


# -- ids, removal, everything above a threshold -------------------------------------------------------


def test_removed_rows_are_not_found_and_ids_stay():
    rows, queries = torch.randint(-2, 3, (500, 24)).float(), torch.randint(-2, 3, (7, 24)).float()
    ids = torch.randperm(10_000)[:500]
    gallery = sb.Gallery(rows[:300], ids=ids[:300].tolist()).add(rows[300:], ids[300:].numpy())
    gone = torch.randperm(500)[:120]
    assert gallery.remove(ids[gone]) is gallery
    kept = torch.ones(500, dtype=torch.bool)
    kept[gone] = False
    assert len(gallery) == 380 and torch.equal(gallery.ids, ids[kept])
    want = sb.topk(queries, rows[kept], 380)
    assert_same(gallery.topk(queries, 380), want)
    scores, found = gallery.search(queries, 9)
    assert np.array_equal(found, ids[kept][want.indices[:, :9]]) and np.array_equal(
        scores, want.scores[:, :9]
    )
    assert torch.equal(gallery.rows_of(gallery.ids[[5, 3]]), torch.tensor([5, 3]))
    gallery.add(rows[gone], ids[gone])  # free again
    assert len(gallery) == 500 and set(gallery.ids.tolist()) == set(ids.tolist())


def test_rows_without_ids_are_removed_by_number(tmp_path):
    rows = torch.randn(40, 8)
    gallery = sb.Gallery(rows).remove(3).remove(torch.tensor([0, 38, 0]))
    kept = [i for i in range(40) if i not in (0, 3, 39)]  # 38 was 39 before 3 went
    assert_same(gallery.topk(rows[:5], 37), sb.topk(rows[:5], rows[kept], 37))
    assert gallery.ids is None and len(gallery.remove([])) == 37
    named = sb.Gallery(rows, ids=range(100, 140)).remove(110)
    named.save(tmp_path / "g")
    again = sb.Gallery.load(tmp_path / "g")
    assert torch.equal(again.ids, named.ids) and 110 not in again.ids
    assert_same(again.topk(rows[:5], 39), named.topk(rows[:5], 39))


@pytest.mark.parametrize("threshold", [-100.0, 0.0, 3.0, 1000.0])
def test_range_search_finds_all_above(threshold: float):
    """Against float64 products of whole numbers, which float32 holds exactly; ties by lower row."""
    rows, queries = torch.randint(-2, 3, (300, 12)).float(), torch.randint(-2, 3, (6, 12)).float()
    rows[17] = float("nan")
    exclude, allow = torch.tensor([-1, 3, 250, -1, 0, 8]), torch.rand(300) < 0.7
    gallery = sb.Gallery(rows[:200]).add(rows[200:])
    for options in ({}, {"exclude": exclude}, {"allow": allow}, {"exclude": exclude, "allow": allow}):
        hits = gallery.range_search(queries.numpy(), threshold, **options)
        assert isinstance(hits.scores, np.ndarray) and hits.limits.tolist()[0] == 0
        products = queries.double().numpy() @ rows.double().numpy().T
        for n in range(6):
            part = slice(*hits.limits[n : n + 2])
            want = [
                i for i in np.argsort(-products[n], kind="stable")
                if products[n, i] >= threshold
                and (i != exclude[n] or "exclude" not in options)
                and (allow[i] or "allow" not in options)
            ]  # fmt: skip
            assert hits.indices[part].tolist() == want
            assert np.array_equal(hits.scores[part], products[n, want])


def test_a_nan_score_reaches_not_even_minus_infinity():
    rows = torch.ones(200, 1)
    rows[::3], rows[1::3] = float("nan"), -float("inf")
    for normal in (200, 65):  # NaN stands among the first 64 rows of minus infinity, and behind them
        hits = sb.Gallery(rows[:normal]).range_search(torch.ones(1, 1), -float("inf"))
        best = [i for i in range(normal) if i % 3 == 2]
        assert hits.indices.tolist() == best + [i for i in range(normal) if i % 3 == 1]
        assert not torch.isnan(hits.scores).any()


# -- what is refused ----------------------------------------------------------------------------------

TWO = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: sb.Gallery([[1.0]]), TypeError, "Gallery: features must"),
        (lambda g: sb.Gallery(torch.ones(3)), ValueError, "Gallery: features must"),
        (lambda g: g.add(torch.ones(2, 5)), ValueError, "Gallery.add: rows must"),
        (lambda g: sb.Gallery(TWO.half()).add(70000 * TWO), ValueError, "fit into float16, got 70000"),
        (lambda g: g.topk(torch.ones(1, 5), 1), ValueError, "Gallery.topk: queries must"),
        (lambda g: g.topk(torch.ones(1, 4), 10), ValueError, "Gallery.topk: k must lie in 0..9"),
        (lambda g: g.topk(torch.ones(1, 4), 3, allow=range(2, 4)), ValueError, "2 gallery rows take part"),
        (lambda g: g.topk(torch.ones(1, 4), 1, allow=range(0, 20)), ValueError, "Gallery.topk: allow must"),
        (lambda g: g.topk(torch.ones(1, 4), 1, allow=range(0, 6, 2)), ValueError, "steps of 1"),
        (lambda g: g.topk(torch.ones(1, 4), 1, allow=[0, 1]), TypeError, "Gallery.topk: allow must"),
        (lambda g: g.topk(torch.ones(1, 4), 1, allow=torch.ones(3, dtype=bool)), ValueError, r"be \[9\]"),
        (lambda g: g.topk(torch.ones(1, 4), 1, exclude=torch.tensor([9])), ValueError, "in -1..8"),
        (lambda g: g.search([[1.0, 2, 3, 4]], 1), TypeError, "Gallery.search: x must"),
        (lambda g: sb.Gallery(TWO, ids=[1, 1]), ValueError, "Gallery: ids must be distinct, got 1 twice"),
        (lambda g: sb.Gallery(TWO, ids=[1]), ValueError, r"Gallery: ids must be \[2\]"),
        (lambda g: sb.Gallery(TWO, ids=[1.5, 2]), TypeError, "Gallery: ids must be whole numbers"),
        (lambda g: g.add(TWO[:1], ids=[7]), ValueError, "Gallery.add: ids must be None"),
        (lambda g: g.remove(9), ValueError, r"Gallery.remove: ids must lie in 0..8, got 9"),
        (lambda g: g.remove([0.5]), TypeError, "Gallery.remove: ids must be whole numbers"),
        (lambda g: sb.Gallery(TWO, ids=[5, 7]).rows_of([6]), ValueError, "of the gallery's 2 rows, got 6"),
        (lambda g: sb.Gallery(TWO, ids=[5, 7]).add(TWO[:1]), ValueError, "ids must be given"),
        (lambda g: sb.Gallery(TWO, ids=[5, 7]).add(TWO[:1], [7]), ValueError, "got 7 twice"),
        (lambda g: g.range_search(torch.ones(1, 4), float("nan")), ValueError, "threshold must be a number"),
        (lambda g: g.range_search(torch.ones(1, 5), 0.0), ValueError, "queries must"),
    ],
)  # fmt: skip
def test_bad_input(call, error, words: str):
    with pytest.raises(error, match=words):
        call(sb.Gallery(torch.randn(9, 4)))


def test_no_row_and_no_query():
    empty = sb.Gallery(torch.empty(0, 4))
    assert len(empty) == 0 and empty.topk(torch.ones(2, 4), 0).indices.shape == (2, 0)
    empty.add(torch.eye(4))
    assert empty.topk(torch.eye(4)[2:3], 1).indices.tolist() == [[2]]
    assert empty.topk(torch.empty(0, 4), 3).scores.shape == (0, 3)


@pytest.mark.parametrize("backend", ["eager", "native", "auto"])
def test_where_no_row_takes_part_none_need_be_left_to_exclude(backend: str):
    rows, queries, own = torch.randn(6, 4), torch.randn(2, 4), torch.tensor([3, -1])
    with sb.backend(backend):
        for gallery in (sb.Gallery(rows), sb.Gallery(rows[:2]).add(rows[2:])):
            none = torch.zeros(6, dtype=torch.bool)
            hits = gallery.range_search(queries, -10.0, exclude=own, allow=none)
            assert hits.limits.tolist() == [0, 0, 0] and len(hits.scores) == len(hits.indices) == 0
            assert gallery.topk(queries, 0, exclude=own, allow=range(2, 2)).indices.shape == (2, 0)
        assert sb.topk(queries, rows[:0], 0, exclude=torch.tensor([-1, -1])).scores.shape == (2, 0)
    with pytest.raises(ValueError, match=r"k must lie in 0\.\.0, got int 1"):
        sb.topk(queries, rows[:1], 1, exclude=torch.tensor([-1, -1]))


def test_ctrl_c_reaches_a_search(monkeypatch):
    import signal

    gallery, queries = sb.Gallery(torch.randn(300000, 64)), torch.randn(4000, 64)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(100):
                gallery.topk(queries, 10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _backend._C.active_isa()
