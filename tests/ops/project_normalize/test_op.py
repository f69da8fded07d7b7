"""ops/project_normalize: oracle, gradients, operator contract, invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import project_normalize
from tests.support.assertions import assert_close, assert_figures, assert_same_bits
from tests.support.samples import DTYPES, FORWARD, VARIANTS, Sample

HALVES = (torch.bfloat16, torch.float16)


def oracle(x: Tensor, matrix: Tensor, bias: Tensor | None, scale=1.0, normalize=True) -> Tensor:
    """float64, written out here: independent of reference/ and of the layout of the inputs."""
    n = torch.einsum("...k,km->...m", x.double(), matrix.double())
    if bias is not None:
        n = n + bias.double()
    if not normalize:
        return scale * n
    return scale * n / n.square().sum(-1, keepdim=True).sqrt()


# -- forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", FORWARD, ids=str)
def test_forward_matches_oracle(sample: Sample, dtype: torch.dtype, isa: str):
    x, matrix, bias = sample.make(dtype)
    copies = [None if t is None else t.clone() for t in (x, matrix, bias)]
    got = project_normalize(x, matrix, bias=bias, **sample.options)
    assert got.dtype is dtype and got.is_contiguous()
    assert_close(got, oracle(x, matrix, bias, **sample.options), "op", context=f"{sample} {isa}")
    for before, after in zip(copies, (x, matrix, bias), strict=True):
        assert after is None or torch.equal(before, after), "an input was modified"


@pytest.mark.parametrize("sample", FORWARD, ids=str)
def test_reference_and_eager_backend_match_oracle(sample: Sample):
    x, matrix, bias = sample.make(torch.float64)
    want = oracle(x, matrix, bias, **sample.options)
    reference = sb.reference.project_normalize(x, matrix, bias=bias, **sample.options)
    assert_close(reference, want, "op", context=f"reference {sample}")
    with sb.backend("eager"):
        got = project_normalize(x, matrix, bias=bias, **sample.options)
    assert_close(got, want, "op", context=f"eager {sample}")


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("matrix_dtype", DTYPES, ids=str)
def test_mixed_dtypes_follow_x(x_dtype: torch.dtype, matrix_dtype: torch.dtype):
    x = torch.randn(9, 40).to(x_dtype)
    matrix, bias = torch.randn(40, 35).to(matrix_dtype), torch.randn(35).to(matrix_dtype)
    got = project_normalize(x, matrix, bias=bias)
    assert got.dtype is x_dtype
    # A float64 matrix under a narrower x is read in float32, as documented.
    read = torch.float64 if x_dtype is torch.float64 else torch.float32
    assert_close(got, oracle(x, matrix.to(read), bias.to(read)), "op")


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e-25, 1e-15, 1e15, 1e19, 1e25, 1e35])
def test_squares_that_leave_float32(magnitude: float, isa: str):
    x = torch.randn(30, 31) * magnitude
    matrix = torch.randn(31, 33) / 6
    got = project_normalize(x, matrix)
    if magnitude > 1e-36:
        assert_close(got, oracle(x, matrix, None), "op", context=f"{magnitude} {isa}")
    # Subnormal products keep few digits; the row still has unit length.
    assert_figures(got.double().norm(dim=-1), torch.ones(30), "length", dtype=torch.float32)


@pytest.mark.parametrize("magnitude", [1e-300, 1e-160, 1e160, 1e300])
def test_squares_that_leave_float64(magnitude: float, isa: str):
    x, matrix = torch.randn(30, 31).double(), torch.randn(31, 33).double() / 6
    got = project_normalize(x * magnitude, matrix)
    assert_close(got, oracle(x, matrix, None), "op", context=f"{magnitude} {isa}")


@pytest.mark.parametrize("n", [4, 61])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_row_is_zero(n: int, dtype: torch.dtype, isa: str):
    x, matrix = torch.randn(n, 31).to(dtype), torch.randn(31, 33).to(dtype)
    x[2] = 0
    got = project_normalize(x, matrix, scale=3.0)
    assert (got[2] == 0).all()
    keep = torch.arange(n) != 2
    assert_close(got[keep], oracle(x[keep], matrix, None, 3.0), "op")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("n", [4, 61])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_row(n: int, poison: float, dtype: torch.dtype, isa: str):
    x, matrix = torch.randn(n, 31).to(dtype), torch.randn(31, 33).to(dtype)
    clean = project_normalize(x, matrix)
    x[1, 30] = poison
    got = project_normalize(x, matrix)
    assert got[1].isnan().any(), "the poisoned row must not look healthy"
    keep = torch.arange(n) != 1
    assert_same_bits(got[keep], clean[keep], "rows beside the poisoned one")


@pytest.mark.parametrize("column", [0, 15, 32])
@pytest.mark.parametrize("backend", ["native", "eager"])
def test_nan_in_one_column_reaches_its_whole_row(column: int, backend: str):
    bias = torch.zeros(33)
    bias[column] = float("nan")
    x, matrix = torch.ones(2, 3), torch.zeros(3, 33)  # zeros behind the NaN, padding included
    with sb.backend(backend):
        assert project_normalize(x, matrix, bias=bias).isnan().all()


@pytest.mark.parametrize("lead", [(0,), (0, 5), (5, 0), (2, 0, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(lead: tuple[int, ...], dtype: torch.dtype):
    for options in ({}, {"bias": torch.zeros(4, dtype=dtype)}):
        got = project_normalize(torch.empty(*lead, 3, dtype=dtype), torch.eye(3, 4).to(dtype), **options)
        assert got.shape == (*lead, 4) and got.dtype is dtype


# -- invariances -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k,m", [(33, 31), (512, 160)])
def test_row_does_not_depend_on_its_batch(k: int, m: int, dtype: torch.dtype, isa: str):
    x, matrix = torch.randn(131, k).to(dtype), torch.randn(k, m).to(dtype)
    bias = torch.randn(131, m).to(dtype)
    whole = project_normalize(x, matrix, bias=bias)
    for begin, end in ((0, 1), (130, 131), (7, 10), (5, 33), (0, 29), (64, 131)):
        part = project_normalize(x[begin:end], matrix, bias=bias[begin:end])
        assert_same_bits(part, whole[begin:end], f"rows {begin}:{end} {isa}")


@pytest.mark.parametrize("n", [1, 20, 300])
def test_result_does_not_depend_on_threads(n: int, isa: str):
    x, matrix = torch.randn(n, 512), torch.randn(512, 513)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(project_normalize(x, matrix))
    for other in results[1:]:
        assert_same_bits(other, results[0], f"{n} rows, {isa}")


@given(n=st.integers(1, 70), k=st.integers(1, 70), m=st.integers(1, 70), data=st.data())
def test_permutation_scale_and_chunks(n: int, k: int, m: int, data: st.DataObject):
    torch.manual_seed(n * 10007 + k * 101 + m)
    x, matrix = torch.randn(n, k), torch.randn(k, m)
    whole = project_normalize(x, matrix)
    order = torch.randperm(n)
    assert_same_bits(project_normalize(x[order], matrix), whole[order], "permuted rows")
    # A power of two shifts exponents only, so even the rounding is the same.
    power = 2.0 ** data.draw(st.integers(-20, 20))
    assert_same_bits(project_normalize(x * power, matrix), whole, f"rows times {power}")
    cut = data.draw(st.integers(0, n))
    merged = torch.cat([project_normalize(x[:cut], matrix), project_normalize(x[cut:], matrix)])
    assert_same_bits(merged, whole, f"cut at {cut}")


# -- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", VARIANTS, ids=str)
def test_gradients_match_reference(sample: Sample, dtype: torch.dtype):
    inputs = [t for t in sample.make(dtype) if t is not None]
    weight = torch.randn(*sample.lead, sample.cols)
    ours = [t.detach().clone().requires_grad_() for t in inputs]
    theirs = [t.detach().double().requires_grad_() for t in inputs]

    def run(function, tensors):
        bias = tensors[2] if len(tensors) == 3 else None
        return function(tensors[0], tensors[1], bias=bias, **sample.options)

    (run(project_normalize, ours) * weight.to(dtype)).sum().backward()
    (run(sb.reference.project_normalize, theirs) * weight.to(dtype).double()).sum().backward()
    for name, mine, other in zip(("x", "matrix", "bias"), ours, theirs, strict=False):
        assert mine.grad.dtype is dtype
        # Bounds follow the largest entry of the whole gradient: sums over rows cancel in places.
        assert_close(mine.grad.flatten(), other.grad.flatten(), "op_grad", context=f"{name} {sample}")


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("sample", VARIANTS, ids=str)
def test_gradcheck(sample: Sample, backend: str):
    # gradcheck perturbs single elements, which expanded inputs do not have.
    inputs = [t.contiguous().requires_grad_() for t in sample.make(torch.float64) if t is not None]

    def run(x, matrix, bias=None):
        return project_normalize(x, matrix, bias=bias, **sample.options)

    with sb.backend(backend):
        assert torch.autograd.gradcheck(run, inputs)


def test_gradgradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, m: project_normalize(a, m, scale=2.0), (x, matrix))


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_gradient_of_zero_and_nan_rows(backend: str):
    x = torch.randn(4, 5)
    x[1], x[2, 0] = 0, float("nan")
    x.requires_grad_()
    with sb.backend(backend):
        project_normalize(x, torch.randn(5, 6)).sum().backward()
    assert (x.grad[1] == 0).all(), "the gradient of a zero row is defined as zero"
    assert x.grad[2].isnan().all()
    assert x.grad[[0, 3]].isfinite().all() and (x.grad[[0, 3]] != 0).any()


def test_no_graph_is_kept_without_gradients():
    x = torch.randn(3, 5)
    assert not project_normalize(x, torch.randn(5, 4)).requires_grad
    with torch.no_grad():
        assert not project_normalize(x.requires_grad_(), torch.randn(5, 4)).requires_grad


# -- the operator contract ---------------------------------------------------------------------------


# opcheck itself reads .grad of its own views; ends when torch stops doing so.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("sample", VARIANTS, ids=str)
def test_opcheck(sample: Sample):
    x, matrix, bias = sample.make(torch.float32)
    flat = x.reshape(-1, sample.rows).detach().requires_grad_()
    if bias is not None and bias.dim() > 1:
        bias = bias.expand(*sample.lead, sample.cols).reshape(-1, sample.cols)
    matrix = matrix.detach().requires_grad_()
    arguments = (flat, matrix, bias, sample.scale, sample.normalize)
    results = torch.library.opcheck(torch.ops.semobridge.project_normalize.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("sample", VARIANTS, ids=str)
def test_compile_fullgraph(sample: Sample):
    x, matrix, bias = sample.make(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(project_normalize, fullgraph=True, backend="aot_eager")
    got = compiled(x, matrix, bias=bias, **sample.options)
    assert_same_bits(got, project_normalize(x, matrix, bias=bias, **sample.options), str(sample))


def test_compile_gradients_and_dynamic_batch():
    torch._dynamo.reset()
    matrix = torch.randn(6, 7)
    compiled = torch.compile(
        lambda x: project_normalize(x, matrix).square().sum(-1) + x.sum(-1),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for n in (3, 5, 40):
        x = torch.randn(n, 6, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        compiled(x).sum().backward()
        (project_normalize(y, matrix).square().sum(-1) + y.sum(-1)).sum().backward()
        assert_same_bits(x.grad, y.grad, f"{n} rows")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_inductor():
    torch._dynamo.reset()
    x, matrix = torch.randn(5, 6), torch.randn(6, 7)
    compiled = torch.compile(lambda a: project_normalize(a * 2, matrix) + 1, fullgraph=True)
    assert_close(compiled(x), oracle(x * 2, matrix, None) + 1, "op")


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("low", HALVES, ids=str)
def test_autocast_keeps_float32(low: torch.dtype, backend: str):
    x, matrix = torch.randn(9, 64, requires_grad=True), torch.randn(64, 48)
    weight = torch.randn(9, 48)
    with torch.autocast("cpu", dtype=low), sb.backend(backend):
        got = project_normalize(x, matrix)
        (got * weight).sum().backward()
    assert got.dtype is torch.float32
    assert_close(got, oracle(x, matrix, None), "op")
    again = x.detach().double().requires_grad_()
    (oracle(again, matrix, None) * weight.double()).sum().backward()
    assert_close(x.grad, again.grad, "op_grad")


def test_function_transforms():
    x, matrix = torch.randn(4, 5), torch.randn(5, 6)
    weight = torch.randn(4, 6)

    def loss(rows, m):
        return (project_normalize(rows, m) * weight).sum()

    a, b = x.double().requires_grad_(), matrix.double().requires_grad_()
    (oracle(a, b, None) * weight.double()).sum().backward()
    grad_x, grad_matrix = torch.func.grad(loss, argnums=(0, 1))(x, matrix)
    assert_close(grad_x, a.grad, "op_grad")
    assert_close(grad_matrix, b.grad, "op_grad")
    mapped = torch.func.vmap(lambda row: project_normalize(row, matrix))(x)
    assert_close(mapped, oracle(x, matrix, None), "op")
