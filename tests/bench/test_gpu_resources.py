"""nvcc compiles the CUDA kernels for every architecture; what they take is bounded and recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_cache import files_below, kept, version_of
from tests.support.scripts import load_script
from tests.support.source_tree import ROOT, need, need_source

resources = load_script("gpu/resources")
SOURCES = resources.sources()

_LOG = """
ptxas info    : Compiling entry function '_ZN10semobridge15some_fwd_kernelIfLi4EEEvPKf' for 'sm_80'
ptxas info    : Function properties for _ZN10semobridge15some_fwd_kernelIfLi4EEEvPKf
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 96 bytes smem, 488 bytes cmem[0]
"""


def test_the_compiler_s_words_are_read():
    need("c++filt", "name the kernels")
    (usage,) = resources.parse(_LOG, {"some_fwd_kernel": 256})
    assert usage[:8] == ("some_fwd_kernel", "float, 4", "80", 256, 40, 96, 8, 28)
    assert usage.occupancy == 0.75  # 6 blocks of 8 warps: 40 registers take 1280 a warp


@pytest.mark.parametrize(
    "architecture,threads,registers,shared,want",
    [("80", 256, 32, 0, 1.0), ("80", 1024, 64, 0, 0.5), ("90", 128, 255, 0, 0.125),
     ("86", 32, 16, 0, 16 / 48), ("120", 128, 16, 32 << 10, 12 / 48)],
)  # fmt: skip
def test_occupancy(architecture: str, threads: int, registers: int, shared: int, want: float):
    assert resources.occupancy(architecture, threads, registers, shared) == want


def test_architectures_are_the_build_s():
    """Of each that is built, and of each that runs another's code, the limits are known."""
    need_source()
    assert resources.ARCHITECTURES == ("80", "90", "100", "120")
    assert set(resources.LIMITS) == {*resources.ARCHITECTURES, *resources.BY_OTHERS}
    assert set(resources.BY_OTHERS.values()) <= set(resources.ARCHITECTURES)


def test_code_is_judged_where_others_run_it_too():
    need("c++filt", "name the kernels")
    (usage,) = resources.parse(_LOG, {"some_fwd_kernel": 256})
    ampere, ada = resources.by_others([usage])
    assert (ampere.architecture, ada.architecture) == ("86", "89") and ada.registers == 40
    assert ampere.occupancy == ada.occupancy == 1.0  # 6 blocks of 8 warps are all that they hold
    assert resources.by_others([usage._replace(architecture="90")]) == []


# Registers, shared bytes, occupancy; of kernels that need more than usual, by name.
LIMITS: dict[str, tuple[int, int, float]] = {
    # A lane holds 16 elements of four rows in float32 where a head is 128 wide, and the prefix lies in shared
    # memory; what it costs is one block a multiprocessor fewer in flight on the widest heads.
    "attention_bwd_kernel": (224, 17 << 10, 0.12),
    "attention_fwd_kernel": (160, 17 << 10, 0.18),
    # Tiles of a product: sums in registers, both operands in shared memory; three blocks are resident.
    "few_rows_fwd_kernel": (168, 29 << 10, 0.18),
    # All phases of a step, each with its arguments in registers; two blocks are resident, as its grid asks.
    "tower_step_kernel": (255, 18 << 10, 0.12),
    "topk_merge_kernel": (64, 8 << 10, 0.35),  # the candidates of eight warps
}
USUAL = (80, 1 << 10, 0.35)


def kernels_in(text: str) -> set[str]:
    return set(re.findall(r"\b(\w+_kernel)\(", text))


def test_kernels_are_found():
    need_source()
    assert len(SOURCES) >= 8
    assert len(kernels_in("".join(p.read_text() for p in SOURCES))) >= 12


HEAVY = {"cuda_step", "cuda_attention", "cuda_few_rows"}  # of the tower: most of the compiler's time


def _compilations() -> Iterator[Any]:
    """Everything for every architecture is a campaign; so is sm_90 of the heavy files, whose machine code
    the slow tests read: a spill shows there as an access of local memory."""
    campaign = [pytest.mark.slow, pytest.mark.campaign]
    for source in SOURCES:
        name, marks = f"{source.parent.name}-{source.stem}", campaign if source.stem in HEAVY else []
        yield pytest.param(source, ("90",), id=f"{name}-sm_90", marks=marks)
        yield pytest.param(source, resources.ARCHITECTURES, id=f"{name}-all", marks=campaign)


def compiled(source: Path, architectures: tuple[str, ...]) -> list[Any]:
    """What the compiler says of this file with these headers is kept; what it means is read each time."""
    headers = files_below(ROOT / "csrc", ending=(".h", ".cuh", ".def"))
    key = [source, *headers, Path(resources.__file__), version_of("nvcc"), architectures]

    def make(folder: Path) -> None:
        (folder / "log").write_text(resources.compiler_log(source, architectures), encoding="utf-8")

    log = (kept("registers", key, make) / "log").read_text(encoding="utf-8")
    return resources.parse(log, resources.block_sizes())


@pytest.mark.parametrize(("source", "architectures"), list(_compilations()))
def test_kernels_compile_without_spills(source: Path, architectures: tuple[str, ...]):
    need("nvcc", "compile the CUDA kernels")
    found = compiled(source, architectures)
    assert {u.architecture for u in found} == set(architectures)
    assert {u.kernel for u in found} == kernels_in(source.read_text())
    for usage in [*found, *resources.by_others(found)]:
        assert usage.spills == 0 and usage.stack == 0, usage
        registers, shared, occupancy = LIMITS.get(usage.kernel, USUAL)
        assert usage.registers <= registers and usage.shared <= shared, usage
        assert usage.occupancy >= occupancy, usage


def test_the_document_holds_every_kernel():
    need_source()
    document = (ROOT / "docs" / "gpu.md").read_text()
    part = document.split(resources.MARKS[0])[1].split(resources.MARKS[1])[0]
    for kernel in resources.block_sizes():
        row = next(line for line in part.splitlines() if line.startswith(f"| `{kernel}`"))
        assert row.split("|")[5].strip() == "0", f"spills recorded: {row}"
