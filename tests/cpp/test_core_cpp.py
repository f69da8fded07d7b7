"""Builds and runs tests/cpp/test_core.cpp: natively, under sanitizers, for aarch64."""

from __future__ import annotations

import pytest

from tests.support.places import runnable_isas
from tests.support.source_tree import AARCH64, CROSS, core_test, need, need_source, run

pytestmark = pytest.mark.slow


def assert_passed(done, *isas: str) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("0 failures")
    for isa in isas:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{isa}: "))
        # The sets of codes share all other kernels with the set before them.
        least = 5_000 if isa.endswith("dot") else 100_000
        assert int(line.split()[1]) > least, f"hardly anything was checked: {line}"


def test_core():
    built = core_test()
    assert "warning:" not in (built / "log").read_text()
    assert_passed(run(built / "build" / "test_core"), *runnable_isas())


@pytest.mark.campaign
def test_core_under_sanitizers():
    flags = "-DCMAKE_CXX_FLAGS=-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    built = core_test(flags, "-DCMAKE_CXX_FLAGS_RELEASE=", fast=True)
    assert_passed(run(built / "build" / "test_core"), *runnable_isas())


@pytest.mark.campaign
def test_core_for_aarch64():
    need_source()
    need(CROSS, "compile the portable kernels for aarch64")
    built = core_test(*AARCH64, compiler=CROSS)
    assert "warning:" not in (built / "log").read_text()
    program = built / "build" / "test_core"
    header = program.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and header[18] == 0xB7, "not an aarch64 program"
    emulator = need("qemu-aarch64-static", "run the aarch64 program (it compiled)")
    assert_passed(run(emulator, "-L", "/usr/aarch64-linux-gnu", program), "portable", "neondot")
