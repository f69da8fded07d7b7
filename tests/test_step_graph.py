"""Steps that are captured once and replayed, over the recorder of tests/graph_recorder.py."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext._step_graph import WARM_UP, repeatable
from tests.graph_recorder import Recorder

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
