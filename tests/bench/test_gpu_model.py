"""bench/gpu/model.py: the arithmetic of a launch, and what it counts of both sides."""

from __future__ import annotations

import math

import pytest
import torch

from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from tests.support.scripts import load_script

model = load_script("gpu/model")
from on_paper import counting, loops, machine, ops, row  # noqa: E402 - beside the script

DEVICE = machine.Device("d", memory=1e12, cache=2e12, half=1e14, single=1e13, processors=10)


def work_of(launch: machine.Launch) -> float:
    return launch.seconds(DEVICE) - machine.NODE


def test_a_launch_takes_the_longest_of_four():
    launch = machine.Launch
    assert work_of(launch("x", 1e10)) == pytest.approx(1e-2)
    assert work_of(launch("x", 1e10, 4e10)) == pytest.approx(2e-2), "through L2"
    assert work_of(launch("x", 1e10, 1e10, 1e13)) == pytest.approx(0.1)
    assert work_of(launch("x", 1e10, 1e10, 1e13, half=False)) == pytest.approx(1.0)
    assert work_of(launch("x", 0, 0, 1e13, rate=0.5)) == pytest.approx(0.2)
    assert work_of(launch("x", 0, blocks=21, resident=2, trips=100)) == pytest.approx(200 * machine.TRIP)
    assert work_of(launch("x", 0)) == 0


def test_phases_of_a_launch_meet_and_fetch_ahead():
    phases = [machine.Launch("x", 1e6), machine.Launch("y", 3e6), machine.Launch("z", 0, 0, 1e9)]
    whole = machine.at_once("all", phases, 2)
    assert (whole.memory, whole.cache, whole.operations) == (4e6, 4e6, 1e9)
    ahead = 1e12 * machine.MEETING
    assert ahead == 1.5e6
    rest = max((3e6 - ahead) / 1e12, (3e6 - ahead) / 2e12) + 1e9 / 1e14
    assert work_of(whole) == pytest.approx(1e-6 + rest + 2 * machine.MEETING)
    assert all(phase.resident == 2 for phase in whole.phases)
    alone = machine.Launch("y", 3e6, meets=False)
    whole = machine.at_once("all", [phases[0], alone, phases[2]], 2)
    rest = 3e6 / 1e12 + 1e9 / 1e14
    want = 1e-6 + rest + machine.MEETING + machine.TRIP
    assert work_of(whole) == pytest.approx(want), "nothing is fetched ahead"


def test_the_busiest_multiprocessor_ends_a_launch():
    assert machine.spread(math.inf, 10) == 1 and machine.spread(20, 10) == 1
    assert machine.spread(5, 10) == 0.5, "half of them are idle"
    assert machine.spread(11, 10) == pytest.approx(0.55), "one has two blocks, nine wait for it"
    assert work_of(machine.Launch("x", 0, 2e12, blocks=5)) == pytest.approx(2.0)


def test_a_product_is_granted_its_best_tile():
    whole = machine.product("mm", 1280, 512, 2560)  # 100 tiles of 128 × 256: ten for each
    assert work_of(whole) == pytest.approx(max(2 * 1280 * 512 * 2560 / 1e14, whole.memory / 1e12))
    assert whole.memory == 2 * (1280 * 512 + 512 * 2560 + 1280 * 2560)
    few = machine.product("mm", 16, 512, 512)
    padded = 2 * 128 * 256 * 2 * 512 / 1e14 / 0.2  # two large tiles on two of ten
    assert work_of(few) < padded
    one = machine.product("mm", 1, 512, 10**6, size=4)
    assert work_of(one) == pytest.approx(one.memory / 1e12), "no tile around one row"


def test_plain_sequences_are_counted():
    x, w = torch.empty(8, 4, device="meta"), torch.empty(4, 6, device="meta")

    def plain() -> None:
        y = (x @ w).T  # a view is no launch
        y.exp()

    launches = counting.counted(plain)
    assert [launch.name for launch in launches] == ["mm", "exp"]
    assert launches[0].operations == 2 * 8 * 4 * 6
    assert launches[0].memory == 4 * (32 + 24 + 48) == launches[0].cache
    assert launches[1].memory == 4 * 48 and launches[1].cache == 4 * 96, "its operand is still in L2"


def test_products_that_add_are_counted():
    x, w, out = (torch.empty(*s, device="meta") for s in ((8, 4), (4, 6), (8, 6)))
    for step in (lambda: out.addmm_(x, w), lambda: torch.addmm(out, x, w)):
        (added,) = counting.counted(step)
        assert added.operations == 2 * 8 * 4 * 6 and not added.half
        assert isinstance(added, machine.Product), "granted a tile like any other"


def test_half_products_with_a_float32_result_are_counted():
    x, w = (torch.empty(*s, device="meta", dtype=torch.bfloat16) for s in ((8, 4), (4, 6)))
    (mm,) = counting.counted(lambda: torch.mm(x, w, out_dtype=torch.float32))
    assert mm.half and mm.operations == 2 * 8 * 4 * 6 and mm.cache == 2 * (32 + 24) + 4 * 48


def test_what_was_used_long_ago_comes_from_memory():
    recent, part = counting.Recent(), machine.RESIDENT // 2
    assert recent.missed(1, part) == part and recent.missed(1, part) == 0
    assert recent.missed(2, part) == part and recent.missed(1, part) == 0
    assert recent.missed(3, part) == part and recent.missed(2, part) == part
    assert recent.missed(4, 3 * part) == 3 * part and recent.missed(4, 3 * part) == 3 * part


def test_the_best_are_selected_in_passes():
    scores = torch.empty(1, 1000, device="meta")
    launches = counting.counted(lambda: scores.topk(3))
    assert len(launches) == counting.DIGITS + 1 and launches[0].cache == 4000


def test_steps_are_counted_from_the_engines(monkeypatch: pytest.MonkeyPatch):
    found = loops.oti_step(72, "small", 64, 2, 3, 32)
    assert len(found.ours) == 16 * 3 + 6
    names = [launch.name for launch in found.ours]
    assert names.count("attention") == 3 and names.count("adamw") == 1 and names.count("mm") == 4 * 3 + 2
    assert found.other is None
    (whole,), (name, few) = (row := loops.oti_step(8, "small", 64, 2, 3, 32)).ours, row.other
    assert name == "launch by launch" and len(few) == len(whole.phases) == 10 * 3 + 6
    assert whole.memory == sum(launch.memory for launch in few)
    attention = [launch for launch in few if launch.name.startswith("attention")]
    assert [launch.meets for launch in attention] == [False] * 6, "8 samples of 2 slots are one block's"
    assert {launch.blocks for launch in attention} == {2} and attention[0].trips == 1 + 1 + 2
    # The last layer's gradient has one query, which sees one key more than the prefix.
    assert [launch.trips for launch in attention[3:]] == [4 + 2, 4 + 3, 4 + 3]
    (whole,) = loops.oti_step(9, "small", 64, 2, 3, 32).ours
    assert all(launch.meets for launch in whole.phases), "two rounds of one block cost more than to meet"
    # The projection's columns fit one tile, and so do its 8 rows; K is one step.
    last = [launch for launch in few if launch.name == "few_rows"][8 * 3 // 2]
    assert (
        last.half and last.blocks == 1 and last.memory == 2 * 64 * 32 and last.operations == 2 * 8 * 64 * 32
    )
    assert last.trips == 1 + 3 + 1
    assert last.cache == 2 * (8 * 64 + 64 * 32 + 8 * 32) + 2 * 4 * 64 * 32
    monkeypatch.setattr(loops, "chunk_samples", lambda *_: 3)
    assert [len(loops.oti_step(n, "s", 64, 2, 3, 32).ours) for n in (3, 8)] == [1, 3]
    assert [len(loops.oti_step(n, "s", 64, 2, 3, 32).other[1]) for n in (3, 8)] == [36, 3 * 36]
    found = loops.semobridge_t_step(5, 3, 16)
    assert 30 < len(found.ours) < 50 and {"row_loss", "adamw_flat", "mm"} <= {x.name for x in found.ours}
    assert not any(x.half for x in found.ours if x.name in ("mm", "addmm_"))
    monkeypatch.setattr(CudaTrainingPieces, "least", 0)
    found = loops.semobridge_t_step(5, 3, 16)
    products = [x for x in found.ours if x.name == "mm" and x.half]
    assert [(x.rows, x.depth, x.cols, x.size, x.out_size) for x in products] == [
        (15, 3 * 16, 2 * 5, 2, 4), (2 * 16, 15, 2 * 2 * 5, 2, 4)
    ]  # fmt: skip


def test_operators_are_counted_from_their_tiles():
    found = ops.bridge(1, 512, torch.bfloat16)
    assert [launch.name for launch in found.ours] == ["project_normalize_fwd_kernel"]
    assert sum(launch.operations for launch in found.plain) == 2 * 512 * 512, "one folded product"
    found = ops.topk(3, 5000, 16, 4)
    assert found.ours[-1].name == "topk_merge_kernel"
    assert len([launch for launch in found.plain if launch.name == "topk"]) == counting.DIGITS + 1


def test_the_table_shows_what_was_before(monkeypatch: pytest.MonkeyPatch):
    commit, earlier = row.before()
    assert len(commit) == 7 and len(earlier) >= 14
    one = row.Row("a call", "a note", [machine.Launch("x", 3e9)], [machine.Launch("y", 6e9)] * 2)
    summary = row.summary(one)
    assert summary["launches"] == 1 and summary["H100 SXM"] == pytest.approx(1e-3 + machine.NODE)
    monkeypatch.setattr(model, "before", lambda: ("abcdef0", {"a call": summary | {"launches": 7}}))
    lines = model.table([one, one._replace(title="another")]).splitlines()
    assert lines[2].startswith("| a call (a note) | at abcdef0 | 7 |") and lines[2].endswith("| 1 ms |")
    assert lines[3].startswith("|  | ours | 1 | 3 GB | 3 GB | 0 FLOP |") and "| plain | 2 |" in lines[4]
    assert lines[5].startswith("| another (a note) | ours |") and len(lines) == 7
    both = one._replace(other=("launch by launch", one.plain))
    assert model.table([both]).splitlines()[4].startswith("|  | launch by launch | 2 | 12 GB |")
