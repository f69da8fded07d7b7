"""The CUDA kernels on the host: right in every order of execution, clean under the sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulation.all_cases import CASES
from tests.cuda_emulation.build import ORDERS, SANITIZE, Emulation, kernel_sources, report_of, run_cases
from tests.cuda_emulation.order_sites import CSRC, compiled
from tests.support.comparer import note
from tests.support.source_tree import environment

_MARKS = {
    "shuffled": (),
    "ascending": pytest.mark.slow,
    "descending": (pytest.mark.slow, pytest.mark.campaign),
}


@pytest.mark.parametrize("order", [pytest.param(o, marks=_MARKS[o]) for o in ORDERS])
def test_kernels_meet_the_oracle(emulation: Emulation, order: str):
    report = report_of(run_cases(emulation.module, order))
    assert report["launches"] > 500 and report["barriers"] > 500 and report["exchanges"] > 100_000
    assert len(report["worst"]) >= 30
    for name, error in report["worst"].items():
        print(f"  {name}: {error:.1e}")
    for family, dtype, error in report["families"]:
        note(family, dtype, error)


def test_every_kernel_has_a_case():
    sources = set(kernel_sources())
    assert sources - {"descend"} <= set(CASES) and {"cosine_loss", "adamw"} <= set(CASES)


@pytest.mark.slow
@pytest.mark.campaign
def test_kernels_are_clean_under_sanitizers(tmp_path: Path):
    emulation = Emulation(*SANITIZE, plain=("module", "selftest"))
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):  # the second so that the first finds what it intercepts
        command = [emulation.compiler, f"-print-file-name={name}"]
        libraries.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not Path(libraries[0]).is_absolute():
        pytest.skip("this g++ has no AddressSanitizer runtime (libasan.so)")
    emulation.build()
    env = environment(
        LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        CUDA_EMULATION_SANITIZED="1", PYTHONMALLOC="malloc",
    )  # fmt: skip
    report_of(run_cases(emulation.module, "shuffled", env=env))
    # The same run must be able to fail: a kernel that reads one element past its row.
    file = "tower_descent/cuda_descend.cuh"
    source = (CSRC / file).read_text()
    text = "for (int64_t i = lane; i < width; i += kWarp) {\n    const float value"
    assert source.count(text) == 1
    changed = source.replace(text, text.replace("i < width", "i <= width"))
    broken = compiled(emulation, kernel_sources()["descend"], file, changed, tmp_path / "source")
    module = emulation.with_one_replaced("descend", broken, tmp_path)
    done = run_cases(module, "ascending", "cosine_loss", env=env)
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr, done.stderr[-2000:]
