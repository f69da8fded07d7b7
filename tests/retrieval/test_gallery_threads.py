"""Gallery under threads: a call answers from one moment, changes wait for one another, copies are apart."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import semobridge_ext as sb
from semobridge_ext._ops.topk import prepared
from tests.support.assertions import assert_same_scores


@pytest.fixture
def meanwhile(monkeypatch) -> Callable[[Callable[[], Any]], None]:
    """`meanwhile(change)`: the change happens in the midst of the next search, once its rows are found."""

    def arrange(change: Callable[[], Any]) -> None:
        search, waiting = prepared.cpu.topk, [change]

        def interrupted(*args: Any, **options: Any) -> Any:
            found = search(*args, **options)
            while waiting:
                waiting.pop()()
            return found

        monkeypatch.setattr(prepared.cpu, "topk", interrupted)

    return arrange


def whole(*shape: int) -> Tensor:
    """Small whole numbers, whose products are exact."""
    return torch.randint(-3, 4, shape).float()


def test_ids_are_those_of_the_rows_that_were_searched(meanwhile):
    rows, ids = whole(200, 12), torch.arange(1000, 1200)
    gallery = sb.Gallery(rows, ids=ids)
    meanwhile(lambda: gallery.remove(ids[:50]))
    _, found = gallery.search(rows[100:103], 5)
    best = torch.argsort(-(rows[100:103].double() @ rows.double().T), dim=1, stable=True)[:, :5]
    assert found.tolist() == ids[best].tolist()
    assert len(gallery) == 150


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_range_search_and_kneighbors_end_over_the_rows_they_began_with(change: str, meanwhile):
    rows = whole(300, 6)
    rows[:, 0] = 2.0  # many hits: the search goes on with a larger k
    queries = torch.zeros(2, 6)
    queries[:, 0] = 1.0
    changes = {"add": lambda g: g.add(rows[:100]), "remove": lambda g: g.remove(range(250))}
    gallery = sb.Gallery(rows)
    meanwhile(lambda: changes[change](gallery))
    hits = gallery.range_search(queries, 2.0)
    assert hits.limits.tolist() == [0, 300, 600] and hits.indices.tolist() == 2 * list(range(300))
    unit = sb.Gallery(torch.eye(40), normalize=True).add(torch.eye(40))
    meanwhile(lambda: unit.remove(range(30)))
    assert unit.kneighbors(n_neighbors=1, return_distance=False).flatten().tolist() == [
        *range(40, 80), *range(40)
    ]  # fmt: skip


def test_changes_wait_for_one_another(monkeypatch):
    make = prepared.quantize_rows

    def slow(rows: Tensor) -> Any:
        time.sleep(0.02)  # others come in between, if they can
        return make(rows)

    gallery = sb.Gallery(torch.zeros(1, 8), ids=[-1])
    monkeypatch.setattr(prepared, "quantize_rows", slow)
    rows = torch.arange(1, 81).float()[:, None].expand(80, 8).contiguous()

    def add(first: int) -> None:
        gallery.add(rows[first : first + 10], range(first, first + 10))

    workers = [threading.Thread(target=add, args=(first,)) for first in range(0, 80, 10)]
    workers.append(threading.Thread(target=gallery.remove, args=(-1,)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    scores, ids = gallery.search(torch.ones(1, 8), 80)
    assert len(gallery) == 80 and ids.tolist() == [list(range(79, -1, -1))]
    assert scores.tolist() == [[8.0 * (i + 1) for i in range(79, -1, -1)]]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, sb.Gallery.copy,
                                       lambda g: pickle.loads(pickle.dumps(g))])  # fmt: skip
def test_a_copy_and_its_original_do_not_meet(duplicate: Callable[[sb.Gallery], sb.Gallery]):
    rows = torch.randn(9000, 40)
    gallery = sb.Gallery(rows[:4000], ids=range(4000)).add(rows[4000:4010], range(4000, 4010))
    other = duplicate(gallery)
    gallery.add(rows[4010:5000], range(4010, 5000))
    other.add(rows[5000:9000], range(5000, 9000)).remove([0, 4005])  # the same places, other rows
    assert len(gallery) == 5000 and len(other) == 8008
    queries, kept = (
        torch.randn(3, 40),
        torch.tensor([*range(1, 4005), *range(4006, 4010), *range(5000, 9000)]),
    )
    for got, numbers in ((gallery, torch.arange(5000)), (other, kept)):
        assert torch.equal(got.ids, numbers)
        want = sb.topk(queries, rows[numbers], 9)
        found = got.topk(queries, 9)
        assert torch.equal(found.indices, want.indices)
        assert_same_scores(found.scores, want.scores)
    gallery.add(rows[:1], [9000])  # a copy can be changed, and so has a lock of its own
    assert len(gallery) == 5001 and type(other) is sb.Gallery


def test_rows_that_come_one_by_one_are_not_copied_again_and_again():
    class Written(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.copy_):
                self.elements += found.numel()
            return found

    gallery = sb.Gallery(torch.randn(1, 64))
    with Written() as written:
        for row in torch.randn(1000, 64).split(1):
            gallery.add(row)
    # Three copies of a row on average (itself, and where room doubles), codes alike, and the codes of
    # the panel of 32 that it shares; a copy of all codes at each would be 32 000 a row.
    assert written.elements < 1000 * 64 * (3 + 3 + 2 * 32)
    assert len(gallery) == 1001
