"""_ops/tree_attention: oracle, invariances, what stays out of a row, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.tree_attention import cpu, eager
from semobridge_ext._ops.tree_attention.op import tree_attention, tree_attention_bwd
from semobridge_ext._ops.tree_attention.reference import tree_attention as oracle
from semobridge_ext._ops.tree_attention.reference import tree_attention_bwd as oracle_bwd
from semobridge_ext._ops.tree_attention.spec import Paths
from tests.support.assertions import assert_close, assert_same_bits

F32, F64 = torch.float32, torch.float64
# Rows, keys, paths, places, heads, head width: one of each; odd widths; several blocks of rows; CLIP's own.
SHAPES = [(1, 1, 1, 1, 1, 1), (9, 30, 4, 7, 3, 12), (200, 90, 25, 19, 2, 5), (65, 40, 6, 77, 8, 64)]


def paths_of(rows: int, keys: int, paths: int, length: int) -> Paths:
    nodes = torch.randint(keys, (paths, length), dtype=torch.int32)
    counts = torch.randint(1, length + 1, (rows,), dtype=torch.int32)
    counts[0], counts[-1] = 1, length
    return Paths(nodes, torch.randint(paths, (rows,), dtype=torch.int32), counts)


def problem(
    rows: int, keys: int, paths: int, length: int, heads: int, width: int, dtype: torch.dtype = F32
) -> tuple[Tensor, Tensor, Tensor, Paths]:
    """Scores of a spread that makes some keys matter most; queries and keys as slices of wider rows."""
    own = torch.randn(rows, 3 * heads * width).to(dtype)
    others = torch.randn(keys, 3 * heads * width).to(dtype)
    q, (_, k, v) = own.chunk(3, dim=1)[0], others.chunk(3, dim=1)
    return 2 * q if rows == 1 else q, k, v, paths_of(rows, keys, paths, length)


def part(paths: Paths, rows: Tensor | slice) -> Paths:
    return Paths(paths.nodes, paths.path_of[rows], paths.counts[rows])


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_oracle(shape: tuple, dtype: torch.dtype, isa: str):
    *given_, paths = problem(*shape, dtype=dtype)
    copies = [t.clone() for t in given_]
    want = oracle(*(t.double() for t in given_), paths, shape[4])
    for backend in ("native", "eager"):
        with sb.backend(backend):
            got = tree_attention(*given_, paths, shape[4])
        assert got.dtype is dtype
        assert_close(got, want, "op", context=f"{backend} {isa}")
    assert all(torch.equal(a, b) for a, b in zip(given_, copies, strict=True)), "an input was modified"


def test_oracle_is_attention():
    """Over whole rows it is PyTorch's own."""
    q, k, v, _ = problem(6, 11, 1, 11, 3, 4, dtype=F64)
    every = Paths(
        torch.arange(11, dtype=torch.int32)[None], torch.zeros(6, dtype=torch.int32),
        torch.full((6,), 11, dtype=torch.int32),
    )  # fmt: skip
    split = [t.reshape(-1, 3, 4).transpose(0, 1) for t in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1)
    assert_close(oracle(q, k, v, every, 3), want, "reference")


@pytest.mark.parametrize("run", [cpu, eager], ids=["native", "eager"])
def test_foreign_rows_are_not_read(run, isa: str):
    """NaN reaches the rows whose lists hold it, and no other; what lies past an end is no part of a list."""
    q, k, v, paths = problem(200, 90, 25, 19, 2, 8)
    want = run.tree_attention(q, k, v, paths, 2)
    k, v = k.clone(), v.clone()
    k[17], v[17] = torch.nan, torch.nan
    got = run.tree_attention(q, k, v, paths, 2)
    lists = [paths.nodes[p, :c] for p, c in zip(paths.path_of, paths.counts, strict=True)]
    touched = torch.tensor([bool((seen == 17).any()) for seen in lists])
    assert 0 < int(touched.sum()) < 200
    assert got[touched].isnan().all()
    assert_same_bits(got[~touched], want[~touched])


def test_large_scores():
    """The largest score is taken off: exponentials neither overflow nor all vanish."""
    q, k, v, paths = problem(40, 30, 5, 9, 2, 16)
    want = oracle((q * 300).double(), k.double(), v.double(), paths, 2)
    for run in (cpu, eager):
        assert_close(run.tree_attention(q * 300, k, v, paths, 2), want, "op")


@given(st.data())
def test_rows_stand_alone(data):
    """Order, splitting and the number of threads change no bit of a row."""
    rows = data.draw(st.integers(2, 150))
    q, k, v, paths = problem(rows, 40, 7, data.draw(st.integers(1, 40)), 2, data.draw(st.integers(1, 20)))
    whole = tree_attention(q, k, v, paths, 2)
    order = torch.randperm(rows)
    assert_same_bits(tree_attention(q[order], k, v, part(paths, order), 2), whole[order])
    at = data.draw(st.integers(1, rows - 1))
    halves = [tree_attention(q[s], k, v, part(paths, s), 2) for s in (slice(at), slice(at, None))]
    assert_same_bits(torch.cat(halves), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert_same_bits(tree_attention(q, k, v, paths, 2), whole)
    finally:
        torch.set_num_threads(threads)


def test_no_rows():
    q, k, v, paths = problem(5, 9, 2, 4, 2, 8)
    none = part(paths, slice(0))
    for run in (cpu, eager):
        assert run.tree_attention(q[:0], k, v, none, 2).shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_rows_run_in_pytorch(dtype: torch.dtype):
    q, k, v, paths = problem(20, 30, 5, 9, 2, 16, dtype=dtype)
    got = tree_attention(q, k, v, paths, 2)
    assert got.dtype is dtype
    assert_close(got, oracle(q.double(), k.double(), v.double(), paths, 2), "chain")


# -- backward ---------------------------------------------------------------------------------------------


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, paths: Paths, heads: int) -> list[Tensor]:
    """Into slices of wider rows, as the tower has them; what they held before is no part of the result."""
    wide = [torch.full((len(t), 3 * t.shape[1]), torch.nan, dtype=q.dtype) for t in (q, k, v)]
    out = [w.chunk(3, dim=1)[1] for w in wide]
    tree_attention_bwd(grad, q, k, v, paths, heads, (out[0], out[1], out[2]))
    for w in wide:
        assert all(bool(w.chunk(3, dim=1)[i].isnan().all()) for i in (0, 2)), "written beside the slice"
    return out


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_matches_oracle(shape: tuple, dtype: torch.dtype, isa: str):
    *given_, paths = problem(*shape, dtype=dtype)
    grad = torch.randn(given_[0].shape).to(dtype)
    want = oracle_bwd(grad.double(), *(t.double() for t in given_), paths, shape[4])
    for backend in ("native", "eager"):
        with sb.backend(backend):
            got = gradients(grad, *given_, paths, shape[4])
        for name, mine, theirs in zip(("queries", "keys", "values"), got, want, strict=True):
            if shape[0] == 1 and name != "values":  # one key: its probability is 1 whatever the score
                assert not mine.any()
                continue
            assert_close(mine.contiguous(), theirs, "op_grad", context=f"{name} {backend} {isa}")


def test_gradient_of_keys_in_no_list_is_zero():
    q, k, v, paths = problem(40, 30, 5, 9, 2, 16)
    free = Paths(paths.nodes % 29, paths.path_of, paths.counts)
    for backend in ("native", "eager"):
        with sb.backend(backend):
            _, grad_k, grad_v = gradients(torch.ones_like(q), q, k, v, free, 2)
        assert not grad_k[29].any() and not grad_v[29].any() and grad_k[:29].any() and grad_v[:29].any()


def test_threads_change_no_bit_of_a_gradient():
    q, k, v, paths = problem(200, 40, 7, 20, 4, 16)
    grad, threads, found = torch.randn(q.shape), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradients(grad, q, k, v, paths, 4))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_same_bits(a.contiguous(), b.contiguous())


def test_gradient_of_no_rows_is_zero():
    q, k, v, paths = problem(5, 9, 2, 4, 2, 8)
    grads = gradients(q[:0], q[:0], k, v, part(paths, slice(0)), 2)
    assert grads[0].shape == (0, 16) and not grads[1].any() and not grads[2].any()


BAD = {
    "a path beyond the keys": lambda q, k, v, p: (q, k, v, p._replace(nodes=p.nodes + 85)),
    "a negative path": lambda q, k, v, p: (q, k, v, p._replace(nodes=p.nodes - 60)),
    "no such path": lambda q, k, v, p: (q, k, v, p._replace(path_of=p.path_of + 24)),
    "a row without keys": lambda q, k, v, p: (q, k, v, p._replace(counts=p.counts - 1)),
    "more keys than places": lambda q, k, v, p: (q, k, v, p._replace(counts=p.counts + 1)),
    "another dtype": lambda q, k, v, p: (q, k.double(), v, p),
    "a half type": lambda q, k, v, p: (q.half(), k.half(), v.half(), p),
    "another width": lambda q, k, v, p: (q, k[:, :8], v, p),
    "fewer values than keys": lambda q, k, v, p: (q, k, v[:50], p),
}


@pytest.mark.parametrize("case", BAD)
def test_the_core_refuses(case: str):
    """The Python side checks nothing here; memory outside of the rows is still never read."""
    with pytest.raises(ValueError, match="tree_attention: "):
        cpu.tree_attention(*BAD[case](*problem(200, 90, 25, 19, 2, 8)), 2)


@pytest.mark.parametrize("case", BAD)
def test_the_core_refuses_in_the_backward_pass(case: str):
    q, k, v, p = BAD[case](*problem(200, 90, 25, 19, 2, 8))
    out = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with pytest.raises(ValueError, match="tree_attention"):
        cpu.tree_attention_bwd(torch.ones_like(q), q, k, v, p, 2, out)


@pytest.mark.parametrize("which", range(4), ids=["grad_out", "grad_q", "grad_k", "grad_v"])
def test_the_core_refuses_gradients_of_other_shapes(which: int):
    q, k, v, p = problem(20, 30, 5, 9, 2, 8)
    rows = [torch.empty_like(t) for t in (q, q, k, v)]
    rows[which] = rows[which][:-1]
    with pytest.raises(ValueError, match="shapes do not fit"):
        cpu.tree_attention_bwd(rows[0], q, k, v, p, 2, (rows[1], rows[2], rows[3]))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        cpu.tree_attention(*problem(20, 30, 5, 9, 2, 8), 3)
