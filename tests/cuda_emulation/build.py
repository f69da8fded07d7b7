"""Builds the .cu files of csrc for the host with g++, and runs the cases in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.source_tree import ROOT, environment, need, need_source, run

HERE = ROOT / "tests" / "cuda_emulation"
ORDERS = ("ascending", "descending", "shuffled")
# Fortified jumps refuse to change stacks.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         "-DSB_WITH_CUDA", "-DSB_CUDA_ONLY", "-U_FORTIFY_SOURCE")  # fmt: skip
# Alignment is checked because a misaligned vector access, harmless on this processor, faults on a GPU.
SANITIZE = ("-fsanitize=address,alignment", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")


def name_of(source: Path) -> str:
    """Of a kernel's cases and object: csrc/topk/cuda.cu is topk, cuda_attention.cu attention."""
    if source.suffix == ".cu":
        return source.parent.name if source.stem == "cuda" else source.stem.removeprefix("cuda_")
    return f"{source.stem}_{source.parent.name}" if source.stem.startswith("bind") else source.stem


def kernel_sources() -> dict[str, Path]:
    """Every CUDA file of the core, by name."""
    return {name_of(path): path for path in sorted((ROOT / "csrc").glob("*/cuda*.cu"))}


class Emulation:
    """Objects and module of one set of flags."""

    def __init__(self, folder: Path, *flags: str) -> None:
        need_source()
        self.compiler = need("g++", "compile the CUDA kernels for the host")
        self.pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed for the emulated module")
        self.folder, self.flags = folder, flags
        self.module = folder / f"cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        folder.mkdir(parents=True, exist_ok=True)

    def sources(self) -> list[Path]:
        kernels = list(kernel_sources().values())
        assert len(kernels) >= 8
        own = [HERE / "emulation.cpp", HERE / "module.cpp", HERE / "selftest.cu"]
        bindings = [p for p in sorted((ROOT / "csrc").glob("*/bind.cpp")) if "SB_BIND_CUDA" in p.read_text()]
        return [*kernels, *own, *bindings]

    def compile(
        self, source: Path, target: Path | None = None, strict: bool = False, first: Sequence[Path] = ()
    ) -> Path:
        """`first`: folders of headers that go before the tree's."""
        target = target or self.folder / f"{name_of(source)}.o"
        include = [*first, ROOT / "csrc", ROOT / "python", HERE / "include",
                   self.pybind11.get_include(), sysconfig.get_path("include")]  # fmt: skip
        done = run(
            self.compiler, *FLAGS, *self.flags, *(["-Werror"] if strict else []),
            *(f"-I{path}" for path in include), "-x", "c++", "-c", source, "-o", target,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return target

    def link(self, objects: list[Path], module: Path) -> Path:
        done = run(self.compiler, "-shared", *self.flags, *objects, "-o", module)
        assert done.returncode == 0, done.stdout + done.stderr
        return module

    def build(self, kept: Sequence[Path] = ()) -> Emulation:
        """Compiles what is not in `kept`, objects of another build."""
        done = {o.stem for o in kept}
        sources = [s for s in self.sources() if name_of(s) not in done]
        with ThreadPoolExecutor(2) as pool:
            self.objects = [*kept, *pool.map(partial(self.compile, strict=True), sources)]
        self.link(self.objects, self.module)
        return self


def run_cases(
    module: Path, order: str, *names: str, env: dict[str, str] | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    return run(
        sys.executable, HERE / "run_cases.py", module, order, *names,
        env=env or environment(), cwd=ROOT, timeout=timeout,
    )  # fmt: skip


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
