"""Sequences of tasks: who may see what, whatever the labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semobridge_ext.incremental import Task, class_incremental, data_incremental, label_incremental


def labels(rows: int = 60, columns: int = 6, seed: int = 0, unknown: float = 0.2) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(rows, columns, generator=g) < 0.3).long()
    return torch.where(torch.rand(rows, columns, generator=g) < unknown, -1, y)


def sets(tasks: list[Task], field: str) -> list[set[int]]:
    return [set(getattr(task, field).tolist()) for task in tasks]


def assert_disjoint(parts: list[set[int]]) -> None:
    assert sum(map(len, parts)) == len(set.union(*parts))


def assert_sound(y: Tensor, tasks: list[Task]) -> None:
    """Ascending, and known where and only where Y holds a label."""
    for task in tasks:
        assert task.rows.dtype is task.findings.dtype is torch.int64
        assert task.rows.tolist() == sorted(set(task.rows.tolist()))
        assert task.findings.tolist() == sorted(set(task.findings.tolist())) != []
        assert torch.equal(task.known, y[task.rows][:, task.findings] != -1)


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 0.6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_protocol_is_sound_and_disjoint(seed: int, count: int, unknown: float):
    y = labels(seed=seed, unknown=unknown)
    labelled = set((y >= 0).any(dim=1).nonzero().flatten().tolist())
    for protocol in (label_incremental, data_incremental, class_incremental):
        try:
            tasks = protocol(y, count, seed=seed)
        except ValueError as error:
            assert protocol is class_incremental and "must show every finding in its task" in str(error)
            continue
        assert len(tasks) == count
        assert_sound(y, tasks)
        rows, findings = sets(tasks, "rows"), sets(tasks, "findings")
        assert set.union(*rows) == labelled
        if protocol is not label_incremental:
            assert_disjoint(rows)
        if protocol is not data_incremental:
            assert_disjoint(findings)
            assert set.union(*findings) == set(range(6))


def test_class_incremental_gives_images_to_what_they_show():
    y = labels()
    tasks = class_incremental(y, [[0, 1], [2, 3], [4, 5]])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    shown = [set(groups[row == 1].tolist()) for row in y]
    for number, task in enumerate(tasks):
        assert task.findings.tolist() == [2 * number, 2 * number + 1]
        for row in task.rows.tolist():
            assert number in shown[row] or not shown[row]
        assert ((y[task.rows][:, task.findings] == 1).sum(0) > 0).all()
    several = [row for row, found in enumerate(shown) if len(found) > 1]
    taken = {row: n for n, task in enumerate(tasks) for row in task.rows.tolist()}
    other = {row: n for n, task in enumerate(class_incremental(y, [[0, 1], [2, 3], [4, 5]], seed=1))
             for row in task.rows.tolist()}  # fmt: skip
    moved = [row for row in several if taken[row] != other[row]]
    assert len(several) > 10 and len(moved) > 2 and {taken[row] for row in several} == {0, 1, 2}


def test_label_incremental_keeps_the_images():
    y = labels(unknown=0.0)
    for task in label_incremental(y, 3, seed=3):
        assert task.rows.tolist() == list(range(60)) and len(task.findings) == 2
    y[:5, :2] = -1
    assert label_incremental(y, [[0, 1], [2]])[0].rows.tolist() == list(range(5, 60))


def test_data_incremental_shares_images_out_evenly():
    y = labels(61, unknown=0.0)
    assert [len(task.rows) for task in data_incremental(y, 4)] == [16, 15, 15, 15]
    y[:, 3] = -1
    assert all(task.findings.tolist() == [0, 1, 2, 4, 5] for task in data_incremental(y, 4))


@pytest.mark.parametrize("protocol", [class_incremental, label_incremental, data_incremental])
def test_draws_depend_on_the_seed_alone(protocol):
    y, state = labels(), torch.get_rng_state()

    def drawn(seed: int, y: Any = y) -> list[list[int]]:
        return [t.rows.tolist() + t.findings.tolist() for t in protocol(y, 2, seed=seed)]

    assert drawn(5) == drawn(5) == drawn(5, y.numpy()) == drawn(5, torch.where(y < 0, torch.nan, y.float()))
    assert len({str(drawn(seed)) for seed in range(6)}) > 1
    assert torch.equal(torch.get_rng_state(), state)


LONELY = torch.tensor([[1, 1, 0], [0, 0, 1]])  # the first two findings occur together alone
BAD: dict[str, tuple[Any, Any, Any, type, str]] = {
    "labels": (class_incremental, [[3]], 1, ValueError, "Y must hold 0, 1, NaN or −1, got 3 in row 0"),
    "too many": (label_incremental, LONELY, 4, ValueError, "tasks must be ≥ 1 and at most 3, got int 4"),
    "no image": (data_incremental, LONELY, 3, ValueError, "tasks must be ≥ 1 and at most 2, got int 3; each"),
    "half": (class_incremental, LONELY, 1.5, TypeError, "tasks must be a whole number, got float 1.5"),
    "true": (label_incremental, LONELY, True, TypeError, "tasks must be a whole number, got bool True"),
    "overlap": (label_incremental, LONELY, [[0], [0, 1]], ValueError, "tasks must be disjoint and not empty"),
    "empty": (class_incremental, LONELY, [[0], []], ValueError, "tasks must be disjoint and not empty"),
    "none": (class_incremental, LONELY, [], ValueError, "tasks must be disjoint and not empty, got list"),
    "range": (label_incremental, LONELY, [[0], [-1]], ValueError, r"tasks must lie in 0\.\.2, got int -1"),
    "not shown": (
        class_incremental, LONELY, [[0], [1], [2]], ValueError,
        "Y must show every finding in its task, got none of column [01] in task [01]; take another seed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    protocol, y, tasks, kind, told = BAD[case]
    with pytest.raises(kind, match=f"{protocol.__name__}: {told}"):
        protocol(y, tasks)
    with pytest.raises(TypeError, match=f"{protocol.__name__}: seed must be a whole number"):
        protocol(LONELY, 1, seed=0.5)
