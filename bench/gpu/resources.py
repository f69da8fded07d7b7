"""Compiles the CUDA kernels for the architectures of the build; records what each takes of a multiprocessor.

`python bench/gpu/resources.py [--architectures 80 90] [--docs docs/gpu.md] [--out FILE.json]`. Needs
nvcc, no GPU. Occupancy is computed from the compiler's figures and the architecture's limits.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- resources: written by bench/gpu/resources.py -->", "<!-- end of resources -->")


def _built() -> tuple[str, ...]:
    description = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r'set\(SEMOBRIDGE_CUDA_ARCHITECTURES "([\d;]+)"', description)
    assert found, "CMakeLists.txt names no architectures"
    return tuple(found[1].split(";"))


ARCHITECTURES = _built()
BY_OTHERS = {"86": "80", "89": "80"}  # architectures that run the code of another


class Limits(NamedTuple):
    """Of one multiprocessor (CUDA C++ programming guide, technical specifications)."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536


LIMITS = {
    "80": Limits(64, 32, 164 << 10),
    "86": Limits(48, 16, 100 << 10),
    "89": Limits(48, 24, 100 << 10),
    "90": Limits(64, 32, 228 << 10),
    "100": Limits(64, 32, 228 << 10),
    "120": Limits(48, 24, 100 << 10),
}


class Usage(NamedTuple):
    """Of one kernel in one instantiation on one architecture."""

    kernel: str
    variant: str  # template arguments
    architecture: str
    threads: int
    registers: int
    shared: int
    stack: int
    spills: int  # bytes stored and loaded
    occupancy: float


def find_nvcc() -> str | None:
    return shutil.which("nvcc")


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").glob("*/cuda*.cu"))


def block_sizes() -> dict[str, int]:
    """Threads per block of every kernel, from its launch bounds."""
    found = {}
    for path in sources():
        text = path.read_text(encoding="utf-8")
        beside = path.with_suffix(".cuh")  # what a kernel shares out to a header of its own
        if beside.is_file():
            text += beside.read_text(encoding="utf-8")
        constants = {"kWarp": 32}
        for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", text):
            constants[name] = int(value)
        for bounds, kernel in re.findall(r"__launch_bounds__\(([^)]*)\)\s*(\w+)\(", text):
            size = 1
            for factor in bounds.split(",")[0].split("*"):
                size *= constants[factor.strip()]
            found[kernel] = size
    return found


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> float:
    """Resident warps over the most there can be."""
    limits = LIMITS[architecture]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out in units of 256 per warp
    by_registers = limits.registers // per_warp // 4 * 4 // warps  # four partitions share them
    by_shared = limits.shared // (shared + 1024)  # the system keeps 1 KiB per block
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return blocks * warps / limits.warps


def _demangle(names: Sequence[str]) -> list[str]:
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def parse(log: str, threads: dict[str, int]) -> list[Usage]:
    """Reads what `ptxas -v` prints."""
    raw, name, architecture, stack = [], "", "", (0, 0, 0)
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, architecture = entry.groups()
        elif frame := _STACK.search(line):
            stack = tuple(map(int, frame.groups()))
        elif used := _USED.search(line):
            raw.append((name, architecture, int(used[1]), int(used[2] or 0), stack))
    result = []
    for plain, (_, arch, registers, shared, frame) in zip(_demangle([r[0] for r in raw]), raw, strict=True):
        match = re.search(r"(\w+_kernel)(?:<(.*?)>)?\(", plain)
        assert match, f"no kernel's name: {plain}"
        size = threads[match[1]]
        result.append(
            Usage(
                match[1], (match[2] or "").replace("semobridge::", ""), arch, size, registers, shared,
                frame[0], frame[1] + frame[2], occupancy(arch, size, registers, shared),
            )
        )  # fmt: skip
    return result


def compiler_log(path: Path, architectures: Sequence[str]) -> str:
    """What ptxas says of the kernels of one file; a compiler's error or warning ends it."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("gpu_resources: nvcc was not found; install the CUDA toolkit and put it on PATH")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-fatbin"]
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        command += [str(path), "-o", str(Path(folder) / "out.fatbin")]
        done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"nvcc refused {path.name}:\n{log[-4000:]}")
    if "warning" in log:
        raise RuntimeError(f"nvcc warns about {path.name}:\n{log[-4000:]}")
    return log


def compile_file(path: Path, architectures: Sequence[str] = ARCHITECTURES) -> list[Usage]:
    """Compiles the kernels of one file and reads what they take."""
    return parse(compiler_log(path, architectures), block_sizes())


def compile_all(architectures: Sequence[str] = ARCHITECTURES) -> list[Usage]:
    """Compiles every kernel for every architecture."""
    return [usage for path in sources() for usage in compile_file(path, architectures)]


def by_others(found: Sequence[Usage]) -> list[Usage]:
    """What the code of one architecture takes of the multiprocessors of others that run it too."""
    return [
        u._replace(architecture=other, occupancy=occupancy(other, u.threads, u.registers, u.shared))
        for u in found
        for other, code in BY_OTHERS.items()
        if u.architecture == code
    ]


def table(found: Sequence[Usage]) -> str:
    """One row per kernel: the worst of its instantiations on every architecture."""
    found = [*found, *by_others(found)]
    architectures = sorted({u.architecture for u in found}, key=int)
    header = ["kernel", "variants", "threads", "shared bytes", "spills"]
    header += [f"sm_{a}" for a in architectures]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for kernel in sorted({u.kernel for u in found}):
        mine = [u for u in found if u.kernel == kernel]
        cells = [
            f"`{kernel}`", str(len({u.variant for u in mine})), str(mine[0].threads),
            str(max(u.shared for u in mine)), str(sum(u.spills for u in mine)),
        ]  # fmt: skip
        for a in architectures:
            here = [u for u in mine if u.architecture == a]
            cells.append(f"{max(u.registers for u in here)} / {min(u.occupancy for u in here):.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replaces what stands between two marks of a document."""
    document = path.read_text(encoding="utf-8")
    if document.count(marks[0]) != 1 or document.count(marks[1]) != 1:
        raise SystemExit(f"{path} must hold each of {marks} once")
    head, rest = document.split(marks[0])
    _, tail = rest.split(marks[1])
    path.write_text(f"{head}{marks[0]}\n\n{text}\n\n{marks[1]}{tail}", encoding="utf-8")


def compiler_version() -> str:
    done = subprocess.run([find_nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release [\d.]+, V([\d.]+)", done.stdout)
    return release[1] if release else "unknown"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    options = parser.parse_args(argv)
    found = compile_all(options.architectures)
    text = (
        f"nvcc {compiler_version()}; registers per thread / occupancy, the worst variant; "
        f"sm_86 and sm_89 run the code of sm_80.\n\n{table(found)}"
    )
    if options.docs:
        write_between(options.docs, MARKS, text)
    if options.out:
        options.out.write_text(json.dumps([u._asdict() for u in found], indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
