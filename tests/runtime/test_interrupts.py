"""Ctrl-C inside of long native calls, and native calls in a forked child."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext.runtime.threads import thread_count
from tests.support.assertions import assert_same_bits
from tests.support.source_tree import environment, run

AFTER = 0.2  # seconds until the signal
# Half a second is promised on an idle machine; here other tests may hold the cores. The calls below take
# ten seconds and more on one thread.
LATENCY = 2.0


class Stop(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """`alarm(action)`: SIGALRM after AFTER seconds runs the action."""
    before = signal.getsignal(signal.SIGALRM)

    def start(action: Callable[[], Any]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: action())
        signal.setitimer(signal.ITIMER_REAL, AFTER)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def stop() -> None:
    raise Stop


def rows(count: int, width: int = 512) -> torch.Tensor:
    """Many rows that take no memory."""
    return torch.nn.functional.normalize(torch.randn(1, width), dim=1).expand(count, width)


def calls() -> dict[str, Callable[[], Any]]:
    queries = torch.randn(4000, 512)
    labels = torch.arange(1_000_000) % 1000
    bridge = sb.Bridge(torch.randn(512, 512) / 20)
    text, bridged, raw = (torch.nn.functional.normalize(torch.randn(1000, 512).double()) for _ in range(3))
    tall = torch.randn(4096, 512)
    sb.ops.project_normalize(rows(2, 4096), tall)  # the first call of an operator makes PyTorch import more
    right = torch.linalg.qr(torch.randn(512, 256).double())[0]
    operand = BlendOperand(text, bridged, raw, torch.rand(1000).double(), right @ right.T, right)
    return {
        "topk": lambda: sb.topk(queries, rows(1_000_000), 5),
        "support_logits": lambda: sb.support_logits(queries, rows(1_000_000), labels, 1000),
        "retrieval_metrics": lambda: sb.retrieval_metrics(
            rows(20_000), rows(1_000_000), labels[:20_000], labels
        ),
        "bridge": lambda: bridge(rows(600_000)),
        "project_normalize": lambda: sb.ops.project_normalize(rows(200_000, 4096), tall),
        "blend_logits": lambda: operand.logits(rows(150_000), BlendParams()),
        "symmetric_kl": lambda: sb.ops.symmetric_kl(rows(8_000_000), rows(8_000_000)),
    }


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["topk", "support_logits", "retrieval_metrics", "bridge",
                                  "project_normalize", "blend_logits", "symmetric_kl"])  # fmt: skip
def test_a_signal_ends_a_long_call(name: str, threads: int, alarm):
    torch.set_num_threads(threads)
    call = calls()[name]
    began = time.perf_counter()
    alarm(stop)
    with pytest.raises(Stop):
        call()
    took = time.perf_counter() - began - AFTER
    print(f"  {name}: {took:.3f} s after the signal")
    assert took < LATENCY
    x = torch.nn.functional.normalize(torch.randn(30, 512), dim=1)  # and the next call is right
    assert sb.topk(x, x, 1).indices[:, 0].tolist() == list(range(30))


def test_a_handler_that_returns_lets_the_call_end(alarm):
    queries, gallery = torch.randn(2000, 256), torch.randn(150_000, 256)
    want = sb.topk(queries, gallery, 3)
    seen = []
    alarm(lambda: seen.append(1))
    while not seen:
        got = sb.topk(queries, gallery, 3)
        assert torch.equal(got.indices, want.indices)
        assert_same_bits(got.scores, want.scores)


def test_a_handler_may_not_call_a_kernel(alarm):
    """It would overwrite the scratch memory of the one that runs."""
    x = torch.nn.functional.normalize(torch.randn(40, 512), dim=1)
    call = calls()["topk"]
    alarm(lambda: sb.topk(x, x, 3))
    with pytest.raises(RuntimeError, match="topk: called by a signal handler inside of another kernel"):
        call()
    assert sb.topk(x, x, 1).indices[:, 0].tolist() == list(range(40))


def test_other_threads_are_left_alone(alarm):
    """Python runs handlers in its main thread alone."""
    queries, gallery = torch.randn(2000, 256), torch.randn(100_000, 256)
    want, found = sb.topk(queries, gallery, 3), []
    worker = threading.Thread(target=lambda: found.append(sb.topk(queries, gallery, 3)))
    seen = []
    alarm(lambda: seen.append(1))
    worker.start()
    worker.join()
    assert torch.equal(found[0].indices, want.indices)


_FORK = """
import os, sys
import torch
import semobridge_ext as sb
from semobridge_ext.runtime.threads import thread_count

torch.set_num_threads(2)
torch.manual_seed(0)
x, gallery = (torch.nn.functional.normalize(torch.randn(n, 256), dim=1) for n in (300, 4000))
labels = torch.arange(4000) % 7
other = torch.randn(300, 256)
bridge = sb.Bridge(torch.randn(256, 256))


def results():  # compared by NumPy: PyTorch's own parallel loops would hang in the child
    logits = sb.support_logits(x, gallery, labels, 7)
    found = bridge(x), sb.topk(x, gallery, 5).scores, logits, sb.ops.symmetric_kl(x, other)
    return [t.numpy() for t in found]


want = results()  # the pool of threads is warm now
assert thread_count() == 2
child = os.fork()
if child == 0:
    code = 3
    try:
        equal = all((a == b).all() for a, b in zip(results(), want))
        code = 0 if equal and thread_count() == 1 else 1
    finally:
        os._exit(code)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_computes_on_one_thread():
    done = run(sys.executable, "-W", "ignore", "-c", _FORK, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert thread_count() == torch.get_num_threads()


_FORK_SERVER = """
import os, signal, sys, threading
import torch
import semobridge_ext as sb

torch.set_num_threads(2)
led, how = {}, sys.argv[1]
x = torch.randn(3000, 128)
gallery = sb.Gallery(x, normalize=True)  # as a server that loads once, and forks its workers
if how == "led":
    gallery.topk(x, 2)


def work():
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        assert torch.get_num_threads() == (1 if how == "led" else 2)
        if how == "led":
            found = gallery.topk(torch.cat([x] * 20), 2)  # unit rows by PyTorch's loops
            assert found.indices[:, 0].tolist() == 20 * list(range(3000))
        os._exit(0)
    led["status"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if how == "led":
    work()
else:  # the child of a thread that has led no team can start teams of its own
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
sys.exit(led["status"])
"""


@pytest.mark.parametrize("how", ["led", "another thread"])
def test_a_forked_child_may_use_pytorch_where_a_kernel_has_led_a_team(how: str):
    done = run(sys.executable, "-W", "ignore", "-c", _FORK_SERVER, how, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
