"""The streaming ops called from 16 Python threads at once, on shared inputs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import semobridge_ext as sb

CALLERS, CALLS = 16, 4  # each calls every op once


@pytest.mark.parametrize("threads", [1, 2])
def test_sixteen_callers_get_what_one_gets(threads: int, isa: str):
    torch.set_num_threads(threads)
    q, k = torch.randn(150, 40), torch.nn.functional.normalize(torch.randn(2500, 40), dim=1)
    labels, weights = torch.randint(0, 30, (2500,)), torch.rand(2500)
    support = sb.SupportSet(k.half(), labels, 30)

    def logits():
        return sb.support_logits(q / 10, k, labels, 30, beta=2.0, weights=weights)

    def search():
        return sb.topk(q, k, 20).indices

    def metrics():
        per_query = sb.retrieval_metrics(k, k, labels, labels, same_set=True, per_query=True)["per_query"]
        return per_query["AP"]

    def cached():
        return support.logits(q / 10, beta=3.0)

    programs = [logits, search, metrics, cached]
    want = [program() for program in programs]
    start = threading.Barrier(CALLERS)

    def call(caller: int) -> list[tuple[int, bool]]:
        start.wait()
        seen = []
        for i in range(CALLS):
            which = (caller + i) % len(programs)
            seen.append((which, torch.equal(programs[which](), want[which])))
        return seen

    with ThreadPoolExecutor(CALLERS) as pool:
        results = [r for part in pool.map(call, range(CALLERS)) for r in part]
    assert len(results) == CALLERS * CALLS
    wrong = [which for which, right in results if not right]
    assert not wrong, f"{len(wrong)} of {len(results)} calls differ: {sorted(set(wrong))}"
