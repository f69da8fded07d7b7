"""ops/symmetric_kl: oracle, gradients, operator contract, invariances, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import semobridge_ext as sb
from semobridge_ext.ops import symmetric_kl
from tests.support.assertions import assert_close, assert_figures, assert_same_bits
from tests.support.samples import DTYPES

SHAPES = ((1, 5), (3, 17), (70, 33), (5, 1000))  # rows, classes


def oracle(a: Tensor, b: Tensor, temperature: float = 1.0) -> Tensor:
    """float64, both divergences by their definition; shares no formula with the kernels."""
    log_p, log_q = (torch.log_softmax(x.double() / temperature, dim=1) for x in (a, b))
    forward = torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    backward = torch.nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return (forward + backward) / 2


def problem(n: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, classes).to(dtype), (torch.randn(n, classes) + 20).to(dtype)


def gradients(a: Tensor, b: Tensor, temperature: float = 1.0) -> tuple[Tensor, ...]:
    """Of the sum over rows: those of the mean shrink with the batch, below what float16 holds."""
    leaves = [t.detach().clone().requires_grad_() for t in (a, b)]
    return torch.autograd.grad(symmetric_kl(*leaves, temperature=temperature) * len(a), leaves)


# -- forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,classes", SHAPES)
def test_forward_matches_oracle(n: int, classes: int, dtype: torch.dtype, temperature: float, isa: str):
    a, b = problem(n, classes, dtype)
    copies = a.clone(), b.clone()
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    want = oracle(a, b, temperature).reshape(1)
    for backend in ("native", "eager"):
        with sb.backend(backend):
            got = symmetric_kl(a, b, temperature=temperature)
        assert got.dtype is compute and got.shape == ()
        assert_close(got.reshape(1), want, "op", context=f"{backend} {isa}")
    assert torch.equal(a, copies[0]) and torch.equal(b, copies[1]), "an input was modified"


def test_reference_matches_oracle():
    a, b = problem(20, 33, torch.float64)
    for t in (0.5, 1.0, 4.0):
        got = sb.reference.symmetric_kl(a, b, temperature=t)
        assert_close(got.reshape(1), oracle(a, b, t).reshape(1), "op")


@pytest.mark.parametrize("gap", [1e-3, 1e-4])
def test_nearly_equal_rows_keep_their_digits(gap: float, isa: str):
    """The divergence of near rows is of second order: Σp·d alone would drown it in rounding."""
    a = torch.randn(9, 64)
    b = a + gap * torch.randn(9, 64)
    assert_figures(symmetric_kl(a, b), oracle(a, b), "near_divergence", dtype=torch.float32)
    assert float(symmetric_kl(a, a)) == 0


def test_extreme_logits(isa: str):
    a = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    b = torch.tensor([[-1e4, 0.0, 1e4], [1.0, 2.0, 3.0]])
    assert_close(symmetric_kl(a, b).reshape(1), oracle(a, b).reshape(1), "op")
    assert all(g.isfinite().all() for g in gradients(a, b))
    low = symmetric_kl(a[1:], b[1:], temperature=1e-3)
    assert_close(low.reshape(1), oracle(a[1:], b[1:], 1e-3).reshape(1), "op")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 16])
def test_nan_stays_in_its_row(column: int, poison: float, isa: str):
    a, b = problem(6, 17)
    clean = gradients(a, b)
    a[2, column] = poison
    assert not symmetric_kl(a, b).isfinite()
    keep = torch.arange(6) != 2
    for got, want in zip(gradients(a, b), clean, strict=True):
        assert got[2].isnan().any(), "the poisoned row must not look healthy"
        assert_same_bits(got[keep], want[keep], "rows beside the poisoned one")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch_and_one_class(dtype: torch.dtype):
    a = torch.empty(0, 5, dtype=dtype, requires_grad=True)
    got = symmetric_kl(a, a)
    assert float(got.detach()) == 0 and torch.autograd.grad(got, a)[0].shape == (0, 5)
    one = symmetric_kl(torch.randn(4, 1).to(dtype), torch.randn(4, 1).to(dtype))
    assert float(one) == 0


# -- invariances -------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), classes=st.integers(2, 70), data=st.data())
def test_symmetry_and_batch(n: int, classes: int, data: st.DataObject):
    torch.manual_seed(n * 101 + classes)
    a, b = problem(n, classes)
    grad_a, grad_b = gradients(a, b)
    other_b, other_a = gradients(b, a)
    assert_same_bits(other_a, grad_a, "exchanged sides")
    assert_same_bits(other_b, grad_b, "exchanged sides")
    cut = data.draw(st.integers(0, n))
    program = torch.ops.semobridge.symmetric_kl
    for k, whole in enumerate(program(a, b, 1.0)):
        merged = torch.cat([program(a[:cut], b[:cut], 1.0)[k], program(a[cut:], b[cut:], 1.0)[k]])
        assert_same_bits(merged, whole, f"cut at {cut}")


def test_threads_and_strides_do_not_matter(isa: str):
    a, b = problem(300, 257)
    want, grads = symmetric_kl(a, b), gradients(a, b)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(symmetric_kl(a, b), want)
        for got, expected in zip(gradients(a, b), grads, strict=True):
            assert_same_bits(got, expected)
    wide = torch.randn(300, 600)
    wide[:, 7:264] = a
    assert_same_bits(symmetric_kl(wide[:, 7:264], b), want, "rows apart")
    assert_same_bits(symmetric_kl(a.T.contiguous().T, b), want, "columns apart")
    assert_same_bits(symmetric_kl(a[:1].expand(4, -1), b[:4]), symmetric_kl(a[[0] * 4], b[:4]), "expanded")


# -- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,classes", SHAPES)
def test_gradients_match_oracle(n: int, classes: int, dtype: torch.dtype, temperature: float, isa: str):
    a, b = problem(n, classes, dtype)
    leaves = [t.double().requires_grad_() for t in (a, b)]
    wants = torch.autograd.grad(oracle(*leaves, temperature) * n, leaves)
    for backend in ("native", "eager"):
        with sb.backend(backend):
            gots = gradients(a, b, temperature)
        for name, got, want in zip("ab", gots, wants, strict=True):
            assert got.dtype is dtype
            assert_close(got.flatten(), want.flatten(), "op_grad", context=f"{backend} grad_{name} {isa}")


def test_gradient_in_one_side_only():
    a, b = problem(7, 9)
    both = gradients(a, b)
    for side in (0, 1):
        leaves = [a.clone(), b.clone()]
        leaves[side].requires_grad_()
        (symmetric_kl(*leaves) * 7).backward()
        assert_same_bits(leaves[side].grad, both[side])
        assert leaves[1 - side].grad is None


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_gradcheck(backend: str):
    a, b = (t.requires_grad_() for t in problem(4, 6, torch.float64))
    with sb.backend(backend):
        assert torch.autograd.gradcheck(lambda x, y: symmetric_kl(x, y, temperature=2.0), (a, b))


# -- the operator contract ---------------------------------------------------------------------------


# opcheck itself reads .grad of its own views; ends when torch stops doing so.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck():
    a, b = (t.requires_grad_() for t in problem(5, 12))
    results = torch.library.opcheck(torch.ops.semobridge.symmetric_kl.default, (a, b, 2.0))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_gradients_lie_as_the_operator_says(backend: str):
    """Logits that lie column by column: compiled code refused the gradients of plain PyTorch."""
    a, b = (t.T.contiguous().T for t in problem(5, 12))
    with sb.backend(backend):
        _, stats = torch.ops.semobridge.symmetric_kl(a, b, 2.0)
        args = torch.ones(5), a, b, stats, 2.0, True, True, False
        torch.library.opcheck(
            torch.ops.semobridge.symmetric_kl_bwd.default, args, test_utils="test_faketensor"
        )


def test_compile_fullgraph_and_dynamic_batch():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: symmetric_kl(x * 2, y), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (3, 5, 40):
        a, b = (t.requires_grad_() for t in problem(n, 12))
        got, want = compiled(a, b), symmetric_kl(a * 2, b)
        assert_same_bits(got.detach(), want.detach())
        for mine, other in zip(
            torch.autograd.grad(got, (a, b)), torch.autograd.grad(want, (a, b)), strict=True
        ):
            assert_same_bits(mine, other)


def test_function_transforms():
    a, b = problem(4, 7)
    leaves = [t.double().requires_grad_() for t in (a, b)]
    wants = torch.autograd.grad(oracle(*leaves), leaves)
    for got, want in zip(torch.func.grad(symmetric_kl, argnums=(0, 1))(a, b), wants, strict=True):
        assert_close(got, want, "op_grad")
    mapped = torch.func.vmap(symmetric_kl)(a[None].expand(3, -1, -1), b[None].expand(3, -1, -1))
    assert_close(mapped, oracle(a, b).expand(3).clone(), "op")


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_float32(low: torch.dtype):
    a, b = problem(9, 20)
    want = symmetric_kl(a, b)
    for backend in ("native", "eager"):
        with torch.autocast("cpu", dtype=low), sb.backend(backend):
            assert_close(symmetric_kl(a, b).reshape(1), oracle(a, b).reshape(1), "op")
    assert want.dtype is torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_shapes_on_a_device_that_is_not_there(backend: str, dtype: torch.dtype):
    with FakeTensorMode(), sb.backend(backend):
        a, b = (torch.empty(5, 9, device="cuda", dtype=dtype) for _ in range(2))
        got = symmetric_kl(a, b)
        assert got.is_cuda and got.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        rows, stats = torch.ops.semobridge.symmetric_kl(a, b, 1.0)
        grads = torch.ops.semobridge.symmetric_kl_bwd(rows, a, b, stats, 1.0, True, False, False)
        assert [tuple(g.shape) for g in grads] == [(5, 9), (0, 0)] and grads[0].dtype is dtype


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,options,error,words",
    [
        ((torch.zeros(3), torch.zeros(3)), {}, ValueError, "logits_a must be .N, K."),
        ((torch.zeros(2, 0), torch.zeros(2, 0)), {}, ValueError, "K > 0"),
        ((torch.zeros(2, 3), torch.zeros(3, 2)), {}, ValueError, r"logits_b must be \[2, 3\]"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).double()), {}, TypeError, "logits_b must be torch.float32"),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3).long()), {}, TypeError, "logits_a"),
        (([[0.0]], torch.zeros(1, 1)), {}, TypeError, "logits_a"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, device="meta")), {}, ValueError, "logits_b"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {"temperature": 0.0}, ValueError, "temperature must be pos"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {"temperature": float("nan")}, ValueError, "temperature"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {"temperature": True}, TypeError, "temperature must be a"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {"temperature": "1"}, TypeError, "temperature must be a"),
    ],
)
def test_bad_input(arguments, options, error, words):
    with pytest.raises(error, match=words):
        symmetric_kl(*arguments, **options)
