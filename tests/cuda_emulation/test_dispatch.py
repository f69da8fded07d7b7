"""The Python side of the CUDA kernels, over their emulation: views, workspaces, chunks, the choice.

The emulated module takes CPU tensors where the real one takes CUDA tensors; everything else is the same.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits import cuda as blend_cuda
from semobridge_ext._ops.blend_logits.eager import blend_logits as eager_blend
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.project_normalize import cuda as cuda_projection
from semobridge_ext._ops.project_normalize import prepared
from semobridge_ext._ops.topk import chunks as topk_chunks
from semobridge_ext._ops.topk import cuda as topk_cuda
from semobridge_ext._ops.topk import eager
from semobridge_ext._ops.topk import takes as topk_takes
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import half_products, self_check
from semobridge_ext.runtime.choice import resolve
from tests.support.assertions import assert_close
from tests.support.conversions import Conversions
from tests.support.projections import chain
from tests.support.tensor_cores import TensorCores, tensor_cores

__all__ = ["tensor_cores"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_place_of_the_gpu(emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blend_cuda, cuda_projection, topk_cuda):
        monkeypatch.setattr(module, "_C", emulated)


def assert_near(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype is dtype and (want != 0).double().mean() > 0.5
    assert_close(got, want, "cuda_op")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20,), (1, 20), (5, 20), (32, 20), (33, 20), (3, 13, 20)])
def test_projection(shape: tuple[int, ...], dtype: torch.dtype):
    matrix = torch.randn(20, 12, dtype=torch.float64)
    plan = cuda_projection.Projection(matrix, None, CPU)
    x = torch.randn(*shape).to(dtype)
    want = torch.nn.functional.normalize(x.double() @ matrix.float().double(), dim=-1)
    for _ in range(2):  # the second call meets the first one's tickets
        assert_near(plan(x), want, dtype)
    assert_near(plan(x.repeat(*[1] * (len(shape) - 1), 2)[..., :20]), want, dtype)
    assert plan(x[..., :0, :] if len(shape) > 1 else x.new_empty(0, 20)).numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-9, 1.0])
def test_many_rows_go_in_blocks(
    size: float, dtype: torch.dtype, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_projection, "block_rows", lambda bytes_: 64)
    x, matrix = torch.randn(150, 20).to(dtype), size * torch.randn(20, 12, dtype=torch.float64)
    want = torch.nn.functional.normalize(x.double() @ matrix.float().double(), dim=-1)
    plan = cuda_projection.Projection(matrix, None, CPU)
    for rows in (x, x.repeat(1, 2)[:, :20]):
        assert_near(plan(rows), want, dtype)
    half = dtype is not torch.float32
    assert tensor_cores.shapes == [(n, 20, 24) for n in (64, 64, 22)] * 2 * half, "both parts, side by side"
    assert len({matrix.data_ptr() for _, matrix in tensor_cores.products}) == half, "the matrix is cut once"
    zero = cuda_projection.Projection(torch.zeros(20, 12), None, CPU)
    assert (zero(x) == 0).all() and zero(x).dtype is dtype


def test_blocks_leave_their_sums_in_l2():
    for row in (4 * 512 * 2, 4 * 512, 4 * 768 * 2, 4 * 2048):
        rows = cuda_projection.block_rows(row)
        assert rows % 128 == 0 and row * rows <= 32 << 20 < row * (rows + 128)
    assert cuda_projection.block_rows(4 << 20) == 1024, "never a handful of rows"


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_many_rows_of_bfloat16_meet_one_part(
    size: float, length: float, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    """float16 holds a row times its power of two, and the matrix eight times better than bfloat16."""
    monkeypatch.setattr(cuda_projection, "block_rows", lambda bytes_: 64)
    monkeypatch.setattr(cuda_projection, "ONE_PART", 100)
    x = (length * 10 ** torch.linspace(-3, 3, 150)[:, None] * torch.randn(150, 96)).bfloat16()
    x[3] = 0
    matrix = size * torch.randn(96, 40, dtype=torch.float64)
    want = torch.nn.functional.normalize(x.double() @ matrix, dim=1, eps=0)
    want[3] = 0
    plan = cuda_projection.Projection(matrix, None, CPU, scale=1.5)
    for rows in (x, x.repeat(1, 2)[:, :96]):
        got = plan(rows)
        assert got.dtype is torch.bfloat16 and (got[3] == 0).all()
        assert_close(got, 1.5 * want, "one_part")
    assert tensor_cores.shapes == [(n, 96, 40) for n in (64, 64, 22)] * 2
    assert {m.dtype for pair in tensor_cores.products for m in pair} == {torch.float16}
    assert len({m.data_ptr() for _, m in tensor_cores.products}) == 1, "the matrix is rounded once"
    # A user's own line: the projector in bfloat16, and a product that is rounded before its norm.
    plain = torch.nn.functional.normalize(x @ (matrix / size).bfloat16(), dim=1)
    ours, theirs = ((y.double() - want).square().mean().sqrt() for y in (got.double() / 1.5, plain))
    assert ours < 0.75 * theirs


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_self_check_calls_every_kernel(
    dtype: torch.dtype, emulated, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    """What it does not call, a rule would take unchecked."""
    called = []

    def noted(name: str):
        kernel = getattr(emulated, name)
        return lambda *args: (called.append(name), kernel(*args))[1]

    kernels = ("project_normalize_cuda", "normalize_rows_cuda", "scale_rows_cuda")
    module = SimpleNamespace(
        project_normalize_cuda_tickets=emulated.project_normalize_cuda_tickets,
        **{name: noted(name) for name in kernels},
    )
    monkeypatch.setattr(cuda_projection, "_C", module)
    monkeypatch.setattr(prepared, "direct", lambda *_: "auto")
    monkeypatch.setattr(prepared, "direct_kernel", lambda *_, **__: "native")
    got = prepared._check_kernel(CPU, dtype)
    monkeypatch.setattr(prepared, "direct_kernel", lambda *_, **__: "")
    for ours, plain in zip(got, prepared._check_kernel(CPU, dtype), strict=True):
        assert (ours - plain).abs().max() <= self_check.TOLERANCE[dtype]
    assert set(called) == set(kernels[: 3 if dtype is torch.bfloat16 else 2])


def test_what_keeps_its_two_parts(tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_projection, "ONE_PART", 100)
    matrix, offset = torch.randn(20, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    x = torch.randn(100, 20)
    for rows, bias, normalize in (
        (x[:99].bfloat16(), None, True), (x.half(), None, True), (x.bfloat16(), offset, True),
        (x.bfloat16(), None, False),
    ):  # fmt: skip
        got = cuda_projection.Projection(matrix, bias, CPU, normalize=normalize)(rows)
        exact = rows.double() @ matrix.float().double() + (0 if bias is None else bias.float().double())
        assert_near(got, torch.nn.functional.normalize(exact, dim=1) if normalize else exact, rows.dtype)
        assert tensor_cores.shapes[-1] == (len(rows), 20, 24), "both parts, side by side"


def test_a_row_that_is_no_number_keeps_it_to_itself(
    tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_projection, "ONE_PART", 100)
    x, matrix = torch.randn(120, 20).bfloat16(), torch.randn(20, 12, dtype=torch.float64)
    x[7, 3], x[9, 4] = torch.nan, torch.inf
    got = cuda_projection.Projection(matrix, None, CPU)(x)
    assert got[7].isnan().all() and got[9].isnan().all()
    fine = torch.tensor([i not in (7, 9) for i in range(120)])
    assert_close(got[fine], torch.nn.functional.normalize(x[fine].double() @ matrix, dim=1), "one_part")
    assert len(tensor_cores.products) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("single", [True, False])
def test_the_operator_multiplies_half_types(
    single: bool, dtype: torch.dtype, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(half_products, "SPLIT_ROWS", 30)
    x, bias = torch.randn(40, 20).to(dtype), torch.randn(12)
    matrix = torch.randn(20, 12).to(torch.float32 if single else dtype)
    exact = x.double() @ matrix.double() + bias.double()
    y, norms = cuda_projection.project_normalize(x, matrix, bias, 0.7, True)
    assert_near(y, 0.7 * torch.nn.functional.normalize(exact, dim=1), dtype)
    cut = torch.bfloat16 if single and dtype is torch.bfloat16 else torch.float16
    assert_close(norms, exact.norm(dim=1), "half_product", dtype=cut)
    assert tensor_cores.shapes == [(40, 40 if single else 20, 12)] * (dtype is not torch.float32)


def test_bridge_takes_its_folded_projector():
    w, x = torch.randn(16, 12), torch.randn(7, 12)
    b = sb.Bridge(w)

    def launched(**options: bool) -> torch.Tensor:
        return b._projection(**options)._launch("native", CPU)(x)

    for changed in (False, True):
        if changed:
            with torch.no_grad():
                b.inverse.mul_(torch.rand(12, 1))
        for options in ({"project": True, "normalize": True}, {"project": False, "normalize": False}):
            want = chain(x, w, inverse=b.inverse.detach(), **options)
            assert_close(launched(**options), want, "cuda_op", context=f"{options}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40, 150])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_map_takes_the_same_kernels(
    normalize: bool, rows: int, dtype: torch.dtype, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_projection, "block_rows", lambda bytes_: 64)
    matrix, offset = torch.randn(20, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    x = torch.randn(rows, 20).to(dtype)
    want = x.double() @ matrix.float().double() + offset.float().double()
    if normalize:
        want = torch.nn.functional.normalize(want, dim=1)
    program = sb.LinearMap(matrix, offset, normalize=normalize)._projection(0)._launch("native", CPU)
    assert_near(program(x), want, dtype)


@pytest.mark.parametrize("rows", ["none", "one", "all"])
def test_epilogue_behind_a_product(rows: str):
    n, norms = torch.randn(6, 9), torch.empty(6)
    bias = {"none": None, "one": torch.randn(9), "all": torch.randn(9, 6).T}[rows]
    want = n.double() if bias is None else n.double() + bias.double()
    got = cuda_projection.normalize_rows(torch.empty(6, 1, dtype=torch.bfloat16), n, bias, 0.5, True, norms)
    assert_near(got, 0.5 * torch.nn.functional.normalize(want, dim=1), torch.bfloat16)
    assert_near(norms, want.norm(dim=1), torch.float32)


@pytest.mark.parametrize("k", [1, 33, 128])
@pytest.mark.parametrize("scores", [6 << 20, 4000])
def test_topk(k: int, scores: int, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch):
    # Small whole numbers: products are exact in any order, and tie.
    q = torch.randint(-3, 4, (5, 6)).to(torch.float16)
    gallery = torch.randint(-3, 4, (2501, 6)).to(torch.bfloat16)
    exclude = torch.arange(5) * 7
    monkeypatch.setattr(topk_chunks, "_SCORES", scores)
    monkeypatch.setattr(topk_chunks, "_QUERIES", 4 if scores == 4000 else 4096)
    for excluded in (None, exclude):
        got, indices = topk_cuda.topk(q, gallery, k, excluded)
        want = sb.topk(q, gallery, k, exclude=excluded)
        assert torch.equal(got, want.scores) and torch.equal(indices, want.indices)
    assert topk_cuda.topk(q[:0], gallery, k, None)[0].shape == (0, k)
    assert tensor_cores.shapes == [], "two types: widened, no part of a gallery is left out"
    for dtype in DTYPES:
        rows = gallery.to(dtype)
        for search in (topk_cuda.topk, eager.topk):
            got, indices = search(q.to(dtype), rows, k, exclude)
            assert got.dtype is torch.float32
            assert torch.equal(got, want.scores) and torch.equal(indices, want.indices)
    assert {x.dtype for x, _ in tensor_cores.products} == {torch.float16, torch.bfloat16}
    assert not topk_takes.cuda(q, gallery, 129) and not topk_takes.cuda(q.double(), gallery, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bridged", [True, False])
def test_blend(bridged: bool, dtype: torch.dtype, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch):
    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)

    right = torch.linalg.qr(torch.randn(14, 14, dtype=torch.float64))[0][:, :10]
    projector = right @ right.T if bridged else None
    operand = BlendOperand(
        unit(5, 14), unit(5, 14), unit(5, 14), torch.rand(5, dtype=torch.float64), projector,
        right if bridged else None,
    )  # fmt: skip
    params = BlendParams(0.7, 2.0, 3.0, 4.0, 0.5, 0.6, 0.9)
    x = torch.randn(11, 14).to(dtype)
    f = x.double()
    crossed = f if projector is None else f @ projector
    query, bridged_query = (torch.nn.functional.normalize(rows, dim=1) for rows in (f, crossed))
    want = sb.reference.blend_logits(
        query @ operand.text.T, query @ operand.bridged.T, bridged_query @ operand.raw.T,
        weights=torch.exp(params.s * operand.exponents), alpha=params.alpha, beta=params.beta,
        gamma=params.gamma, lambdas=(params.lambda1, params.lambda2, params.lambda3),
    )  # fmt: skip
    monkeypatch.setattr(blend_cuda, "_VALUES", 4 * 25)  # several blocks of rows
    logits, labels = torch.empty(11, 5), torch.empty(11, dtype=torch.int64)
    operand._cuda(x, params, logits=logits)
    operand._cuda(x, params, labels=labels)
    with Conversions() as again:  # the weights, float64 on the host, are brought to the device once
        operand._cuda(x, params, labels=labels)
    assert again.count == 0
    plain = eager_blend(operand._eager(x), params, operand.exponents)
    for got in (logits, plain):
        assert_close(got, want, "half_blend", dtype=dtype)
    assert torch.equal(labels, want.argmax(1)) and torch.equal(plain.argmax(1), labels)
    cols, half = 15 + 10 * bridged, dtype is not torch.float32
    step = 100 // cols
    blocks = [min(step, 11 - first) for first in range(0, 11, step)]
    assert tensor_cores.shapes == [(n, 28, cols) for n in [*blocks, *blocks, *blocks, 11]] * half
    assert len({matrix.data_ptr() for _, matrix in tensor_cores.products}) == half, "cut once"
    zero = torch.zeros(1, 14, dtype=dtype)
    operand._cuda(zero, params, logits=logits[:1])
    assert_close(logits[:1], eager_blend(operand._eager(zero), params, operand.exponents).double(), "cuda_op")


def test_choice(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(_backend, "HAS_CUDA", True)
    assert resolve("op", cuda, cuda=True) == "eager", "unmeasured: on request alone"
    with sb.backend("native"):
        assert resolve("op", cuda, cuda=True) == "native"
        with pytest.raises(NotImplementedError, match=r"^op: backend 'native' has no CUDA kernel.*; use "):
            resolve("op", cuda)
    with sb.backend("eager"):
        assert resolve("op", cuda, cuda=True) == "eager"
    monkeypatch.setattr(_backend, "HAS_CUDA", False)
    assert resolve("op", cuda, cuda=True) == "eager"
    with sb.backend("native"), pytest.raises(RuntimeError, match="built without CUDA"):
        resolve("op", cuda, cuda=True)
