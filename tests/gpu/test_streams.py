"""What a GPU alone can show: the current stream is used, graphs can be captured, nothing waits."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.runtime import backend as _backend
from tests.support.assertions import assert_close, assert_figures
from tests.support.places import W, rows
from tests.support.projections import chain
from tests.support.source_tree import ROOT, environment

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_kernels():
    if not _backend.HAS_CUDA:
        pytest.skip("the native module was built without CUDA kernels")


@pytest.mark.parametrize("n", [1, 100])
def test_the_current_stream_is_used(n: int):
    bridge, stream = sb.Bridge(W).cuda(), torch.cuda.Stream()
    f = rows(n, 48).cuda()
    with sb.backend("native"), torch.no_grad():
        want = bridge(f)
        torch.cuda.synchronize()
        g = torch.zeros_like(f)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # a kernel on another stream would read the zeros
            g.copy_(f)
            got = bridge(g)
        stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("n", [1, 100])
def test_a_call_can_be_captured(n: int):
    bridge, f = sb.Bridge(W).cuda(), rows(n, 48).cuda()
    graph = torch.cuda.CUDAGraph()
    with sb.backend("native"), torch.no_grad():
        bridge(f)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            got = bridge(f)
        f.copy_(rows(n, 48).cuda().flip(1))
        graph.replay()
        assert_close(got, chain(f.cpu(), W), "bridge")


@pytest.mark.parametrize("n", [1, 100])
def test_two_graphs_of_one_bridge(n: int):
    bridge, f = sb.Bridge(W).cuda(), rows(n, 48).cuda()
    graphs, results = [torch.cuda.CUDAGraph() for _ in range(2)], []
    with sb.backend("native"), torch.no_grad():
        bridge(f)
        for graph in graphs:
            with torch.cuda.graph(graph):
                results.append(bridge(f))
        for graph, got in reversed(list(zip(graphs, results, strict=True))):
            got.zero_()
            graph.replay()
            assert_close(got, chain(f.cpu(), W), "bridge")


def test_nothing_waits_for_the_device():
    bridge, f = sb.Bridge(W).cuda(), rows(100, 48).cuda()
    with sb.backend("native"), torch.no_grad():
        bridge(f)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch calls the mode a prototype
                torch.cuda.set_sync_debug_mode("error")
            with pytest.raises(RuntimeError, match="synchronizing"):
                f[0, 0].item()  # the mode is on: a wait is refused
            bridge(f)
            sb.topk(f, f, 5)
        finally:
            torch.cuda.set_sync_debug_mode("default")


FIRST = """
import sys
import torch
import semobridge_ext as sb
a, b = (torch.randn(5, 300, device="cuda", dtype=torch.float16) for _ in range(2))
torch.randn(4, 4, device="cuda").softmax(1)
graph = torch.cuda.CUDAGraph()
with sb.backend(sys.argv[1]), torch.no_grad():
    with torch.cuda.graph(graph):
        got = sb.ops.symmetric_kl(a, b)
graph.replay()
with sb.backend("eager"):
    want = sb.ops.symmetric_kl(a, b)
print(float(got), float(want))
"""


@pytest.mark.parametrize("backend", ["native", "triton", "auto"])
def test_a_capture_may_hold_the_first_call(backend: str):
    """Nothing is loaded, tuned or compared there in a way that a capture refuses."""
    if backend == "triton":
        pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", FIRST, backend], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got, want = map(float, done.stdout.split())
    assert_figures([got], torch.tensor([want]), "device_loss", dtype=torch.float32)
