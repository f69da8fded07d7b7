"""The package with its native module under sanitizers, kept by content, and programs that run on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import semobridge_ext as sb
from tests.support.build_cache import files_below, kept, version_of
from tests.support.source_tree import ROOT, at_o1, environment, generator, need, need_source, run

FLAGS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
}
_RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# Leaks of CPython and PyTorch at exit are not ours; PyTorch's own allocations have no sizes to match.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
}


def package_with(kind: str, folder: Path) -> Path:
    """A copy of the package with such a module; returns the folder to put on the path."""
    own = Path(sb.__file__).parent
    target = folder / "semobridge_ext"
    shutil.copytree(own, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (native,) = _native(kind).glob("_C*.so")
    shutil.copy(native, target)
    return folder


def _native(kind: str) -> Path:
    """The folder of the module, kept by content."""
    need_source()
    need("cmake", "build the native module")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed for the native module")
    compiler = need("g++", "build the native module under sanitizers")
    sources = files_below(ROOT / "csrc", ROOT / "python", ending=(".h", ".cpp", ".def"))
    names = [str(path.relative_to(ROOT)) for path in sources]
    key = [version_of(compiler), pybind11.__version__, sys.version, FLAGS[kind], *names, *sources]

    def make(folder: Path) -> None:
        source = at_o1(folder / "source")
        shutil.copytree(ROOT / "python", source / "python")
        build = folder / "build"
        for command in (
            ["cmake", "-S", source, "-B", build, *generator(), "-DSEMOBRIDGE_CUDA=off",
             f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS=-O1 -g1 {FLAGS[kind]}",
             "-DCMAKE_CXX_FLAGS_RELEASE=", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}",
             f"-DPython3_EXECUTABLE={sys.executable}", f"-DPython_EXECUTABLE={sys.executable}",
             "-DPYBIND11_FINDPYTHON=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
            ["cmake", "--build", build, "--parallel", "2"],
        ):  # fmt: skip
            done = run(*command)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        shutil.rmtree(build)
        shutil.rmtree(source)

    return kept(f"sanitized-{kind}", [*key, ROOT / "CMakeLists.txt"], make)


def run_on(folder: Path, kind: str, *command: object, **words: str) -> subprocess.CompletedProcess[str]:
    """A Python program on that package, the runtimes of the sanitizer loaded first."""
    found = [
        run("g++", f"-print-file-name={name}").stdout.strip() for name in (*_RUNTIMES[kind], "libstdc++.so")
    ]
    variables = environment(**OPTIONS, **words) | {
        "PYTHONPATH": f"{folder}:{ROOT}", "LD_PRELOAD": ":".join(found), "PYTHONMALLOC": "malloc",
    }  # fmt: skip
    return run(sys.executable, *command, env=variables)
