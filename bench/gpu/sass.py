"""Compiles the CUDA kernels and reads their machine code: how wide they load, tensor cores, local memory.

`python bench/gpu/sass.py [--architectures 80 90] [--docs docs/gpu.md]`. Needs nvcc and cuobjdump (of the CUDA
toolkit, or Triton's wheel), no GPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90")  # the first that copies past registers, and the first with wgmma
MARKS = ("<!-- sass: written by bench/gpu/sass.py -->", "<!-- end of sass -->")
KINDS = {
    "loads": ("LDG", "LD"),
    "stores": ("STG", "ST"),
    "copies": ("LDGSTS", "UBLKCP", "UTMALDG"),  # from memory to shared memory past the registers
    "shared loads": ("LDS", "LDSM"),
    "shared stores": ("STS", "STSM"),
    "local": ("LDL", "STL"),
    "read-only": (),  # loads that may miss what this launch has written: LDG with .CONSTANT
    "tensor": ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA", "BMMA", "DMMA", "UTCHMMA", "UTCQMMA"),
}
_KIND = {name: kind for kind, names in KINDS.items() for name in names}
# A kernel's template parameter that says how many values a lane moves at a time, or that it moves 16 bytes.
STEPS, ALIGNED = ("kStep", "kVector", "kVec", "kWide"), ("kAligned",)
_SIZES = {"float": 4, "__half": 2, "__nv_bfloat16": 2, "double": 8, "signed char": 1}


class Code(NamedTuple):
    """Of one kernel in one instantiation on one architecture: by kind, the bytes that instructions move."""

    kernel: str
    variant: str  # template arguments
    architecture: str
    moves: dict[str, list[int]]

    def count(self, kind: str) -> int:
        return len(self.moves[kind])

    def widest(self, *kinds: str) -> int:
        return max((size for kind in kinds for size in self.moves[kind]), default=0)


class Declared(NamedTuple):
    """What a kernel's source says of it."""

    parameters: tuple[str, ...]  # of its template
    tensor: bool  # multiplies on tensor cores
    packs: bool  # stores several values of a lane at once
    meets: bool = False  # reads what other blocks of its launch wrote, behind a barrier of the grid


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").glob("*/cuda*.cu"))


def find_tool(name: str) -> str | None:
    """On PATH, beside nvcc, or in Triton's wheel."""
    nvcc = shutil.which("nvcc")
    beside = [Path(os.path.realpath(nvcc)).parent / name] if nvcc else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        beside.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    return shutil.which(name) or next((str(p) for p in beside if os.access(p, os.X_OK)), None)


def needed() -> dict[str, str]:
    tools = {name: find_tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm")}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        raise SystemExit(
            f"gpu_sass: {', '.join(missing)} must be there, got none; install the CUDA toolkit, "
            "or Triton for all but nvcc"
        )
    return {name: path for name, path in tools.items() if path is not None}


def declared(path: Path) -> dict[str, Declared]:
    """The kernels of a file."""
    text = path.read_text(encoding="utf-8")
    found = {}
    pattern = r"(?:template\s*<((?:[^<>]|<[^<>]*>)*)>\s*)?__global__\s+void\s+(?:__\w+__\([^)]*\)\s*)*(\w+)\("
    for match in re.finditer(pattern, text):
        words = [part.split("=")[0].split() for part in (match[1] or "").split(",")]
        end = text.find("\n}\n", match.end())
        body = with_called(path, text[match.end() : end])
        found[match[2]] = Declared(
            tuple(w[-1] for w in words if w), bool(re.search(r"\w*mma\w*(::|\()", body)),
            bool(re.search(r"\bstore\(", body)), "grid_barrier(" in body,
        )  # fmt: skip
    return found


def with_called(path: Path, body: str) -> str:
    """A kernel's body and those of the functions beside it in its folder's headers that it calls."""
    headers = "".join(p.read_text(encoding="utf-8") for p in sorted(path.parent.glob("cuda*.cuh")))
    functions = dict(re.findall(r"^__device__ [^;{]*?\b(\w+)\(([\s\S]*?\n})\n", headers, re.MULTILINE))
    called, found = [body], set[str]()
    while called:
        names = set(re.findall(r"\b(\w+)[(<]", called.pop())) & functions.keys() - found
        found |= names
        called += [functions[name] for name in names]
    return "".join([body, *(functions[name] for name in sorted(found))])


def parse(text: str, architecture: str) -> list[Code]:
    """Reads what `cuobjdump -sass` prints."""
    names, moves = [], []
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\S+)", line):
            names.append(function[1])
            moves.append({kind: [] for kind in KINDS})
        elif step := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][A-Z0-9_.]*)", line):
            base, *modifiers = step[1].split(".")
            if base in _KIND:
                moves[-1][_KIND[base]].append(width_of(modifiers))
            if base == "LDG" and "CONSTANT" in modifiers:
                moves[-1]["read-only"].append(width_of(modifiers))
    plain = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True) if names else None
    found = []
    for name, mine in zip(plain.stdout.splitlines() if plain else (), moves, strict=True):
        match = re.search(r"(\w+_kernel)(?:<(.*?)>)?\(", name)
        assert match, f"no kernel's name: {name}"
        variant = re.sub(r"\((?:int|bool)\)", "", match[2] or "").replace("semobridge::", "")
        found.append(Code(match[1], variant, architecture, mine))
    return found


def width_of(modifiers: Sequence[str]) -> int:
    for modifier, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if modifier in modifiers:
            return size
    return 4


def read(path: Path, architecture: str) -> list[Code]:
    tools = needed()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.cubin"
        command = [tools["nvcc"], "-std=c++17", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-cubin"]
        done = subprocess.run([*command, str(path), "-o", str(out)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc refused {path.name}:\n{(done.stdout + done.stderr)[-4000:]}")
        folders = os.pathsep.join([str(Path(tools["nvdisasm"]).parent), os.environ.get("PATH", "")])
        listing = subprocess.run(
            [tools["cuobjdump"], "-sass", str(out)], capture_output=True, text=True,
            env=os.environ | {"PATH": folders},
        )  # fmt: skip
    if listing.returncode != 0:
        raise RuntimeError(f"cuobjdump refused {path.name}: {listing.stderr[-2000:]}")
    return parse(listing.stdout, architecture)


def expected_width(kernel: Declared, variant: str) -> int:
    """Bytes that a lane moves at a time by the template's arguments; 0: they do not say."""
    arguments = [a.strip() for a in re.split(r",(?![^<]*>)", variant)]
    smallest = min((_SIZES[a] for a in arguments if a in _SIZES), default=4)
    for name, argument in zip(kernel.parameters, arguments, strict=False):
        if name in ALIGNED and argument == "true":
            return 16
        if name in STEPS and argument.isdigit() and int(argument) > 1:
            return min(16, int(argument) * smallest)
    return 0


@functools.cache
def _kernels() -> dict[str, Declared]:
    return {name: what for path in sources() for name, what in declared(path).items()}


def problems(found: Sequence[Code], kernels: dict[str, Declared] | None = None) -> list[str]:
    """What the machine code lacks that the source promises."""
    wrong = []
    for code in found:
        what = (_kernels() if kernels is None else kernels)[code.kernel]
        name = f"{code.kernel}<{code.variant}> on sm_{code.architecture}"
        if code.count("local"):
            wrong.append(
                f"{name} holds {code.count('local')} accesses of local memory; index arrays by constants"
            )
        if what.meets and code.count("read-only"):
            wrong.append(
                f"{name} holds {code.count('read-only')} loads by the read-only path, which would not see "
                "what other blocks wrote; pass no const __restrict__ pointers to what it runs"
            )
        if what.tensor and not code.count("tensor"):
            wrong.append(f"{name} has no tensor-core instruction")
        width = expected_width(what, code.variant)
        if code.widest("loads", "copies") < width:
            wrong.append(f"{name} loads {code.widest('loads', 'copies')} bytes at most, not {width}")
        if what.packs and code.widest("stores") < width:
            wrong.append(f"{name} stores {code.widest('stores')} bytes at most, not {width}")
    return wrong


def table(found: Sequence[Code]) -> str:
    """One row per kernel: the widest move of any instantiation, and the most of what should be rare."""
    header = ["kernel", "widest load", "widest store", "shared load / store", "tensor", "local"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for kernel in sorted({code.kernel for code in found}):
        mine = [code for code in found if code.kernel == kernel]

        def widest(*kinds: str, mine: list[Code] = mine) -> str:
            return str(max(code.widest(*kinds) for code in mine) or "–")

        tensor: dict[str, int] = {}
        for code in mine:
            tensor[code.architecture] = max(tensor.get(code.architecture, 0), code.count("tensor"))
        cells = [
            f"`{kernel}`", widest("loads", "copies"), widest("stores"),
            f"{widest('shared loads')} / {widest('shared stores')}",
            " / ".join(str(tensor[a]) for a in sorted(tensor, key=int)) if any(tensor.values()) else "–",
            str(max(code.count("local") for code in mine)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_all(architectures: Sequence[str] = ARCHITECTURES) -> list[Code]:
    jobs = [(path, architecture) for path in sources() for architecture in architectures]
    with ThreadPoolExecutor(2) as pool:
        return [code for codes in pool.map(lambda job: read(*job), jobs) for code in codes]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    found = read_all(options.architectures)
    names = ", ".join(f"sm_{a}" for a in options.architectures)
    text = (
        f"Machine code for {names}: bytes that one lane moves at most, in any instantiation; tensor-core "
        f"instructions of one; accesses of local memory.\n\n{table(found)}"
    )
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)
    if wrong := problems(found):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
