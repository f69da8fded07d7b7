"""bench/gpu/write_rules.py: how a rule follows from the model, and that the rules in force are today's."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext.runtime import rule_table
from tests.support.scripts import load_script
from tests.support.source_tree import ROOT

script = load_script("gpu/write_rules")
from on_paper import choices, counting, devices, machine  # noqa: E402 - beside the script

AGAIN = "write them again: python bench/gpu/write_rules.py --docs docs/gpu.md"


def tables_of(found: dict) -> tuple[dict, dict]:
    """As rule_table.py has them: steps, and gains."""
    fields = ("steps", "gain")
    steps, gains = (
        {c: {op: tuple(getattr(r, f) for r in pair) for op, pair in ops.items()} for c, ops in found.items()}
        for f in fields
    )
    return steps, gains


def assert_in_force(found: dict) -> None:
    steps, gains = tables_of(found)
    for capability, ops in steps.items():
        for op, pair in ops.items():
            assert pair == rule_table.RULES[capability][op], AGAIN
            assert gains[capability][op] == rule_table.GAINS[capability][op], AGAIN


def test_rules_follow_from_the_model():
    """One architecture and two operators: the rest is a slow test."""
    assert_in_force(script.derive([(9, 0)], ("prepared_projection", "topk")))


@pytest.mark.slow
def test_all_rules_follow_from_the_model():
    found = script.derive()
    assert {c: set(ops) for c, ops in found.items()} == {c: set(r) for c, r in rule_table.RULES.items()}
    assert_in_force(found)


def test_the_page_shows_the_rules_in_force():
    document = (ROOT / "docs" / "gpu.md").read_text()
    begin, end = (document.index(mark) for mark in script.MARKS)
    pairs = {
        c: {op: tuple(map(script.Rule, steps, rule_table.GAINS[c][op])) for op, steps in ops.items()}
        for c, ops in rule_table.RULES.items()
    }
    assert document[begin:end].removeprefix(script.MARKS[0]).strip() == script.tables(pairs), AGAIN


def test_the_source_is_the_table():
    found = {
        (9, 0): {
            "op": (script.Rule([(0, "eager"), (5, "triton")], (1.5, 2.0)), script.Rule([(0, "eager")], None))
        }
    }
    made: dict = {}
    exec(script.source(found).replace("from __future__ import annotations", ""), made)
    assert tables_of(found) == (made["RULES"], made["GAINS"])


@pytest.mark.parametrize(
    "kernel,single,ratios,steps,gain",
    [
        ("native", True, {0: [2.0], 1: [1.5, 3.0]}, [(0, "native")], (1.5, 3.0)),
        ("native", True, {1: [2.0], 64: [0.9, 1.2]}, [(0, "native")], (0.9, 2.0)),
        ("native", True, {1: [2.0], 64: [0.9, 1.1]}, [(0, "eager")], None),  # behind on the mean
        ("native", True, {1: [0.9], 64: [12.34, 3.0]}, [(0, "eager"), (64, "native")], (3.0, 12.0)),
        ("native", True, {1: [9.0, 0.7]}, [(0, "eager")], None),  # far behind at one shape
        ("native", True, {1: [2.0], 8: [0.5], 64: [2.0]}, [(0, "eager"), (64, "native")], (2.0, 2.0)),
        ("triton", False, {1: [9.0], 1 << 20: [9.0], 1 << 22: [1.1]},
         [(0, "eager"), (1 << 20, "triton")], (1.1, 9.0)),
        ("triton", True, {1: [9.0], 1 << 20: [9.0], 1 << 22: [1.1]}, [(0, "eager")], None),  # an assumed rate
        ("", False, {}, [(0, "eager")], None),
    ],
)  # fmt: skip
def test_a_kernel_is_taken_from_where_it_stays_ahead(kernel, single, ratios, steps, gain):
    assert script.rule_of(ratios, kernel, single) == (steps, gain)


def test_machines_are_counted_one_by_one():
    known = {d.name: d for d in machine.DEVICES}
    found = devices.architectures()
    assert found[9, 0][0] is known["H100 SXM"] and found[8, 0] == [known["A100 80GB SXM"]]
    h200, b200 = found[9, 0][1], found[10, 0][0]
    assert h200.memory == pytest.approx(4.8e12 * 3 / 3.35) and h200.half == pytest.approx(798e12)
    assert b200.meeting > h200.meeting and b200.resident > h200.resident >= 32 << 20
    before = machine.resident()
    moved = float(48 << 20)
    assert machine.streamed("x", moved).memory == moved
    with machine.counting_for(b200):
        assert machine.resident() == b200.resident and machine.streamed("x", moved).memory == 0
        (call, *_) = choices.OPS["topk"](torch.float32)
    assert machine.resident() == before == machine.RESIDENT
    slow = h200._replace(node=1.0)
    assert sum(x.seconds(slow) for x in call.ours) > len(call.ours)


def test_freed_memory_is_used_again():
    """By size, the last freed first; so that counts are the same in every process."""
    places = counting.Places()
    a, b, c = (torch.empty(n, device="meta") for n in (8, 8, 4))
    assert [places.of(t) for t in (a, b, c, a[2:])] == [1, 2, 3, 1]
    del a
    d, e = torch.empty(8, device="meta"), torch.empty(8, device="meta")
    assert [places.of(t) for t in (e, d, b)] == [1, 4, 2]


def test_eager_is_the_program_that_runs_without_the_kernel():
    """Half types as a device multiplies them; sorting in passes of eight bits."""
    calls = {call.shape: call for call in choices.OPS["prepared_projection"](torch.bfloat16)}
    plain = [launch.name for launch in calls["65536 × 512"].eager]
    assert plain[:2] == ["cat", "mm"] and calls["65536 × 512"].eager[1].operations == 2 * 65536 * 1024 * 512
    ours = [launch.name for launch in calls["65536 × 512"].ours]
    assert ours[:3] == ["scale_rows_fwd_kernel", "mm", "normalize_rows_fwd_kernel"], "one part, scaled"
    assert [x.name for x in calls["512 × 512"].ours] == ["mm", "normalize_rows_fwd_kernel"]
    (search, *_) = choices.OPS["topk"](torch.float32)
    assert [x.name for x in search.eager].count("sort") == 4
    assert not list(choices.OPS["bridge_training"](torch.float16))
