"""The stages of check.py: each yields its steps as they end, so that a killed run keeps what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import job as _job
from job import PRODUCTS, ROOT, Done, Job, Step

SANITIZERS = ("racecheck", "synccheck", "memcheck", "initcheck")
ARCHITECTURES = "SEMOBRIDGE_CUDA_ARCHITECTURES"  # as setup.py reads it
FILE_LIMIT = 240.0  # seconds for one file of tests
CASES = "bench/gpu/kernels.py"
_LOADS = """
import semobridge_ext as sb
from semobridge_ext.runtime import backend
assert backend._C is not None, backend.NATIVE_ERROR
assert backend.HAS_CUDA, sb.build_info()["cuda"]
print(sb.build_info()["cuda"])
"""


def which(tool: str) -> str | None:
    return shutil.which(tool, path=_job.environment()["PATH"])


def lacking(tools: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Those that are not there."""
    found = [tool for tool in tools if which(tool) is None]
    return found + [module for module in modules if importlib.util.find_spec(module) is None]


def needs(tools: Sequence[str], modules: Sequence[str]) -> Iterator[Step]:
    """A failed step that names all that is missing; nothing where nothing is."""
    if missing := lacking(tools, modules):
        told = f"needs {', '.join(missing)}; nvcc comes with the CUDA toolkit, the rest by pip"
        yield Step("tools", "failed", told)


def architectures() -> str:
    """What to compile for: as asked, else the GPU at hand; "" without one."""
    if asked := os.environ.get(ARCHITECTURES):
        return asked
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


# -- build -------------------------------------------------------------------------------------------


def build(job: Job) -> Iterator[Step]:
    """The module in place for one architecture, then the CUDA C++ kernels' own cases on the GPU."""
    if missing := list(needs(("nvcc", "cmake", "ninja"), ("torch", "numpy", "pybind11"))):
        yield from missing
        return
    wanted = architectures()
    if not wanted:
        yield Step("architecture", "failed", f"no GPU to build for; set {ARCHITECTURES}, as 90 for sm_90")
        return
    import pybind11

    folder = PRODUCTS / "cmake"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CMakeCache.txt").unlink(missing_ok=True)  # of another interpreter, perhaps
    configured = job.run(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DSEMOBRIDGE_CUDA=on",
        f"-DSEMOBRIDGE_CUDA_ARCHITECTURES={wanted}", "-DPYBIND11_FINDPYTHON=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython3_EXECUTABLE={_job.PYTHON}",
        f"-DPython_EXECUTABLE={_job.PYTHON}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'semobridge_ext'}",
    )  # fmt: skip
    yield Step("configure", configured.state(), f"for sm_{wanted}: {configured.last_line}")
    if configured.status:
        return
    compiled = job.run("cmake", "--build", folder)
    yield Step("compile", compiled.state(), compiled.last_line)
    if compiled.status:
        return
    loaded = job.run(_job.PYTHON, "-c", _LOADS)
    yield Step("import", loaded.state(), loaded.last_line)
    yield _cases("kernels", job.run(_job.PYTHON, CASES, "--no-triton"))


def _cases(name: str, done: Done) -> Step:
    """Of a run of kernels.py, or of what prints as it does."""
    right = len(re.findall(r"^\w+: right$", done.text, re.MULTILINE))
    if done.status:
        return Step(name, done.state(), f"{right} cases right, then: {done.last_line}")
    errors = json.loads(done.last_line)
    return Step(name, "passed", f"{len(errors)} kinds of results against float64", errors)


# -- tests -------------------------------------------------------------------------------------------


def gpu_files() -> list[Path]:
    """The files with tests for a GPU: they mark themselves, or take the places of tests/support."""
    pattern = re.compile(r"mark\.gpu\b|\bimport .*\bPLACES\b")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [f.relative_to(ROOT) for f in files if pattern.search(f.read_text(encoding="utf-8"))]


def tests(job: Job) -> Iterator[Step]:
    """The Triton kernels compiled and run, then the tests marked `gpu`, file by file."""
    if missing := list(needs((), ("torch", "numpy", "pytest"))):
        yield from missing
        return
    files, suites = gpu_files(), ET.Element("testsuites")
    for i, file in enumerate(files):
        junit = PRODUCTS / f"{i}.xml"
        junit.unlink(missing_ok=True)
        done = job.run(
            _job.PYTHON, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={junit}",
            file, limit=FILE_LIMIT, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        )  # fmt: skip
        yield _file_step(str(file), done, junit, suites)
        ET.ElementTree(suites).write(job.out / "gpu_tests.xml", encoding="utf-8", xml_declaration=True)
    yield from _triton(job)


def _file_step(name: str, done: Done, junit: Path, suites: ET.Element) -> Step:
    """One file's result; its suite joins the others, a made-up one where pytest wrote none."""
    try:
        own = list(ET.parse(junit).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
        own = [ET.Element("testsuite", name=name, tests="1", errors="1", failures="0", skipped="0")]
        case = ET.SubElement(own[0], "testcase", classname=name, name="file")
        ET.SubElement(case, "error", message=f"{done.state()}: {done.last_line}")
    suites.extend(own)
    counts = {k: sum(int(s.get(k, 0)) for s in own) for k in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    reasons = [s.get("message", "") for suite in own for s in suite.iter("skipped")]
    if done.stopped:
        return Step(name, "stopped", f"at its limit; the log says how far: {done.last_line}", counts)
    if done.status not in (0, 5):  # 5: nothing was collected
        return Step(name, "failed", done.last_line, counts)
    if passed == 0:
        return Step(name, "skipped", f"nothing ran: {reasons[0] if reasons else done.last_line}", counts)
    return Step(name, "passed", f"{passed} passed, {counts['skipped']} skipped", counts)


def _triton(job: Job) -> Iterator[Step]:
    """With fixed tiles: tuning every small shape would take longer than all else; the benches tune."""
    if lacking((), ("triton",)):
        yield Step("Triton kernels", "skipped", "Triton is not installed")
        return
    program = "tests/ops/triton/interpret.py"
    done = job.run(_job.PYTHON, program, CHECK_DEVICE="cuda", SEMOBRIDGE_TRITON_AUTOTUNE="0")
    if done.status:
        yield Step("Triton kernels", done.state(), done.last_line)
        return
    errors = {f"Triton {name}": error for name, error in json.loads(done.last_line)["worst"].items()}
    yield Step("Triton kernels", "passed", f"{len(errors)} kinds of results against float64", errors)


# -- sanitizer and benches ---------------------------------------------------------------------------


def sanitizer(job: Job) -> Iterator[Step]:
    """compute-sanitizer's four tools over the CUDA C++ kernels' cases, each with its share of the time."""
    program = which("compute-sanitizer")
    if program is None:
        yield Step("tools", "failed", "needs compute-sanitizer; it comes with the CUDA toolkit")
        return
    for i, tool in enumerate(SANITIZERS):
        done = job.run(
            program, "--tool", tool, "--error-exitcode", "1", _job.PYTHON, CASES, "--no-triton",
            limit=job.left / (len(SANITIZERS) - i), PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
        right = len(re.findall(r"^\w+: right$", done.text, re.MULTILINE))
        summary = re.findall(r"= (.*SUMMARY: .*)", done.text)
        told = f"{right} cases, {summary[-1] if summary else done.last_line}"
        yield Step(tool, done.state(), told)


def bench(job: Job) -> Iterator[Step]:
    """measure.py, whose rows are in the folder as they come; see there."""
    if missing := list(needs((), ("torch",))):
        yield from missing
        return
    seconds = max(job.left - 20, _job.LEAST)  # to end by itself, between two rows
    done = job.run(_job.PYTHON, "bench/gpu/measure.py", "--out", job.out, "--seconds", f"{seconds:.0f}")
    written = job.out / "gpu_bench.json"
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"] if written.is_file() else []
    states = [row["state"] for row in rows]
    counts = {state: states.count(state) for state in sorted(set(states))}
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no row"
    yield Step("benches", done.state(), told if not done.status else f"{told}: {done.last_line}", counts)


STAGES: dict[str, Callable[[Job], Iterator[Step]]] = {
    "build": build, "tests": tests, "sanitizer": sanitizer, "bench": bench,
}  # fmt: skip
