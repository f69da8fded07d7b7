"""On a machine with a GPU: builds for it, runs every kernel and the GPU's tests, sanitizes, times.

`make gpu-check OUT=folder [STAGE=build|tests|sanitizer|bench] [SECONDS=540]`. Needs PyTorch, Triton, nvcc,
CMake, Ninja, pybind11 and pytest; no network, no open_clip, nothing is installed. A stage takes SECONDS at
most. Without STAGE all run, and one that fails does not stop the next. OUT gets, as things happen:

    gpu_check.json, gpu_check.md      every step of every stage: passed, failed, stopped at its limit, skipped
    gpu_<stage>.log                   what the programs printed
    gpu_tests.xml                     the tests, as JUnit reads them
    gpu_bench.json, gpu_bench.md      the benches, row by row

Built and cached files lie in build/gpu-check, the module in the package. Ends with 0 where no step failed or
was stopped and every stage has one that passed, with 1 otherwise, with 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the files beside this one are no package

from job import ROOT, Job, Step
from stages import STAGES

SECONDS = 540.0  # a stage's piece is under ten minutes
LEFT_OUT = ("build", ".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
Record = dict[str, Any]


# -- arguments ---------------------------------------------------------------------------------------


def refuse(argument: str, contract: str, got: str, remedy: str) -> NoReturn:
    print(f"gpu_check: {argument} must {contract}, got {got}; {remedy}", file=sys.stderr)
    raise SystemExit(2)


def folder_of(out: str) -> Path:
    """The folder, made and tried."""
    if not out.strip():
        refuse("OUT", "name a folder for the reports", "nothing", "make gpu-check OUT=folder")
    path = Path(out).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = path / f".gpu_check.{os.getpid()}"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        refuse("OUT", "be a folder that can be written", f"{out} ({error.strerror})", "name another one")
    return path


def parse(argv: Sequence[str]) -> tuple[Path, list[str], float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="", help="folder of the reports")
    parser.add_argument("--stage", default="", help=f"one of {', '.join(STAGES)}; left out: all")
    parser.add_argument("--seconds", default="", help=f"for each stage, {SECONDS:.0f} by default")
    options = parser.parse_args(argv)
    if options.stage and options.stage not in STAGES:
        refuse("STAGE", f"be one of {', '.join(STAGES)}", repr(options.stage), "leave it out for all of them")
    seconds = SECONDS
    if options.seconds:
        if not re.fullmatch(r"\d+(\.\d+)?", options.seconds) or float(options.seconds) <= 0:
            refuse("SECONDS", "be a number above 0", repr(options.seconds), "leave it out for 540")
        seconds = float(options.seconds)
    return folder_of(options.out), [options.stage] if options.stage else list(STAGES), seconds


# -- what ran where ----------------------------------------------------------------------------------


def tree_bytes(root: Path = ROOT) -> int:
    """Of the source tree as it travels: without what is built or cached in it."""
    total = 0
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in LEFT_OUT]
        kept = (Path(folder) / f for f in files if not f.endswith(".so"))
        total += sum(f.lstat().st_size for f in kept)
    return total


def machine() -> dict[str, str]:
    """Device, driver and versions; no host's name."""
    facts = {"python": ".".join(map(str, sys.version_info[:3])), "tree": f"{tree_bytes() / 2**20:.0f} MiB"}
    try:
        import torch
    except ImportError:
        return facts | {"torch": "none"}
    facts |= {"torch": torch.__version__, "cuda of torch": str(torch.version.cuda), "device": "none"}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        facts |= {"device": device.name, "capability": f"sm_{device.major}{device.minor}", "memory": memory}
    for name, words in (
        ("driver", ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")),
        ("nvcc", ("nvcc", "--version")),
        ("commit", ("git", "rev-parse", "HEAD")),
    ):
        if shutil.which(words[0]) is not None:
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
            if done.returncode == 0 and done.stdout.strip():
                facts[name] = done.stdout.strip().splitlines()[-1]
    return facts


# -- the report --------------------------------------------------------------------------------------


def earlier(out: Path) -> Record:
    """The stages of earlier calls with this folder; none where the file is not there or not ours."""
    try:
        stages = json.loads((out / "gpu_check.json").read_text(encoding="utf-8"))["stages"]
        return {k: v for k, v in stages.items() if k in STAGES and isinstance(v["steps"], list)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def failed(stage: Record) -> bool:
    states = [step["state"] for step in stage["steps"]]
    return "passed" not in states or not {"failed", "stopped"}.isdisjoint(states)


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def report(facts: dict[str, str], stages: Record) -> str:
    lines = ["# Kernels on a GPU", "", ", ".join(f"{k} {v}" for k, v in facts.items()), ""]
    lines += ["| stage | step | state | | seconds |", "|---|---|---|---|---|"]
    errors: dict[str, float] = {}
    for name, stage in stages.items():
        for s in stage["steps"]:
            lines.append(
                f"| {name} | {cell(s['name'])} | {s['state']} | {cell(s['told'])} | {s['seconds']:.0f} |"
            )
            if s["name"] in ("kernels", "Triton kernels"):
                errors |= s["found"] or {}
    if errors:
        lines += ["", "| kernel | worst error against float64 |", "|---|---|"]
        lines += [f"| {cell(name)} | {error:.1e} |" for name, error in errors.items()]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Whole or not at all, whenever this process is killed."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def run_stage(name: str, out: Path, seconds: float, facts: dict[str, str], stages: Record) -> bool:
    """Runs it, writing the report after every step; whether it went well."""
    print(f"== {name}", flush=True)
    own = stages[name] = {"machine": facts, "steps": []}
    begin = time.monotonic()

    def note(step: Step) -> None:
        nonlocal begin
        now = time.monotonic()
        told = step.told.replace(f"{ROOT}{os.sep}", "")  # where the tree lies says nothing
        own["steps"].append({**step._asdict(), "told": told, "seconds": now - begin})
        begin = now
        write(out / "gpu_check.json", json.dumps({"machine": facts, "stages": stages}, indent=1) + "\n")
        write(out / "gpu_check.md", report(facts, stages))
        print(f"-- {name}, {step.name}: {step.state}: {step.told}", flush=True)

    try:
        for step in STAGES[name](Job(name, out, seconds)):
            note(step)
    except Exception as error:  # a stage that breaks does not hide the others
        note(Step("stage", "failed", f"{type(error).__name__}: {error}"))
    return not failed(own)


def main(argv: Sequence[str]) -> int:
    out, names, seconds = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children end with this process
    facts, stages = machine(), earlier(out)
    well = [run_stage(name, out, seconds, facts, stages) for name in names]
    print(report(facts, {name: stages[name] for name in names}))
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
