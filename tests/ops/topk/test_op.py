"""ops/topk: exact ids and scores, ties, exclusion, NaN, gradients, operator contract, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import topk
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.samples import DTYPES

SHAPES = [(1, 1, 3), (1, 700, 96), (15, 333, 17), (40, 5000, 33), (1100, 90, 8), (3, 70, 2500)]


def grid(n: int, d: int, dtype: torch.dtype = torch.float32, high: int = 4) -> Tensor:
    """Small integers: every product and sum is exact in every dtype, and ties abound."""
    return torch.randint(-high, high + 1, (n, d)).to(dtype)


def oracle(q: Tensor, g: Tensor, k: int, exclude: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """NumPy, one query at a time: np.lexsort by score descending, then index."""
    scores = q.double().numpy() @ g.double().numpy().T
    top, ids = [], []
    for i, row in enumerate(scores):
        order = np.lexsort((np.arange(len(row)), -row))
        if exclude is not None:
            order = order[order != int(exclude[i])]
        ids.append(order[:k])
        top.append(row[order[:k]])
    return np.stack(top), np.stack(ids)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_ids_equal_the_sort_with_ties(shape, share: float, isa: str):
    n, size, d = shape
    k = max(1, round(share * size))
    q, g = grid(n, min(d, 40)), grid(size, min(d, 40))
    got = topk(q, g, k)
    scores, ids = oracle(q, g, k)
    assert got.indices.dtype is torch.int64 and got.scores.dtype is torch.float32
    np.testing.assert_array_equal(got.indices.numpy(), ids)
    np.testing.assert_array_equal(got.scores.numpy(), scores)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_match_oracle_on_real_valued_rows(shape, isa: str):
    n, size, d = shape
    q, g = torch.randn(n, d), torch.randn(size, d)
    k = min(10, size)
    got = topk(q, g, k)
    exact = q.double() @ g.double().T
    assert_close(got.scores, exact.gather(1, got.indices), "op", context=isa)
    # Nothing better was left out: the k-th score is within rounding of the true k-th score.
    true_last = exact.topk(k).values[:, -1]
    picked_last = exact.gather(1, got.indices).amin(1)
    slack = 1e-5 * exact.abs().amax(1)
    assert bool((picked_last >= true_last - slack).all())
    assert all(len(set(row)) == k for row in got.indices.tolist())


@pytest.mark.parametrize("gallery_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes(dtype: torch.dtype, gallery_dtype: torch.dtype, isa: str):
    q, g = grid(17, 21, dtype), grid(900, 21, gallery_dtype)
    got = topk(q, g, 12)
    wide = torch.float64 in (dtype, gallery_dtype)
    assert got.scores.dtype is (torch.float64 if wide else torch.float32)
    scores, ids = oracle(q, g, 12)
    np.testing.assert_array_equal(got.indices.numpy(), ids)
    np.testing.assert_array_equal(got.scores.double().numpy(), scores)


def test_exclude(isa: str):
    g = grid(600, 9)
    itself = torch.arange(600)
    for k in (1, 7, 599):
        got = topk(g, g, k, exclude=itself)
        np.testing.assert_array_equal(got.indices.numpy(), oracle(g, g, k, itself)[1])
    none = torch.full((600,), -1)
    assert torch.equal(topk(g, g, 5, exclude=none).indices, topk(g, g, 5).indices)
    mixed = torch.where(itself % 2 == 0, itself, none)
    np.testing.assert_array_equal(topk(g, g, 5, exclude=mixed).indices.numpy(), oracle(g, g, 5, mixed)[1])


def test_all_equal_rows_come_in_order(isa: str):
    got = topk(torch.ones(3, 5), torch.ones(9000, 5), 4000)
    assert torch.equal(got.indices, torch.arange(4000).expand(3, -1))
    rising = torch.arange(9000.0)[:, None]  # every score beats all before it: the filter never helps
    assert torch.equal(topk(torch.ones(1, 1), rising, 50).indices[0], torch.arange(8999, 8949, -1))


def test_signed_zero_is_one_value(isa: str):
    gallery = torch.tensor([[-0.0], [0.0], [-0.0], [1.0]])
    assert topk(torch.ones(1, 1), gallery, 4).indices.tolist() == [[3, 0, 1, 2]]


def test_nan_and_infinity_rank_where_stated(isa: str):
    g = torch.randn(500, 1).abs() + 1
    g[3], g[7], g[9], g[11] = float("nan"), float("-inf"), float("inf"), float("nan")
    got = topk(torch.ones(1, 1), g, 500)
    assert got.indices[0, 0] == 9 and got.indices[0, -3:].tolist() == [3, 7, 11]
    assert got.scores[0, [-3, -1]].isnan().all() and got.scores[0, -2] == float("-inf")
    few = topk(torch.ones(1, 1), g, 5)
    assert torch.equal(few.indices, got.indices[:, :5])
    q = torch.ones(4, 1)
    q[2] = float("nan")
    got = topk(q, g, 6)
    assert got.indices[2].tolist() == [0, 1, 2, 3, 4, 5] and got.scores[2].isnan().all()
    assert torch.equal(
        got.indices[[0, 1, 3]],
        few.indices.new_tensor(
            few.indices[0].tolist()[:5] + topk(q[:1], g, 6).indices[0, 5:].tolist()
        ).expand(3, -1),
    )


@given(st.integers(1, 30), st.integers(1, 3000), st.integers(1, 12), st.integers(0, 99))
def test_any_shape(n: int, size: int, d: int, seed: int):
    torch.manual_seed(seed)
    q, g = grid(n, d, high=2), grid(size, d, high=2)
    k = 1 + seed * (size - 1) // 99
    scores, ids = oracle(q, g, k)
    got = topk(q, g, k)
    np.testing.assert_array_equal(got.indices.numpy(), ids)
    np.testing.assert_array_equal(got.scores.numpy(), scores)


@pytest.mark.parametrize("n", [1, 60, 1300])
def test_threads_do_not_matter(n: int, isa: str):
    q, g = torch.randn(n, 40), torch.randn(9000, 40).half()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(topk(q, g, 30))
    for other in results[1:]:
        assert torch.equal(other.indices, results[0].indices)
        assert_same_bits(other.scores, results[0].scores)


def test_a_query_does_not_see_its_neighbours(isa: str):
    q, g = torch.randn(70, 24), torch.randn(3000, 24)
    whole = topk(q, g, 9)
    for i in (0, 13, 69):
        alone = topk(q[i : i + 1], g, 9)
        assert torch.equal(alone.indices[0], whole.indices[i])
        assert_same_bits(alone.scores[0], whole.scores[i])


def test_memory_mapped_gallery(tmp_path):
    g = torch.randn(4000, 32).half()
    path = tmp_path / "gallery.npy"
    np.save(path, g.numpy())
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    q = torch.randn(5, 32)
    assert torch.equal(topk(q, mapped, 8).indices, topk(q, g, 8).indices)


@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded"])
def test_any_layout(layout: str):
    laid = {
        "strided": lambda x: torch.stack([x, x + 1], -1).flatten(1)[:, ::2],
        "transposed": lambda x: x.T.contiguous().T,
        "expanded": lambda x: x[:1].expand(*x.shape),
    }[layout]
    q, g = grid(6, 20), grid(90, 20)
    np.testing.assert_array_equal(topk(laid(q), laid(g), 11).indices.numpy(), oracle(laid(q), laid(g), 11)[1])


def test_reference_and_eager_backend():
    q, g = grid(30, 7), grid(400, 7)
    exclude = torch.where(torch.arange(30) % 3 == 0, -1, torch.arange(30))
    for given_exclude in (None, exclude):
        want = oracle(q, g, 20, given_exclude)[1]
        reference = sb.reference.topk(q, g, 20, exclude=given_exclude)
        np.testing.assert_array_equal(reference[1].numpy(), want)
        with sb.backend("eager"):
            got = topk(q, g, 20, exclude=given_exclude)
        np.testing.assert_array_equal(got.indices.numpy(), want)


@pytest.mark.parametrize("shape", [(0, 5, 2), (3, 5, 0)], ids=str)
def test_empty(shape):
    n, size, k = shape
    got = topk(torch.ones(n, 4), torch.ones(size, 4), k)
    assert got.scores.shape == got.indices.shape == (n, k)


def test_gradients():
    q, g = torch.randn(4, 6, dtype=torch.float64), torch.randn(30, 6, dtype=torch.float64)
    inputs = (q.requires_grad_(), g.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, g: topk(q, g, 5).scores, inputs)
    assert not topk(*inputs, 5).indices.requires_grad


# opcheck itself reads .grad of its own views; ends when torch stops doing so.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck():
    q, g = torch.randn(4, 6).requires_grad_(), torch.randn(30, 6).requires_grad_()
    for exclude in (None, torch.arange(4)):
        results = torch.library.opcheck(torch.ops.semobridge.topk.default, (q, g, 5, exclude))
        assert set(results.values()) == {"SUCCESS"}


def test_compile_fullgraph():
    q, g = torch.randn(4, 6), torch.randn(50, 6)
    torch._dynamo.reset()
    got = torch.compile(topk, fullgraph=True, backend="aot_eager")(q, g, 5)
    assert torch.equal(got.indices, topk(q, g, 5).indices)


G = torch.ones(4, 3)
BAD = [
    ({"queries": [1.0]}, TypeError, "queries must be a torch.Tensor"),
    ({"gallery": G.int()}, TypeError, "gallery must be float32"),
    ({"queries": torch.ones(3)}, ValueError, "queries must be"),
    ({"queries": torch.ones(2, 4)}, ValueError, "queries must have width 3"),
    ({"gallery": torch.ones(4, 3).to("meta")}, ValueError, "queries must be on meta"),
    ({"k": 5}, ValueError, r"k must lie in 0\.\.4, got int 5; the gallery has 4 rows"),
    ({"k": -1}, ValueError, "k must lie in"),
    ({"k": 1.0}, TypeError, "k must be an int"),
    ({"k": 4, "exclude": torch.zeros(2).long()}, ValueError, r"k must lie in 0\.\.3"),
    ({"exclude": torch.zeros(2)}, TypeError, "exclude must be whole numbers"),
    ({"exclude": torch.zeros(3).long()}, ValueError, r"exclude must be \[2\]"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[b[2] for b in BAD])
def test_bad_inputs(change: dict, error: type[Exception], text: str):
    arguments = {"queries": torch.ones(2, 3), "gallery": G, "k": 2, **change}
    with pytest.raises(error, match=text) as caught:
        topk(**arguments)
    assert str(caught.value).startswith("topk: ") and ";" in str(caught.value)


@pytest.mark.slow
def test_ids_equal_argsort_on_200000_rows():
    """The issue's case, with integer features so that float32 and the oracle agree to the last tie."""
    q, g = grid(50, 512, high=2), grid(200_000, 512, high=2)
    scores = q @ g.T  # exact: every partial sum is a small integer
    want = torch.sort(scores, dim=1, descending=True, stable=True)
    got = topk(q, g, 100)
    assert torch.equal(got.indices, want.indices[:, :100])
    assert torch.equal(got.scores, want.values[:, :100])


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("bad", [5, -2, 1 << 40])
def test_excluded_rows_that_do_not_exist(bad: int, backend: str):
    q, g = torch.eye(3), torch.randn(5, 3)
    with (
        sb.backend(backend),
        pytest.raises(ValueError, match=rf"exclude must lie in -1\.\.4, got {bad} at position 1"),
    ):
        sb.topk(q, g, 2, exclude=torch.tensor([0, bad, -1]))
    assert sb.topk(q, g, 2, exclude=torch.tensor([0, 4, -1])).indices.shape == (3, 2)
