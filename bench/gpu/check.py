"""On a machine with a GPU: builds for it, runs every kernel and the test suite for real, sanitizes, times.

`make gpu-check`. Needs an installed PyTorch, the CUDA toolkit and the build and test tools (what is missing
is listed at once); nothing is downloaded, and the module is built inside the source tree. Stages run one
after another, each in processes of its own, and a stage that fails does not stop the next. Writes
gpu_check.json and gpu_check.md; ends with 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("nvcc", "cmake", "ninja")
MODULES = ("torch", "triton", "numpy", "pybind11", "open_clip", "safetensors", "tqdm", "pytest",
           "pytest_benchmark", "hypothesis")  # fmt: skip
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


class Result(NamedTuple):
    state: str  # passed, failed or skipped
    told: str  # a line
    found: Any = None


def lacking() -> list[str]:
    """Tools and modules that are not there."""
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    return tools + [module for module in MODULES if importlib.util.find_spec(module) is None]


def command(*words: object, **environment: str) -> tuple[int, str]:
    """Runs it in the source tree, shows its output as it comes, and returns that too."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(
        [str(w) for w in words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    return process.returncode, "".join(lines)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


# -- stages ------------------------------------------------------------------------------------------


def build(_out: Path) -> Result:
    import pybind11

    folder = ROOT / "build" / "gpu-check"
    status, text = command(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DSEMOBRIDGE_CUDA=on", "-DPYBIND11_FINDPYTHON=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'semobridge_ext'}",
    )  # fmt: skip
    if status == 0:
        status, text = command("cmake", "--build", folder)
    return Result("passed" if status == 0 else "failed", last_line(text))


def kernels(_out: Path) -> Result:
    status, text = command(sys.executable, "bench/gpu/kernels.py")
    if status != 0:
        return Result("failed", last_line(text))
    errors = json.loads(last_line(text))
    return Result("passed", f"{len(errors)} kinds of results against float64", errors)


def tests(_out: Path) -> Result:
    status, text = command(sys.executable, "-m", "pytest", "-q", "tests")
    return Result("passed" if status == 0 else "failed", last_line(text))


def sanitizer(_out: Path) -> Result:
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Result("skipped", "compute-sanitizer was not found; it comes with the CUDA toolkit")
    found = {}
    for tool in SANITIZERS:
        status, text = command(
            program, "--tool", tool, "--error-exitcode", "1", sys.executable, "bench/gpu/kernels.py",
            "--no-triton", PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
        summary = re.findall(r"= (.*SUMMARY: .*)", text)
        found[tool] = summary[-1] if summary else last_line(text)
        if status != 0:
            return Result("failed", f"{tool}: {found[tool]}", found)
    return Result("passed", ", ".join(SANITIZERS), found)


def benchmarks(out: Path) -> Result:
    raw, table = out / "gpu_bench.json", out / "gpu_bench.md"
    status, text = command(
        sys.executable, "-m", "pytest", "-q", "bench/gpu/bench_gpu.py", f"--benchmark-json={raw}"
    )
    if status != 0:
        return Result("failed", last_line(text))
    status, text = command(sys.executable, "bench/report.py", raw, "--out", table)
    if status != 0:
        return Result("failed", last_line(text))
    return Result("passed", raw.name, table.read_text(encoding="utf-8"))


STAGES: dict[str, Callable[[Path], Result]] = {
    "build": build, "kernels": kernels, "tests": tests, "sanitizer": sanitizer, "benchmarks": benchmarks,
}  # fmt: skip


# -- what ran where, and the report ------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Device, driver and versions; no host's name."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    facts = {
        "device": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "torch": torch.__version__,
        "cuda of torch": str(torch.version.cuda),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    for name, words in (
        ("driver", ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")),
        ("nvcc", ("nvcc", "--version")),
        ("commit", ("git", "rev-parse", "HEAD")),
    ):
        if shutil.which(words[0]) is not None:
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
            facts[name] = last_line(done.stdout)
    return facts


def report(facts: dict[str, str], results: dict[str, tuple[Result, float]]) -> str:
    lines = ["# Kernels on a GPU", "", ", ".join(f"{k} {v}" for k, v in facts.items()), ""]
    lines += ["| stage | result | | seconds |", "|---|---|---|---|"]
    lines += [f"| {name} | {r.state} | {r.told} | {took:.0f} |" for name, (r, took) in results.items()]
    errors = results["kernels"][0].found if "kernels" in results else None
    if errors:
        lines += ["", "| kernel | worst error against float64 |", "|---|---|"]
        lines += [f"| {name} | {error:.1e} |" for name, error in errors.items()]
    if "benchmarks" in results and results["benchmarks"][0].found:
        lines += ["", results["benchmarks"][0].found]
    return "\n".join(lines) + "\n"


def refuse(reason: str) -> None:
    raise SystemExit(f"gpu_check: {reason}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="some stages alone")
    options = parser.parse_args(argv)
    missing = lacking()
    if missing:
        refuse(
            f"needs {', '.join(missing)}; install the CUDA toolkit for nvcc, and pip install "
            "torch ninja cmake '.[test]' for the rest"
        )
    import torch

    if not torch.cuda.is_available():
        refuse("no GPU that PyTorch can use; run it on a machine that has one")
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine()
    results: dict[str, tuple[Result, float]] = {}
    for name in options.only or STAGES:
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        result = STAGES[name](options.out.resolve())
        results[name] = result, time.monotonic() - begin
        record = {k: {**r._asdict(), "seconds": took} for k, (r, took) in results.items()}
        # After every stage, so that an interrupted run keeps what it found.
        (options.out / "gpu_check.json").write_text(
            json.dumps({"machine": facts, "stages": record}, indent=1)
        )
        (options.out / "gpu_check.md").write_text(report(facts, results), encoding="utf-8")
        if name == "build" and result.state == "failed":
            break
    print(report(facts, results))
    return int(any(result.state == "failed" for result, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
