"""Builds and runs tests/cpp/test_core.cpp: natively, under sanitizers, for aarch64."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import runnable_isas
from tests.support.source_tree import AARCH64, CROSS, ROOT, build_core_test, copy_core, need, need_source, run

pytestmark = pytest.mark.slow


def assert_passed(done, *isas: str) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("0 failures")
    for isa in isas:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{isa}: "))
        assert int(line.split()[1]) > 100_000, f"hardly anything was checked: {line}"


def test_core(tmp_path: Path):
    program, said = build_core_test(ROOT, tmp_path)
    assert "warning:" not in said, said
    assert_passed(run(program), *runnable_isas())


def test_core_under_sanitizers(tmp_path: Path):
    flags = "-DCMAKE_CXX_FLAGS=-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    source = copy_core(tmp_path / "source")
    program, _ = build_core_test(source, tmp_path / "build", flags, "-DCMAKE_CXX_FLAGS_RELEASE=")
    assert_passed(run(program), *runnable_isas())


def test_core_for_aarch64(tmp_path: Path):
    need_source()
    need(CROSS, "compile the portable kernels for aarch64")
    program, said = build_core_test(ROOT, tmp_path, *AARCH64)
    assert "warning:" not in said, said
    header = program.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and header[18] == 0xB7, "not an aarch64 program"
    emulator = need("qemu-aarch64-static", "run the aarch64 program (it compiled)")
    assert_passed(run(emulator, "-L", "/usr/aarch64-linux-gnu", program), "portable")
