"""The checkout that these tests belong to, CMake builds of its core, and child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import semobridge_ext as sb
from tests.support.build_cache import ROOT, files_below, kept, version_of

CROSS = "aarch64-linux-gnu-g++"
# CMake's cross-compilation switch with a processor that it has no vector flags for.
PORTABLE_ONLY = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=generic")
AARCH64 = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={CROSS}",
)


def environment(**words: str) -> dict[str, str]:
    """For child processes: the package under test, wherever they run, and no SEMOBRIDGE_ word but these.

    Nor pytest's, which tell a child that it is a worker of this run. What else PYTHONPATH holds stays behind
    the package: its modules may have come from there.
    """
    package = str(Path(sb.__file__).resolve().parent.parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SEMOBRIDGE_", "PYTEST_"))}
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path} | words


def plant(root: Path, files: dict[str, str]) -> Path:
    """A made-up tree: path → text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


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


def at_o1(target: Path) -> Path:
    """A copy of the core and its test that compiles at -O1: where the result counts, not its speed."""
    need_source()
    shutil.copytree(ROOT / "csrc", target / "csrc")
    shutil.copytree(ROOT / "tests" / "cpp", target / "tests" / "cpp")
    description = (ROOT / "CMakeLists.txt").read_text()
    assert description.count(" -O3 ") == 1
    (target / "CMakeLists.txt").write_text(description.replace(" -O3 ", " -O1 "))
    return target


def core_test(*options: str, fast: bool = False, compiler: str = "c++") -> Path:
    """The folder of the built C++ test, kept by content: `build/test_core`; the compiler's words in `log`.

    `fast`: from a copy at -O1, beside it in `source`.
    """
    need_source()
    need("cmake", "build the C++ test")
    sources = files_below(ROOT / "csrc", ROOT / "tests" / "cpp", ending=(".h", ".cpp", ".def"))
    names = [str(path.relative_to(ROOT)) for path in sources]
    key = [version_of(need(compiler, "build the C++ test")), *options, fast, *names, *sources]

    def make(folder: Path) -> None:
        done = build_core_test(at_o1(folder / "source") if fast else ROOT, folder / "build", *options)
        (folder / "log").write_text(done)

    return kept("core", [*key, ROOT / "CMakeLists.txt"], make)


def build_core_test(source: Path, build: Path, *options: str) -> str:
    """What the compiler said."""
    configure(source, build, *options)
    done = run("cmake", "--build", build, "--parallel", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
