"""No access of a kernel lacks its order, and no barrier or fence can go without a race.

Happens-before over shared and global memory, lanes, blocks and fences included (races.cpp): numbers are not
looked at, so what a lucky order of execution hides is seen too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cuda_emulation.all_cases import CASES
from tests.cuda_emulation.buffers import BFLOAT
from tests.cuda_emulation.build import Emulation, kernel_sources
from tests.cuda_emulation.cases_step import Tower
from tests.cuda_emulation.order_sites import CSRC, Site, cases_of, compiled, sites
from tests.cuda_emulation.run_cases import load
from tests.cuda_emulation.watched import in_lines, race_in, report_of, run_watched, watched

# Races of today, by case. They go by themselves: a kernel without its race is tested like the others.
KNOWN: dict[str, str] = {}
# Sites whose removal no case can notice, with the reason.
REDUNDANT: dict[tuple[str, int], str] = {
    ("tower_descent/cuda_step.cuh", 5): "between two tiles of an attention: staging a prefix begins with a "
    "barrier of its own, and only a tower without one needs this for the gradient's means",
}
NONE, SHUFFLE, VOTE, WARP, BLOCK = range(5)  # Order of order_selftest.cu
FENCE, BARRIER, FENCE_BEHIND, BARRIER_BEHIND, ONE_FENCE = 1, 2, 4, 8, 16  # Ticket


@pytest.fixture(scope="module")
def small() -> Emulation:
    return watched("blend_logits").build()


@pytest.fixture(scope="module")
def whole() -> Emulation:
    return watched().build()


def race_of(small: Emulation, kernel: str, argument: int) -> str:
    module = load(str(small.module))
    module.set_order(0, 1)
    module.watch("races")
    x, y = np.zeros(1024, np.float32), np.zeros(1024, np.float32)
    try:
        module.order(kernel, x.ctypes.data, y.ctypes.data, argument)
    except RuntimeError as error:
        assert "race: " in str(error), error
        return in_lines(small.module, str(error))
    return ""


@pytest.mark.parametrize(
    "kernel,argument,told",
    [
        ("before", NONE, "a write by thread 1 .* after the read by thread 0"),
        ("before", SHUFFLE, "a read by thread 0 .* after the write by thread 1"),
        ("before", VOTE, "a read by thread 0 .* after the write by thread 1"),
        ("before", WARP, ""),
        ("before", BLOCK, ""),
        ("after", NONE, "a read by thread 1 .* after the write by thread 0"),
        ("after", SHUFFLE, "a write by thread 0 .* after the read by thread 1"),
        ("after", WARP, ""),
        ("across", 0, "a read by thread 0 .* after the write by thread 32"),
        ("across", 1, ""),
        ("same place", 1, ""),
        ("same place", 2, "a write by thread 0 of block 1 .* after the write by thread 0 of block 0"),
        # Blocks that never run at once here may do so on a device.
        ("same place", 9, "a write by thread 0 of block 1 .* after the write by thread 0 of block 0"),
        ("reset too early", 0, "a write by thread 1 .* after the atomic by thread 0"),
    ],
)
def test_what_orders_threads(small: Emulation, kernel: str, argument: int, told: str):
    said = race_of(small, kernel, argument)
    if not told:
        assert said == ""
        return
    with pytest.raises(RuntimeError, match=told):
        raise RuntimeError(said)
    assert "order_selftest.cu:" in said, "the lines are not named"


def test_what_orders_blocks(small: Emulation):
    """Fence, barrier, atomic, barrier, fence; or one thread's fences for its block."""
    every = FENCE | BARRIER | FENCE_BEHIND | BARRIER_BEHIND
    alone = BARRIER | ONE_FENCE | BARRIER_BEHIND
    assert race_of(small, "last block", every) == race_of(small, "last block", alone) == ""
    for missing in (FENCE, BARRIER, FENCE_BEHIND):
        said = race_of(small, "last block", every & ~missing)
        assert "of block 4" in said and "after the write by" in said and "of block 0" in said, missing
    assert "of block 0 at" in race_of(small, "last block", every & ~BARRIER_BEHIND)
    for missing in (BARRIER, ONE_FENCE, BARRIER_BEHIND):
        assert race_of(small, "last block", alone & ~missing), missing


def check(done, case: str) -> None:
    said = race_in(done)
    if said and case in KNOWN:
        pytest.xfail(f"{case}: {KNOWN[case]}")
    assert not said, said
    assert report_of(done)["launches"] > 0


def test_a_kernel_has_no_race(small: Emulation):
    check(run_watched("races", small.module, "blend_logits"), "blend_logits")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_race(whole: Emulation, case: str):
    check(run_watched("races", whole.module, case), case)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("site", sites(), ids=lambda s: f"{s.file}-{s.number}-{s.statement[2:-3]}")
def test_no_barrier_or_fence_is_idle(whole: Emulation, site: Site, tmp_path: Path):
    """Without it there is a race in some case of a kernel that has it."""
    if (site.file, site.number) in REDUNDANT:
        pytest.skip(REDUNDANT[site.file, site.number])
    kernels = site.kernels()
    assert kernels, f"no kernel uses {site}"
    for kernel in kernels:
        cases = cases_of(kernel)
        for case in KNOWN.keys() & set(cases):
            check(run_watched("races", whole.module, case), case)
        object_file = compiled(whole, kernel_sources()[kernel], site.file, site.without(), tmp_path / kernel)
        module = whole.with_one_replaced(kernel, object_file, tmp_path / f"{kernel} module")
        said = race_in(run_watched("races", module, *cases))
        if said:
            print(f"  {site.file}: {said[:160]}")
            return
    pytest.fail(
        f"{site.file}: {site.statement} number {site.number} can go, and none of the cases of "
        f"{', '.join(kernels)} has a race. Either nothing needs it: remove it, or enter it in REDUNDANT "
        "with the reason. Or no case reaches what it orders: write one"
    )


@pytest.mark.slow
def test_no_meeting_of_a_step_is_idle(whole: Emulation, tmp_path: Path):
    """Each barrier between two phases, left out alone, leaves a race; with all of them there is none."""
    text = (CSRC / "tower_descent/cuda_step.cu").read_text()
    barrier = "grid_barrier(arrived, &target);"
    assert text.count(barrier) == 1
    text = text.replace(barrier, f"if (i != cuda_emulation::left_out) {barrier}")
    source = kernel_sources()["step"]
    mutant = compiled(whole, source, "tower_descent/cuda_step.cu", text, tmp_path / "source")
    built = whole.with_one_replaced("step", mutant, tmp_path / "module")
    module = load(str(built))
    module.set_order(0, 1)
    module.set_processors(3, 1)
    tower = Tower(module, np.random.default_rng(17), BFLOAT, 3, 48, 1)
    names = tower.named()
    assert len(names) == 10 + 6
    met = [n for n in range(len(names) - 1) if not names[n + 1].startswith("attention")]
    assert len(met) == 8 + 5, "an attention of few samples waits for nobody"
    module.watch("races")
    tower.at_once(3, steps=1)
    for number in met:
        module.leave_out(number)
        with pytest.raises(RuntimeError, match="race: "):
            tower.at_once(3, steps=1)
    module.watch("")
