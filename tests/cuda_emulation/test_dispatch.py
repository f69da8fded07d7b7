"""The Python side of the CUDA kernels, over their emulation: views, workspaces, chunks, the choice.

The emulated module takes CPU tensors where the real one takes CUDA tensors; everything else is the same.
"""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits import cuda as blend_cuda
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.project_normalize import cuda as cuda_projection
from semobridge_ext._ops.topk import chunks as topk_chunks
from semobridge_ext._ops.topk import cuda as topk_cuda
from semobridge_ext._ops.topk import takes as topk_takes
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.choice import resolve
from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.assertions import assert_close
from tests.support.projections import chain

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def emulated(emulation: Emulation):
    return load(str(emulation.module))


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
def test_many_rows_go_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_projection, "TILED", 64)
    x, matrix = torch.randn(150, 20).to(dtype), 1e-9 * torch.randn(20, 12, dtype=torch.float64)
    want = torch.nn.functional.normalize(x.double() @ matrix.float().double(), dim=-1)
    assert_near(cuda_projection.Projection(matrix, None, CPU)(x), want, dtype)
    zero = cuda_projection.Projection(torch.zeros(20, 12), None, CPU)
    assert (zero(x) == 0).all() and zero(x).dtype is dtype


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
    normalize: bool, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cuda_projection, "TILED", 64)
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
def test_topk(k: int, scores: int, monkeypatch: pytest.MonkeyPatch):
    # Small whole numbers: products are exact in any order, and tie.
    q = torch.randint(-3, 4, (9, 6)).to(torch.float16)
    gallery = torch.randint(-3, 4, (2501, 6)).to(torch.bfloat16)
    exclude = torch.arange(9) * 7
    monkeypatch.setattr(topk_chunks, "_SCORES", scores)
    monkeypatch.setattr(topk_chunks, "_QUERIES", 4 if scores == 4000 else 4096)
    for excluded in (None, exclude):
        got, indices = topk_cuda.topk(q, gallery, k, excluded)
        want = sb.topk(q, gallery, k, exclude=excluded)
        assert torch.equal(got, want.scores) and torch.equal(indices, want.indices)
    assert topk_cuda.topk(q[:0], gallery, k, None)[0].shape == (0, k)
    assert not topk_takes.cuda(q, gallery, 129) and not topk_takes.cuda(q.double(), gallery, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bridged", [True, False])
def test_blend(bridged: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
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
    assert_close(logits, want, "cuda_op")
    assert torch.equal(labels, want.argmax(1))


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
