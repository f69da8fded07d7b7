"""The checkout that these tests belong to, CMake builds of its core, and child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import semobridge_ext as sb

ROOT = Path(__file__).resolve().parents[2]
CROSS = "aarch64-linux-gnu-g++"
# CMake's cross-compilation switch with a processor that it has no vector flags for.
PORTABLE_ONLY = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=generic")
AARCH64 = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={CROSS}",
)


def environment(**words: str) -> dict[str, str]:
    """For child processes: the package under test, wherever they run, and no SEMOBRIDGE_ word but these."""
    package = str(Path(sb.__file__).resolve().parent.parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SEMOBRIDGE_")}
    return kept | {"PYTHONPATH": package} | words


def need(tool: str, why: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed; needed to {why}")
    return path


def need_source() -> None:
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the tests run outside the source tree; needed: CMakeLists.txt and csrc/")


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    return done


def generator() -> tuple[str, ...]:
    return ("-G", "Ninja") if shutil.which("ninja") else ()


def configure(source: Path, build: Path, *options: str) -> None:
    """A build of the core and its C++ test alone: no Python, no CUDA."""
    need_source()
    need("cmake", "build the C++ test")
    done = run(
        "cmake", "-S", source, "-B", build, *generator(), "-DSEMOBRIDGE_PYTHON=OFF",
        "-DSEMOBRIDGE_TESTS=ON", "-DSEMOBRIDGE_CUDA=off", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compile_all(build: Path) -> subprocess.CompletedProcess[str]:
    return run("cmake", "--build", build, "--parallel", "2")


def copy_core(target: Path) -> Path:
    """A copy of the core and its test that compiles at -O1: where the result counts, not its speed."""
    need_source()
    shutil.copytree(ROOT / "csrc", target / "csrc")
    shutil.copytree(ROOT / "tests" / "cpp", target / "tests" / "cpp")
    description = (ROOT / "CMakeLists.txt").read_text()
    assert description.count(" -O3 ") == 1
    (target / "CMakeLists.txt").write_text(description.replace(" -O3 ", " -O1 "))
    return target


def build_core_test(source: Path, build: Path, *options: str) -> tuple[Path, str]:
    """The program and what the compiler said."""
    configure(source, build, *options)
    done = compile_all(build)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "test_core", done.stdout + done.stderr
