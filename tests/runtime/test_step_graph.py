"""Steps that are captured once and replayed, over the recorder of tests/support/graph_recorder.py."""

from __future__ import annotations

import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch

from semobridge_ext.runtime.step_graph import WARM_UP, repeatable
from tests.support.graph_recorder import Recorder

CPU = torch.device("cpu")


def test_replays_take_the_steps_and_the_warm_up_leaves_no_trace():
    x, count = torch.tensor([1.0, 2.0]), torch.zeros(())

    def step() -> None:
        count.add_(1)
        x.mul_(count)

    recorder = Recorder()
    replay = repeatable(step, [x, count], CPU, capture=recorder.capture)
    assert x.tolist() == [1, 2] and count == 0 and recorder.launches == ["add_", "mul_"]
    for _ in range(4):
        replay()
    assert x.tolist() == [24, 48] and recorder.replays == 4


def test_without_a_graph_the_step_itself_is_called():
    def step() -> None:
        raise AssertionError("nothing is warmed up on a CPU")

    assert repeatable(step, [], CPU) is step


def test_a_number_of_the_host_is_frozen():
    x, taken = torch.zeros(()), [0]

    def step() -> None:
        taken[0] += 1
        x.add_(taken[0])

    replay = repeatable(step, [x], CPU, capture=Recorder().capture)
    replay()
    replay()
    assert taken == [WARM_UP + 1] and x == 2 * (WARM_UP + 1), "as a graph would, wrong and visibly so"


@pytest.mark.parametrize("fault", ["reads", "allocates"])
def test_what_no_graph_may_hold_is_refused(fault: str):
    x = torch.ones(3)

    def step() -> None:
        x.mul_(float(x[0]) if fault == "reads" else x + 1)

    with pytest.raises(AssertionError, match=fault):
        repeatable(step, [x], CPU, capture=Recorder().capture)
    if fault == "allocates":
        replay = repeatable(step, [x], CPU, capture=Recorder(no_allocation=False).capture)
        x.fill_(1)
        replay()
        assert x.tolist() == [2, 2, 2]


def test_a_failed_capture_is_said_and_the_steps_go_on():
    x = torch.ones(())

    def refuse(*_: object):
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.warns(RuntimeWarning, match=r"without a CUDA graph.*not permitted"):
        step = repeatable(lambda: x.mul_(3) and None, [x], CPU, capture=refuse)
    assert x == 1
    step()
    assert x == 3


POOL = 32


class FakeCuda:
    """PyTorch's streams and captures as far as the order of calls goes; streams come from a pool in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.current, self.log, self.fails, self.made = "user's", [], fails, 0
        names = ("Stream", "current_stream", "stream", "graph", "CUDAGraph", "is_current_stream_capturing")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def Stream(self, device: torch.device) -> FakeStream:
        self.made += 1
        return FakeStream(f"stream {self.made % POOL} of {device}", self)

    def current_stream(self) -> FakeStream:
        return FakeStream(self.current, self)

    def is_current_stream_capturing(self) -> bool:
        return False

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph(self)

    @contextmanager
    def stream(self, stream: FakeStream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, *, stream: FakeStream, capture_error_mode: str):
        self.current = stream.name
        yield
        if self.fails:  # as PyTorch: the stream stays where it is
            raise RuntimeError("operation failed due to a previous error during capture")
        self.log.append(f"captured on {self.current}")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.log.append("replayed")


class FakeStream:
    def __init__(self, name: str, cuda: FakeCuda) -> None:
        self.name, self.cuda = name, cuda

    @property
    def cuda_stream(self) -> int:
        return int(self.name.split()[1])

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_the_users_stream_comes_back(fails: bool, monkeypatch: pytest.MonkeyPatch):
    fake, x = FakeCuda(monkeypatch, fails), torch.ones(())
    places = []

    def step() -> None:
        places.append(fake.current)
        x.mul_(3)

    expected = pytest.warns(RuntimeWarning, match="during capture") if fails else nullcontext()
    with expected:
        once = repeatable(step, [x], torch.device("cuda", 1))
    assert fake.current == "user's" and x == 1
    own = "stream 1 of cuda:1"
    assert places == [own] * (WARM_UP + 1), "warm-up and capture share a stream"
    assert f"{own} waits for user's" in fake.log and f"user's waits for {own}" in fake.log
    once()
    if fails:
        assert x == 3 and places[-1] == "user's"
    else:
        assert fake.log[-1] == "replayed" and f"captured on {own}" in fake.log


def test_a_warm_up_that_fails_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    """What it launched still writes while its caller gives the memory to others."""
    fake = FakeCuda(monkeypatch)

    def step() -> None:
        fake.log.append(f"launched on {fake.current}")
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        repeatable(step, [], torch.device("cuda", 1))
    own = "stream 1 of cuda:1"
    assert fake.log == [f"{own} waits for user's", f"launched on {own}", f"user's waits for {own}"]
    assert fake.current == "user's"


def test_living_graphs_share_no_stream(monkeypatch: pytest.MonkeyPatch):
    """cuBLAS's workspace belongs to a stream: two graphs of one stream would write into the same."""
    fake, device = FakeCuda(monkeypatch), torch.device("cuda", 1)

    def captured() -> tuple[str, object]:
        replay = repeatable(lambda: None, [], device)
        return fake.log[-2 if fake.log[-1].startswith("user's") else -1], replay

    living = [captured() for _ in range(POOL - 1)]
    names = [name for name, _ in living]
    assert len(set(names)) == POOL - 1 and all(name.startswith("captured on") for name in names)
    other = repeatable(lambda: None, [], torch.device("cuda", 0))
    last = captured()
    assert last[0] not in names, "a stream of another device is another stream"
    with pytest.warns(RuntimeWarning, match="without a CUDA graph.* all 32 streams of cuda:1"):
        assert repeatable(captured, [], device) is captured
    name = living[5][0]
    living[5] = ("", None)
    gc.collect()
    assert captured()[0] == name, "the stream of a graph that is gone is free again"
    del other
