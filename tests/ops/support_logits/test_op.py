"""ops/support_logits: oracle, range of the exponential, gradients, operator contract, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import support_logits
from semobridge_ext.runtime import backend as _backend
from tests.support.assertions import assert_close, assert_figures, assert_same_bits
from tests.support.peaks import added
from tests.support.samples import DTYPES
from tests.support.support_problems import oracle, problem, unit

CHUNK = 1024  # kSupportChunk of csrc/support_logits/support_logits.h
# N, S, C, D: one row, uneven tiles and panels, classes over several chunks, more classes than keys,
# several query blocks, groups of many and of few panels.
SHAPES = [
    (1, 1, 1, 1),
    (1, 700, 5, 96),
    (2, 33, 4, 17),
    (15, 1024, 1, 40),
    (29, 3 * CHUNK + 5, 2, 24),
    (57, 2 * CHUNK + 77, 300, 33),
    (13, 500, 2000, 64),
    (1100, 70, 7, 16),
    (5, 40, 3, 2500),
]


def touched(labels: Tensor, c: int) -> Tensor:
    return torch.bincount(labels, minlength=c) > 0


# -- forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_forward_matches_oracle(shape, weighted: bool, isa: str):
    q, k, labels, w = problem(*shape)
    w = w if weighted else None
    copies = [t.clone() for t in (q, k, labels)]
    got = support_logits(q, k, labels, shape[2], beta=5.5, weights=w)
    want = oracle(q, k, labels, shape[2], 5.5, w)
    full = touched(labels, shape[2])
    assert_close(got[:, full], want[:, full], "op", context=f"{shape} {isa}")
    assert not got[:, ~full].any(), "a class without keys must be 0"
    for before, after in zip(copies, (q, k, labels), strict=True):
        assert torch.equal(before, after), "an input was modified"


@pytest.mark.parametrize("key_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes(dtype: torch.dtype, key_dtype: torch.dtype, isa: str):
    q, k, labels, w = problem(21, 1500, 6, 45, dtype, key_dtype)
    got = support_logits(q, k, labels, 6, beta=3.0, weights=w.to(key_dtype))
    assert got.dtype is dtype
    assert_close(got, oracle(q, k, labels, 6, 3.0, w.to(key_dtype)), "op", context=isa)


@pytest.mark.parametrize("layout", ["strided", "transposed", "sliced", "expanded"])
def test_any_layout(layout: str):
    q, k, labels, _ = problem(6, 90, 4, 20)
    laid = {
        "strided": lambda x: torch.stack([x, x], -1).flatten(1)[:, ::2],
        "transposed": lambda x: x.T.contiguous().T,
        "sliced": lambda x: torch.cat([x, x], 1)[:, 20:],
        "expanded": lambda x: x[:1].expand(*x.shape),
    }[layout]
    got = support_logits(laid(q), laid(k), labels, 4, beta=2.0)
    assert_close(got, oracle(laid(q), laid(k), labels, 4, 2.0), "op", context=layout)


def test_eager_backend_and_reference_match_oracle():
    q, k, labels, w = problem(300, 900, 7, 40, torch.float64)
    want = oracle(q, k, labels, 7, 5.5, w)
    assert_close(sb.reference.support_logits(q, k, labels, 7, beta=5.5, weights=w), want, "op")
    with sb.backend("eager"):
        assert_close(support_logits(q, k, labels, 7, beta=5.5, weights=w), want, "op")


@pytest.mark.parametrize("shape", [(0, 5, 3, 4), (5, 0, 3, 4), (0, 0, 1, 1)], ids=str)
def test_empty(shape):
    q, k, labels, _ = problem(*shape)
    got = support_logits(q, k, labels, shape[2])
    assert got.shape == (shape[0], shape[2]) and not got.any()


# -- range of the exponential ------------------------------------------------------------------------


def exponential(x: Tensor) -> Tensor:
    """exp of float32 values through the op: a query of 1, keys x + 1 (exact), a class for each."""
    keys = (x.double() + 1).to(x.dtype)
    assert torch.equal(keys.double() - 1, x.double())
    one = torch.ones(1, 1, dtype=x.dtype)
    return support_logits(one, keys[:, None], torch.arange(len(x)), len(x))[0]


def test_exponential_is_good_to_an_ulp(isa: str):
    x = torch.arange(-87 * 1024, 88 * 1024, 7, dtype=torch.float32) / 1024
    for wide in (x, x.double() * 8):
        want = torch.exp(wide.double())
        error = (exponential(wide).double() - want) / want
        assert_figures(error, torch.zeros(len(x)), "exponential", dtype=wide.dtype, scale=1.0, context=isa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_range_is_as_stated(dtype: torch.dtype, isa: str):
    low, high = (-87.68, 88.37) if dtype is torch.float32 else (-708.74, 709.43)
    inside = torch.tensor([math.ceil(low), math.floor(high)], dtype=dtype)
    got = exponential(inside)
    assert bool((got > 0).all()) and bool(torch.isfinite(got).all())
    assert float(exponential(torch.tensor([math.floor(low)], dtype=dtype))) == 0
    with pytest.raises(ValueError, match=r"query 0, class 0; normalise .* lower beta"):
        exponential(torch.tensor([math.ceil(high)], dtype=dtype))


@pytest.mark.parametrize("beta", [0.0, 0.1, 50.0, 400.0])
def test_unit_rows_never_overflow(beta: float, isa: str):
    k = unit(400, 32)
    labels = torch.arange(400) % 5
    got = support_logits(k, k, labels, 5, beta=beta)
    assert torch.isfinite(got).all()
    want = oracle(k, k, labels, 5, beta)
    # What the float32 score of 32 products is off by, beta multiplies in the exponent. Below 1e-30 float32
    # comes to its end.
    error = (got.double() - want) / ((6 + beta) * want).clamp(min=2e-24)
    assert_figures(error, torch.zeros(400, 5), "exponent", dtype=torch.float32, scale=1.0, context=isa)


def test_overflow_is_refused_and_named(isa: str):
    q, k = unit(4, 8), unit(30, 8)
    q[2], k[7] = 40 * k[7], 5 * k[7]
    labels = torch.arange(30) % 3
    with pytest.raises(ValueError, match="query 2, class 1"):
        support_logits(q, k, labels, 3)
    half = torch.ones(1, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="float16"):
        support_logits(half, half.expand(70000, 4) / 4, torch.zeros(70000).long(), 1)


def test_nan_and_infinity_stay_in_their_row_and_class(isa: str):
    q, k, labels, _ = problem(20, 300, 5, 24)
    clean = support_logits(q, k, labels, 5)
    bad_q, bad_k = q.clone(), k.clone()
    bad_q[3], bad_q[17, 0] = float("nan"), float("inf")
    got = support_logits(bad_q, k, labels, 5)
    keep = torch.ones(20, dtype=torch.bool)
    keep[[3, 17]] = False
    assert_same_bits(got[keep], clean[keep])
    assert got[3].isnan().all() and not torch.isfinite(got[17]).all()
    bad_k[11] = float("nan")
    got = support_logits(q, bad_k, labels, 5)
    keep = torch.arange(5) != labels[11]
    assert_same_bits(got[:, keep], clean[:, keep])
    assert got[:, ~keep].isnan().all()


def test_without_a_kernel_too_a_bad_key_stays_in_its_class():
    q, k, labels, w = problem(20, 700, 5, 24)
    k[11], k[400, 3] = float("nan"), float("inf")
    with sb.backend("eager"):
        got = support_logits(q, k, labels, 5, weights=w)
    keep = (torch.arange(5) != labels[11]) & (torch.arange(5) != labels[400])
    assert keep.any() and labels[11] != labels[400], "the problem tells nothing"
    assert_close(got[:, keep], oracle(q, k, labels, 5, 1.0, w)[:, keep], "op")
    assert got[:, labels[11]].isnan().all() and not torch.isfinite(got[:, labels[400]]).all()


def test_without_a_kernel_too_an_overflow_names_its_class():
    q, k = unit(4, 8), unit(30, 8)
    q[2], k[7] = 40 * k[7], 5 * k[7]
    with sb.backend("eager"), pytest.raises(ValueError, match="query 2, class 1"):
        support_logits(q, k, torch.arange(30) % 3, 3)


# -- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 50, 4, 12), (700, 2500, 9, 16)], ids=str)
def test_gradients_match_autograd_of_the_formula(shape, dtype: torch.dtype):
    q, k, labels, w = problem(*shape, dtype)
    grad = torch.randn(shape[0], shape[2]).to(dtype)
    mine = [t.to(dtype).requires_grad_() for t in (q, k, w)]
    theirs = [t.detach().double().requires_grad_() for t in mine]
    support_logits(mine[0], mine[1], labels, shape[2], beta=4.0, weights=mine[2]).backward(grad)
    oracle(theirs[0], theirs[1], labels, shape[2], 4.0, theirs[2]).backward(grad.double())
    for a, b, name in zip(mine, theirs, ("queries", "keys", "weights"), strict=True):
        assert a.grad.dtype is dtype
        assert_close(a.grad, b.grad, "op_grad", context=name)


def test_gradcheck():
    q, k, labels, w = problem(3, 7, 3, 5, torch.float64)
    inputs = tuple(t.double().requires_grad_() for t in (q, k, w))
    assert torch.autograd.gradcheck(
        lambda q, k, w: support_logits(q, k, labels, 3, beta=2.0, weights=w), inputs
    )
    assert torch.autograd.gradcheck(lambda q, k: support_logits(q, k, labels, 3, beta=2.0), inputs[:2])


def test_only_wanted_gradients_are_made():
    q, k, labels, _ = problem(4, 20, 3, 6)
    support_logits(q, k.requires_grad_(), labels, 3).sum().backward()
    assert q.grad is None and k.grad is not None and k.grad.any()
    with torch.no_grad():
        assert not support_logits(q, k, labels, 3).requires_grad


def test_gradient_ignores_autocast():
    q, k, labels, _ = problem(8, 64, 3, 16)
    grads = []
    for enabled in (False, True):
        x = q.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = support_logits(x, k, labels, 3, beta=2.0)
            out.square().sum().backward()
        grads.append(x.grad)
    assert_same_bits(grads[1], grads[0])


def test_function_transforms():
    q, k, labels, _ = problem(5, 30, 3, 8, torch.float64)
    got = torch.func.jacrev(lambda x: support_logits(x, k, labels, 3).sum(0))(q)
    want = torch.func.jacrev(lambda x: sb.reference.support_logits(x, k, labels, 3).sum(0))(q)
    assert_close(got, want, "op_grad")


def test_function_transforms_of_weights_twice_and_over_labels():
    q, k, labels, w = problem(2, 9, 3, 4, torch.float64)
    w = w.double()

    def total(weights: Tensor) -> Tensor:
        return support_logits(q, k, labels, 3, beta=2.0, weights=weights.square()).square().sum()

    def wanted(weights: Tensor) -> Tensor:
        return oracle(q, k, labels, 3, 2.0, weights.square()).square().sum()

    want = torch.autograd.functional.hessian(wanted, w)
    assert_close(torch.func.jacrev(torch.func.grad(total))(w), want, "op_grad")
    many = torch.stack([labels, labels.flip(0), (labels + 1) % 3])
    got = torch.func.vmap(lambda y: support_logits(q, k, y, 3, beta=2.0, weights=w))(many)
    assert_close(got, torch.stack([oracle(q, k, y, 3, 2.0, w) for y in many]), "op")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_function_transforms_sum_half_rows_in_float32(dtype: torch.dtype):
    q, k, labels, w = problem(6, 300, 2, 16, dtype)
    got = torch.func.vmap(lambda x: support_logits(x[None], k, labels, 2, beta=2.0, weights=w)[0])(q)
    assert got.dtype is dtype
    assert_close(got, oracle(q, k, labels, 2, 2.0, w), "op")


# -- operator contract -------------------------------------------------------------------------------


# opcheck itself reads .grad of its own views; ends when torch stops doing so.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(dtype: torch.dtype, weighted: bool):
    q, k, labels, w = problem(5, 40, 3, 8, dtype)
    w = w.requires_grad_() if weighted else None
    arguments = (q.requires_grad_(), k.requires_grad_(), labels, w, None, None, 3, 1.5)
    torch.library.opcheck(torch.ops.semobridge.support_logits.default, arguments)


def test_compile_fullgraph():
    q, k, labels, w = problem(9, 100, 4, 16)
    torch._dynamo.reset()
    program = torch.compile(support_logits, fullgraph=True, backend="aot_eager")
    got = program(q, k, labels, 4, beta=2.0, weights=w)
    assert_same_bits(got, support_logits(q, k, labels, 4, beta=2.0, weights=w))


# -- properties --------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 2100), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_shapes_and_chunks_of_queries(n: int, s: int, c: int, d: int, seed: int):
    torch.manual_seed(seed)
    q, k, labels, w = problem(n, s, c, d)
    whole = support_logits(q, k, labels, c, beta=2.0, weights=w)
    full = touched(labels, c)
    assert_close(whole[:, full], oracle(q, k, labels, c, 2.0, w)[:, full], "op")
    cut = n // 3
    parts = [support_logits(part, k, labels, c, beta=2.0, weights=w) for part in (q[:cut], q[cut:])]
    assert torch.equal(torch.cat(parts), whole), "a query's result depends on its neighbours"


def test_permuting_keys_and_duplicating_them(isa: str):
    q, k, labels, w = problem(30, 2500, 11, 32)
    want = oracle(q, k, labels, 11, 5.5, w)
    order = torch.randperm(2500)
    assert_close(support_logits(q, k[order], labels[order], 11, beta=5.5, weights=w[order]), want, "op")
    twice = support_logits(
        q, torch.cat([k, k]), torch.cat([labels, labels]), 11, beta=5.5, weights=w.repeat(2)
    )
    assert_close(twice, 2 * want, "op")


@pytest.mark.parametrize("n", [1, 40, 1500])
def test_threads_do_not_matter(n: int, isa: str):
    q, k, labels, w = problem(n, 5000, 3, 64)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(support_logits(q, k, labels, 3, beta=5.5, weights=w))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_one_class_of_many_keys_keeps_its_digits(isa: str):
    """200 000 equal terms in one class: a plain float32 chain would lose three digits."""
    q = torch.ones(1, 1)
    got = support_logits(q, torch.full((200_000, 1), 0.9), torch.zeros(200_000).long(), 1)
    want = 200_000 * torch.exp(torch.tensor([[0.9]]).double() - 1)
    assert_close(got, want, "many_terms", context=isa)


@pytest.mark.parametrize(
    ("n", "s", "c", "d", "dtype"),
    [
        (1, 200_000, 500, 8, torch.float32),  # the votes of all keys would take 400 MB
        (1, 200_000, 20, 500, torch.float16),  # and so would all keys in float32
    ],
    ids=["votes", "widened keys"],
)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_few_queries_take_little_memory_without_a_kernel(n, s, c, d, dtype, backward: bool):
    q, labels = torch.ones(n, d, dtype=dtype), torch.arange(s) % c
    k = torch.full((s, d), 1 / 64, dtype=dtype)
    q.requires_grad_(backward)

    def call() -> Tensor:
        out = support_logits(q, k, labels, c, beta=0.01)
        return torch.autograd.grad(out.sum(), q)[0] if backward else out

    with sb.backend("eager"):
        support_logits(q.detach(), k[:300], labels[:300], c, beta=0.01)
        extra, _ = added(call)
    assert extra < 48 << 20, f"{extra / 2**20:.0f} MiB beside the arguments"


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 39])
@pytest.mark.parametrize("label", [-1, 4, 2**40])
@pytest.mark.parametrize("backend", ["native", "eager"])
def test_first_bad_label_is_named(position: int, label: int, backend: str):
    q, k, labels, _ = problem(2, 40, 4, 6)
    labels[position] = label
    labels[39] = label
    text = rf"support_logits: labels must lie in 0\.\.3, got {label} at position {position};"
    with sb.backend(backend), pytest.raises(ValueError, match=text):
        support_logits(q, k, labels, 4)


Q, K, Y = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
BAD = [
    ({"queries": [1.0]}, TypeError, "queries must be a torch.Tensor"),
    ({"queries": torch.ones(2, 3).int()}, TypeError, "queries must be float32"),
    ({"queries": torch.ones(2, 4)}, ValueError, "queries must have width 3"),
    ({"queries": torch.ones(3)}, ValueError, r"queries must be \[N, D\]"),
    ({"keys": torch.ones(4, 3).to_sparse()}, TypeError, "keys must be a dense tensor"),
    ({"keys": torch.ones(4)}, ValueError, r"keys must be \[S, D\]"),
    ({"keys": torch.ones(4, 0)}, ValueError, r"keys must be \[S, D\]"),
    ({"labels": Y.float()}, TypeError, "labels must be whole numbers"),
    ({"labels": [0, 0, 0, 0.5]}, TypeError, "labels must be whole numbers"),
    ({"labels": Y[:3]}, ValueError, r"labels must be \[4\]"),
    ({"labels": Y.to("meta")}, ValueError, "labels must be on cpu"),
    ({"num_classes": 0}, ValueError, "num_classes must be ≥ 1"),
    ({"num_classes": 2.0}, TypeError, "num_classes must be an int"),
    ({"beta": -1.0}, ValueError, "beta must be ≥ 0 and finite"),
    ({"beta": float("inf")}, ValueError, "beta must be ≥ 0 and finite"),
    ({"beta": torch.tensor(1.0)}, TypeError, "beta must be a number"),
    ({"weights": torch.ones(3)}, ValueError, r"weights must be \[4\]"),
    ({"weights": torch.ones(4).long()}, TypeError, "weights must be float32"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[b[2] for b in BAD])
def test_bad_inputs(change: dict, error: type[Exception], text: str):
    arguments = {"queries": Q, "keys": K, "labels": Y, "num_classes": 2, **change}
    with pytest.raises(error, match=text) as caught:
        support_logits(**arguments)
    assert str(caught.value).startswith("support_logits: ") and ";" in str(caught.value)


def test_the_kernel_ran(isa: str):
    assert _backend._C.active_isa() == isa
