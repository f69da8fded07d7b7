"""Labels that another thread writes while they are read: an error or some result, never a wild access."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext._ops.blend_logits.spec import Similarities
from semobridge_ext._ops.count_correct.cpu import prune_candidates
from tests.support.fresh import Program, run_fresh

_RACE = """
import threading, time, torch
import semobridge_ext as sb
torch.set_num_threads(1)
S, C = 1 << 20, 7
labels, keys, done = torch.arange(S) % C, torch.ones(S, 1), False
few = keys[:64]
tail, wild = labels[-S // 2 :], {wild}
sound = tail.clone()
def write():
    while not done:
        tail.copy_(sound)
        tail.fill_(wild)
threading.Thread(target=write, daemon=True).start()
end, calls = time.monotonic() + 0.5, 0
while calls < 6 or time.monotonic() < end:
    calls += 1
    try:
        {call}
    except ValueError as error:
        assert "labels" in str(error), error
done = True
"""
CALLS = {
    "support_logits": "sb.support_logits(torch.ones(1, 1), keys, labels, C)",
    "SupportSet": "sb.SupportSet(keys, labels, C)",
    "retrieval_metrics": "sb.retrieval_metrics(few, few, labels[-64:], labels[-64:], same_set=True)",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wild", [1 << 40, 6])
def test_written_meanwhile(call: str, wild: int):
    code = _RACE.replace("{wild}", str(wild)).replace("{call}", CALLS[call])
    (done,) = run_fresh([Program(code)])
    assert done.returncode == 0, (done.returncode, done.stderr[-800:])


def test_rows_of_no_class_have_no_candidates():
    z = Similarities(*(torch.rand(3, 4) for _ in range(3)))
    _, count = prune_candidates(
        z, torch.tensor([1 << 40, 2, -(1 << 40)]), torch.zeros(4, dtype=torch.float64)
    )
    assert count[0] == count[2] == 0
