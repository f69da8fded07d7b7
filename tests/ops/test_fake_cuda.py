"""CUDA tensors without a GPU (FakeTensorMode): shapes, dtypes, refusals, and what torch.compile traces."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import semobridge_ext as sb
from semobridge_ext._ops.project_normalize.cuda import Projection
from semobridge_ext._ops.support_logits.backward import support_logits_bwd
from semobridge_ext._ops.support_logits.class_order import class_order, sort_by_class
from semobridge_ext._ops.support_logits.takes import triton as takes_support
from semobridge_ext._ops.topk.takes import cuda as takes_topk_cuda
from semobridge_ext._ops.topk.takes import triton as takes_topk
from semobridge_ext.ops import project_normalize
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.choice import resolve

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
BACKENDS = ("auto", "eager", "native", "triton")
need_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
    reason="needs Triton, and no GPU: there the kernels themselves run",
)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def cuda(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device="cuda", dtype=dtype)


def labels(size: int) -> Tensor:
    return torch.zeros(size, device="cuda", dtype=torch.int64)


def like(got: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert got.is_cuda and tuple(got.shape) == shape and got.dtype is dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_dtypes(dtype: torch.dtype, backend: str, fake: FakeTensorMode):
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    x, keys = cuda(2, 5, 16, dtype=dtype), cuda(40, 16, dtype=dtype)
    with sb.backend(backend):
        like(project_normalize(x, cuda(16, 7), bias=cuda(7)), (2, 5, 7), dtype)
        like(project_normalize(x[:, :0], cuda(16, 7)), (2, 0, 7), dtype)
        like(sb.support_logits(x[0], keys, labels(40), 3), (5, 3), dtype)
        found = sb.topk(x[0], keys, 4, exclude=labels(5))
        like(found.scores, (5, 4), compute)
        like(found.indices, (5, 4), torch.int64)


def test_bridge_on_a_device():
    bridge = sb.Bridge(torch.randn(8, 6))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved = {name: mode.from_tensor(t).to("cuda") for name, t in bridge.state_dict().items()}
        for backend in BACKENDS:
            with sb.backend(backend):
                got = torch.func.functional_call(bridge, moved, (cuda(3, 6, dtype=torch.float16),))
                like(got, (3, 6), torch.float16)


class OnDevice(TorchDispatchMode):
    """The operators that write a CUDA tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_cuda:
            self.seen.append(str(function))
        return out


def test_operands_of_a_projection_are_there_when_they_are_made():
    """A copy from the host is waited for, a kernel is not: another stream's call could overtake it."""
    with FakeTensorMode():
        given = torch.empty(8, 6, dtype=torch.float64, device="cpu")
        with OnDevice() as watched:
            Projection(given, None, torch.device("cuda"))
    assert watched.seen == ["aten._to_copy.default"] * 2, "the matrix and its transpose"


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_devices_are_refused(backend: str, fake: FakeTensorMode):
    here, there = torch.empty(5, 16), cuda(5, 16)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("project_normalize: matrix must be on cuda:0", lambda: project_normalize(there, here.T)),
        ("project_normalize: bias must be on cuda:0",
         lambda: project_normalize(there, there.T, bias=here[0, :5])),
        ("support_logits: labels must be on cuda:0",
         lambda: sb.support_logits(there, there, torch.zeros(5, dtype=torch.int64), 2)),
        ("support_logits: queries must be on cuda:0", lambda: sb.support_logits(here, there, labels(5), 2)),
        ("topk: queries must be on cuda:0", lambda: sb.topk(here, there, 2)),
        ("topk: exclude must be on cuda:0",
         lambda: sb.topk(there, there, 2, exclude=torch.zeros(5, dtype=torch.int64))),
    ]  # fmt: skip
    for text, call in calls:
        with sb.backend(backend), pytest.raises(ValueError, match=f"^{text}.*; move"):
            call()


def test_what_triton_takes():
    half, single = torch.empty(3, 8, dtype=torch.float16), torch.empty(3, 8)
    assert takes_support(half, single) is True and takes_support(half, single.double()) == "float64"
    assert takes_topk(half, single, 128) is True and takes_topk(half, single, 129) == "k > 128"
    long = half[:1].expand((1 << 32) - 1, 8)
    assert takes_topk(half, long, 3) == "a gallery of 2³¹ rows"
    # A candidate's row is counted in 32 bits, and the largest such number is none.
    assert takes_topk_cuda(half, long, 3) and not takes_topk_cuda(half, half[:1].expand(1 << 32, 8), 3)
    device = torch.device("cuda")
    with sb.backend("triton"):
        with pytest.raises(
            NotImplementedError, match=r"^op: backend 'triton' has no kernel for float64; use "
        ):
            resolve("op", device, triton=takes_support(half, single.double()))
        with pytest.raises(NotImplementedError, match=r"no kernel for this call; use backend\('auto'\)"):
            resolve("op", device)


def test_triton_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    device = torch.device("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with sb.backend("triton"), pytest.raises(RuntimeError, match=r"needs Triton; pip install triton"):
        resolve("op", device, triton=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with sb.backend("triton"):
        assert resolve("op", device, triton=True) == "triton"
        with pytest.raises(NotImplementedError, match=r"needs CUDA tensors, got cpu; move them"):
            resolve("op", torch.device("cpu"), triton=True)
    monkeypatch.delattr(torch.library, "triton_op")
    with (
        sb.backend("triton"),
        pytest.raises(RuntimeError, match=r"^op: .* needs PyTorch 2.6, this is .*; pip"),
    ):
        resolve("op", device, triton=True)


@pytest.mark.parametrize("size", [0, 1, 50])
def test_class_order_by_torch_is_the_native_one(size: int):
    y = torch.randint(0, 6, (size,))
    order, offsets, in_order = class_order(y, 7)
    native = sort_by_class(y, 7, "test")
    assert native.order is not None
    assert torch.equal(order, native.order) and torch.equal(offsets, native.offsets)
    assert torch.equal(in_order, y[order])


def test_class_order_leaves_foreign_labels_out():
    y = torch.tensor([3, -1, 0, 7, 3])
    order, offsets, _ = class_order(y, 4)
    assert order[offsets[0] : offsets[4]].tolist() == [2, 0, 4]
    assert offsets.tolist() == [1, 2, 2, 2, 4]


def test_labels_elsewhere_are_refused_with_their_position(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("semobridge_ext._ops.support_logits.class_order._C", None)
    with pytest.raises(ValueError, match=r"^op: labels must lie in 0..2, got 5 at position 1; "):
        sort_by_class(torch.tensor([0, 5, -1]), 3, "op")
    found = sort_by_class(torch.tensor([1, 0, 1]), 3, "op")
    assert found.order is not None
    assert found.order.tolist() == [1, 0, 2] and found.offsets.tolist() == [0, 1, 3, 3]


class Driver:
    """Says which GPU Triton compiles for; torch asks it when it looks at what a kernel writes."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def an_h100() -> Iterator[None]:
    from triton.runtime import driver

    before = driver._active
    driver.set_active(Driver())
    yield
    driver._active = before


def traced(function: Callable[..., Any], *args: Tensor) -> torch.fx.Graph:
    """The one graph that torch.compile(fullgraph=True) hands to a backend."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    graphs = []

    def keep(module: torch.fx.GraphModule, inputs: Any):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*args)
    (graph,) = graphs
    return graph


def launches(graph: torch.fx.Graph) -> list[list[str]]:
    """What each Triton launch of a graph writes."""
    return [
        sorted(node.kwargs["tensors_to_clone"])
        for node in graph.nodes
        if "triton_kernel_wrapper" in str(node.target)
    ]


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if str(n.target).startswith("semobridge")]


CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], list[list[str]]]] = {
    "support_logits": (
        lambda q, k, y: sb.support_logits(q, k, y, 5, beta=2.0),
        ((70, 16), (50, 16)),
        [["edges_ptr", "out_ptr"]],  # one split: nothing to join
    ),
    "topk": (
        lambda q, g, y: sb.topk(q, g, 3),
        ((70, 16), (50, 16)),
        [["lists_ptr"], ["indices_ptr", "scores_ptr"]],
    ),
    "support_logits_bwd": (
        lambda q, k, y: support_logits_bwd(
            q[:, :5].float(), q, k, y, None, 2.0, True, True, True, _backend.requested() == "triton"
        ),
        ((70, 16), (50, 16)),
        [["out_ptr"], ["out_ptr", "sums_ptr"]],
    ),
}


@need_triton
@pytest.mark.usefixtures("an_h100")
@pytest.mark.filterwarnings("ignore:Please use the new API settings")
@pytest.mark.parametrize("name", CALLS)
def test_compile_sees_the_kernels(name: str):
    function, shapes, written = CALLS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        args = [cuda(*shape, dtype=torch.bfloat16) for shape in shapes] + [labels(50)]
        with sb.backend("triton"):
            graph = traced(function, *args)
        assert launches(graph) == written and operators(graph) == []
        with sb.backend("auto"):
            graph = traced(function, *args)
        assert launches(graph) == [] and operators(graph) == [f"semobridge.{name}.default"]
