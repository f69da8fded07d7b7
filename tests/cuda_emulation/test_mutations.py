"""CUDA kernels broken on purpose must turn the emulated run red.

Each mutation replaces one exact piece of source text, which must exist once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cuda_emulation.build import Emulation, kernel_sources, run_cases
from tests.cuda_emulation.mutations_blend import BLEND_MUTATIONS
from tests.cuda_emulation.mutations_few_rows import FEW_ROWS_MUTATIONS
from tests.cuda_emulation.mutations_rows import ROWS_MUTATIONS
from tests.cuda_emulation.mutations_step import STEP_MUTATIONS
from tests.cuda_emulation.mutations_topk import TOPK_MUTATIONS
from tests.cuda_emulation.mutations_tower import TOWER_MUTATIONS
from tests.cuda_emulation.mutations_train import TRAIN_MUTATIONS
from tests.cuda_emulation.order_sites import CSRC, bare, compiled, count_of, sites, stem_of
from tests.support.own_kernels import tables

# name: file, text, what stands there instead, cases, order
MUTATIONS = (
    ROWS_MUTATIONS
    | TOWER_MUTATIONS
    | BLEND_MUTATIONS
    | TOPK_MUTATIONS
    | TRAIN_MUTATIONS
    | FEW_ROWS_MUTATIONS
    | STEP_MUTATIONS
    | tables("CUDA_MUTATIONS")
)


def broken(name: str, emulation: Emulation, folder: Path) -> Path:
    """The object of the one kernel whose case must notice, compiled with this piece of source broken."""
    file, text, replacement, case, _ = MUTATIONS[name]
    original = (CSRC / file).read_text()
    assert original.count(text) == 1, f"{file} holds {original.count(text)} times: {text!r}"
    # A header is compiled with the kernel whose case runs; a file finds headers beside it first.
    kernel = kernel_sources()[stem_of(case)]
    return compiled(emulation, kernel, file, original.replace(text, replacement), folder)


def names() -> list[Any]:
    """All of them in a campaign; the first of every file of cases in continuous integration."""
    first = {stem_of(case): name for name, (*_, case, _) in reversed(MUTATIONS.items())}
    return [
        name if name in first.values() else pytest.param(name, marks=pytest.mark.campaign)
        for name in MUTATIONS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_mutation_is_caught(name: str, emulation: Emulation, tmp_path: Path):
    *_, case, order = MUTATIONS[name]
    mutant = broken(name, emulation, tmp_path / "source")
    module = emulation.with_one_replaced(stem_of(case), mutant, tmp_path)
    done = run_cases(module, order, case, timeout=120)
    assert done.returncode != 0, "the kernel is broken and the run is green"
    told = (done.stderr.strip().splitlines() or ["crash"])[-1]
    print(f"  {name}: {told[:120]}")


def test_what_removes_order_is_held_against_the_detector_too():
    """test_races.py removes every barrier and fence; each mutation that does so is one of those."""
    known = {(site.file, bare(site.without())) for site in sites()}
    removals = [name for name, (_, text, new, *_) in MUTATIONS.items() if count_of(new) < count_of(text)]
    assert len(removals) >= 10
    for name in removals:
        file, text, new, *_ = MUTATIONS[name]
        assert (file, bare((CSRC / file).read_text().replace(text, new))) in known, (
            f"{name}: it removes more than one statement of order; write one mutation for each"
        )
