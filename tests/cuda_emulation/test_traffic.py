"""What the requests of warps move, bounded by kernel: sectors of global, wavefronts of shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.cuda_emulation.build import Emulation, kernel_sources
from tests.cuda_emulation.order_sites import compiled
from tests.cuda_emulation.run_cases import load
from tests.cuda_emulation.watched import Line, Site, by_line, sites, source_of, traffic, watched
from tests.support.scripts import load_script
from tests.support.source_tree import ROOT, need_source

accesses, sass = load_script("gpu/accesses"), load_script("gpu/sass")


class Bound(NamedTuple):
    """What a kernel's requests move over what they need: of any line on the mean, and of any request."""

    line: float = 1.25
    request: float = 2.0  # float32 in packs of eight beside halves: 32 bytes a lane, in two moves


USUAL = Bound()
BOUNDS = {
    # By kernel, global memory and shared memory, with the reason.
    # Heads of odd width and rows off a 16-byte boundary go by single values, where the packs would lie.
    "attention_bwd_kernel": (Bound(1.25, 5.0), Bound(2.0, 4.0)),
    "attention_fwd_kernel": (Bound(1.25, 4.0), Bound(2.0, 4.0)),
    "topk_filter_kernel": (Bound(3.5, 4.0), USUAL),
    "few_rows_fwd_kernel": (Bound(1.5, 2.0), USUAL),  # a norm's float32 weights beside halves
    # That in all its variants, and the prefix of heads of 24 and 72 columns, whose packs lie apart.
    "tower_step_kernel": (Bound(2.0, 2.0), Bound(2.0, 4.0)),
}


def too_much(lines: Sequence[Line]) -> list[str]:
    found = []
    for line in lines:
        bound = BOUNDS.get(line.kernel, (USUAL, USUAL))[line.shared]
        if line.ratio <= bound.line and line.worst <= bound.request:
            continue
        unit = (
            "wavefronts (lanes meet in banks: pad the rows)" if line.shared else "sectors (lanes lie apart)"
        )
        found.append(
            f"{line.kernel} moves {line.ratio:.2f} times the {unit} that it needs at {line.place}, "
            f"{line.worst:.2f} times in the worst request; bounds {bound.line} and {bound.request}: "
            f"{source_of(line.place)}. Let neighbouring lanes touch neighbouring values, or write "
            "BOUNDS[kernel] with the reason"
        )
    return found


@pytest.fixture(scope="module")
def small() -> Emulation:
    return watched("blend_logits").build()


def counted(small: Emulation, kernel: str, argument: int = 0) -> list[Site]:
    """From a 128-byte boundary, so that the figures are those of the pattern alone; loads come first."""
    module = load(str(small.module))
    module.set_order(0, 1)
    module.watch("traffic")
    x, y = (np.zeros(2048, np.float32) for _ in range(2))
    module.order(kernel, *(a.ctypes.data + -a.ctypes.data % 128 for a in (x, y)), argument)
    module.watch("")
    return sorted(sites(small.module, module.traffic()), key=lambda s: s.store)


@pytest.mark.parametrize(
    "kernel,argument,moved",
    [("strided", 1, 8), ("strided", 2, 16), ("strided", 8, 64), ("strided", 0, 2), ("wide", 0, 32)],
)
def test_sectors_are_counted(small: Emulation, kernel: str, argument: int, moved: int):
    """64 lanes read float32 values that lie so far apart, 0: all the same, and store them side by side."""
    loads, stores = counted(small, kernel, argument)
    assert loads.requests == stores.requests == 2 and loads.moved == moved
    assert loads.needed == (2 if (kernel, argument) == ("strided", 0) else stores.needed)
    assert stores.moved == stores.needed == (32 if kernel == "wide" else 8)


@pytest.mark.parametrize(
    "kernel,argument,want",
    [("column", 0, [(32, 1)]), ("column", 1, [(1, 1)]), ("wide shared", 1, [(1, 1), (4, 4)]),
     ("wide shared", 2, [(1, 1), (8, 4)])],
)  # fmt: skip
def test_wavefronts_are_counted(small: Emulation, kernel: str, argument: int, want: list[tuple[int, int]]):
    """512 bytes take four wavefronts, one value for all lanes takes one."""
    found = [(s.moved, s.needed) for s in counted(small, kernel, argument) if s.shared]
    assert sorted(set(found)) == want


def test_planted_patterns_break_the_bounds(small: Emulation):
    def planted(kernel: str, argument: int) -> list[str]:
        return too_much(by_line(counted(small, kernel, argument)))

    assert planted("strided", 1) == [] and planted("column", 1) == []
    (strided,) = planted("strided", 8)
    assert "strided_kernel moves 8.00 times the sectors" in strided and "order_selftest.cu:" in strided
    (conflict,) = planted("column", 0)
    assert "column_kernel moves 32.00 times the wavefronts" in conflict and "BOUNDS[kernel]" in conflict


def test_a_kernel_keeps_its_bounds(small: Emulation):
    lines = by_line(traffic(small.module, "blend_logits"))
    assert {line.shared for line in lines} == {True, False}
    assert too_much(lines) == []


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return accesses.measured()


@pytest.mark.slow
def test_kernels_keep_their_bounds(lines: list[Line]):
    wrong = too_much(lines)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_kernel_is_measured(lines: list[Line]):
    kernels = {name for path in sass.sources() for name in sass.declared(path)}
    missing = kernels - {line.kernel for line in lines}
    assert not missing, f"no case runs {sorted(missing)}; write one (docs/contributing.md, Add an operator)"


@pytest.mark.slow
def test_a_stretch_for_each_lane_is_noticed(tmp_path: Path):
    """A true kernel, right as ever, whose lanes each run over a stretch of the row of their own."""
    emulation = watched("symmetric_kl").build()
    assert too_much(by_line(traffic(emulation.module, "symmetric_kl"))) == []
    source = kernel_sources()["symmetric_kl"]
    text = source.read_text()
    loop = "i = static_cast<int64_t>(threadIdx.x % kTeam) * kStep; i < classes;\n       i += kTeam * kStep"
    assert text.count(loop) == 1
    each = "(classes + kTeam * kStep - 1) / (kTeam * kStep) * kStep"
    own = f"i = threadIdx.x % kTeam * ({each}), end = i + {each}; i < classes && i < end; i += kStep"
    planted = compiled(
        emulation, source, "symmetric_kl/cuda.cu", text.replace(loop, own), tmp_path / "source"
    )
    module = emulation.with_one_replaced("symmetric_kl", planted, tmp_path)
    told = too_much(by_line(traffic(module, "symmetric_kl")))
    assert told and all("symmetric_kl_bwd_kernel moves" in line for line in told), told


def test_the_document_holds_every_kernel():
    need_source()
    document = (ROOT / "docs" / "gpu.md").read_text()
    for marks in (accesses.MARKS, sass.MARKS):
        part = document.split(marks[0])[1].split(marks[1])[0]
        for path in sass.sources():
            for kernel in sass.declared(path):
                assert f"| `{kernel}` |" in part, f"{kernel}: write the table anew, {marks[0]}"
