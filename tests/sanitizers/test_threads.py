"""The core called from several threads at once, under ThreadSanitizer; see threads/.

The portable set alone: the sets share every line but the vector types, so one shows who writes what.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.build_cache import files_below, kept, version_of
from tests.support.source_tree import PORTABLE_ONLY, ROOT, at_o1, configure, environment, need, run

pytestmark = pytest.mark.slow

DRIVER = files_below(ROOT / "tests" / "sanitizers" / "threads", ending=(".cpp",))
HEADER = ROOT / "tests" / "sanitizers" / "threads" / "entries.h"
FLAGS = "-O1 -g1 -fsanitize=thread"
ENTRIES = 24

# name: file, text, what stands there instead, the unit that is compiled with it
MUTATIONS = {
    "one scratch for all threads": (
        "csrc/core/scratch.h",
        "thread_scratch() {\n  static thread_local Scratch<T>",
        "thread_scratch() {\n  static Scratch<T>",
        "csrc/project_normalize/cpu_kernel.cpp",
    ),
    "no barrier before the second product": (
        "csrc/project_normalize/cpu_kernel.cpp",
        "#pragma omp barrier\n    if (plan.two)",
        "if (plan.two)",
        "csrc/project_normalize/cpu_kernel.cpp",
    ),
    "every thread finishes the first stage": (
        "csrc/project_normalize/cpu_kernel.cpp",
        "#pragma omp single\n",
        "",
        "csrc/project_normalize/cpu_kernel.cpp",
    ),
    "rows packed without waiting": (
        "csrc/topk/cpu_kernel.cpp",
        "#pragma omp for schedule(static)\n      for (int64_t t = 0; t < block.tiles",
        "#pragma omp for schedule(static) nowait\n      for (int64_t t = 0; t < block.tiles",
        "csrc/topk/cpu_kernel.cpp",
    ),
    "queries packed anew before all have met their keys": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "#pragma omp for schedule(dynamic, 1)\n      for (int64_t i = 0; i < groups",
        "#pragma omp for schedule(dynamic, 1) nowait\n      for (int64_t i = 0; i < groups",
        "csrc/rank_counts/symmetric_kernel.cpp",
    ),
    "changing operands packed without waiting": (
        "csrc/core/product_kernel.cpp",
        "#pragma omp for schedule(static)\n",
        "#pragma omp for schedule(static) nowait\n",
        "csrc/core/product_kernel.cpp",
    ),
    "changing operands packed anew before all have met their panels": (
        "csrc/core/product_kernel.cpp",
        "#pragma omp for schedule(dynamic, 1)\n",
        "#pragma omp for schedule(dynamic, 1) nowait\n",
        "csrc/core/product_kernel.cpp",
    ),
    "counts added without an atomic": (
        "csrc/count_correct/cpu_kernel.cpp",
        "#pragma omp atomic\n",
        "",
        "csrc/count_correct/cpu_kernel.cpp",
    ),
    "a team that never waits": (
        "csrc/tower_descent/block.h",
        "#pragma omp barrier\n",
        "",
        "csrc/tower_descent/cpu_kernel.cpp",
    ),
    "the end told by a plain write": (
        "csrc/core/interrupt.cpp",
        "__atomic_store_n(&stopped_, true, __ATOMIC_RELAXED)",
        "stopped_ = true",
        "csrc/core/interrupt.cpp",
    ),
}


def compiled(*command: object, cwd: Path | None = None) -> None:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built() -> Path:
    """The core's objects in `build`, the driver's in `driver`, the linked `threads`; kept by content."""
    compiler = need("g++", "build the core under ThreadSanitizer")
    sources = files_below(ROOT / "csrc", ending=(".h", ".cpp", ".def"))
    names = [str(path.relative_to(ROOT)) for path in sources]

    def make(folder: Path) -> None:
        configure(
            at_o1(folder / "source"), folder / "build", *PORTABLE_ONLY, f"-DCMAKE_CXX_FLAGS={FLAGS}",
            "-DCMAKE_CXX_FLAGS_RELEASE=", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            f"-DCMAKE_CXX_COMPILER={compiler}",
        )  # fmt: skip
        compiled("cmake", "--build", folder / "build", "--target", "sb_core", "--parallel", "2")
        (folder / "driver").mkdir()
        for source in DRIVER:
            compiled(
                compiler, "-std=c++20", *FLAGS.split(), "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}",
                "-c", source, "-o", folder / "driver" / f"{source.stem}.o",
            )  # fmt: skip
        link(folder, folder / "threads")

    key = [version_of(compiler), FLAGS, *names, *sources, *DRIVER, HEADER, ROOT / "CMakeLists.txt"]
    return kept("threads", key, make)


def link(folder: Path, program: Path, broken: Path | None = None, instead_of: str = "") -> None:
    """Without -fopenmp: what that would link stands in threads/gomp_threads.cpp."""
    objects = [
        o for o in (folder / "build").rglob("*.o") if not o.match(f"*{instead_of}.o") or not instead_of
    ]
    objects += (folder / "driver").glob("*.o")
    first = [broken] if broken else []  # the linker takes inline functions from there
    compiled("g++", "-fsanitize=thread", *first, *objects, "-pthread", "-o", program)


def run_threads(program: Path, *words: str, stop: bool = False) -> subprocess.CompletedProcess[str]:
    """Without the system's random addresses where setarch is there: libtsan knows few layouts of memory."""
    setarch = ["setarch", "-R"] if run("setarch", "-R", "true").returncode == 0 else []
    options = f"exitcode=66:halt_on_error={int(stop)}"
    return run(*setarch, program, *words, env=environment(TSAN_OPTIONS=options), timeout=300)


def test_every_kernel_from_several_threads(built: Path):
    """No race, the bits of a serial call, and calls that are told to end do."""
    done = run_threads(built / "threads")
    assert done.returncode == 0 and not done.stderr, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout == f"portable: {ENTRIES} entries, 0 failures\n"


def test_every_entry_is_called():
    """Of the table, and what the headers declare beside it."""
    table = re.findall(r"^SB_KERNEL\((\w+),", (ROOT / "csrc/core/kernels.def").read_text(), re.MULTILINE)
    beside = ["prune_candidates", "sort_labels", "rank_metrics", "tower_descent_workspace"]
    driver = "".join(path.read_text() for path in (*DRIVER, HEADER))
    assert len(table) >= 15
    assert not [name for name in (*table, *beside) if not re.search(rf"\b{name}\(", driver)]


def test_a_race_is_seen(built: Path):
    done = run_threads(built / "threads", "--race")
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_caught(name: str, built: Path, tmp_path: Path):
    file, text, replacement, unit = MUTATIONS[name]
    original = (ROOT / file).read_text()
    assert original.count(text) == 1, f"{file} holds {original.count(text)} times: {text!r}"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(original.replace(text, replacement))
    listed = json.loads((built / "build" / "compile_commands.json").read_text())
    (command,) = [entry["command"] for entry in listed if entry["file"].endswith(unit)]
    compiler, *words = shlex.split(command)
    object_file = words[words.index("-o") + 1]
    source = tmp_path / unit if unit == file else built / "source" / unit
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(tmp_path / "broken.o"), str(source)
    compiled(compiler, f"-I{tmp_path / 'csrc'}", *words, cwd=built / "build")
    link(built, tmp_path / "threads", tmp_path / "broken.o", object_file.removesuffix(".o"))
    done = run_threads(tmp_path / "threads", stop=True)
    assert done.returncode == 66 and "data race" in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
