"""Builds the .cu files of csrc for the host with g++, and runs the cases in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.build_cache import digest, files_below, kept, version_of
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
    return source.parent.name if source.name == "cuda.cu" else source.stem.removeprefix("cuda_")


def kernel_sources() -> dict[str, Path]:
    """Every CUDA file of the core, by name."""
    return {name_of(path): path for path in sorted((ROOT / "csrc").glob("*/cuda*.cu"))}


class Emulation:
    """Objects and module of one set of flags, which the sources named in `plain` do without.

    `linked`: the linker gets the flags too, and with them the compiler's own runtime. `folders`: of csrc,
    whose kernels alone get them, where not all are asked; the others' objects are those without.
    """

    def __init__(
        self, *flags: str, plain: tuple[str, ...] = (), linked: bool = True, folders: tuple[str, ...] = ()
    ) -> None:
        need_source()
        self.compiler = need("g++", "compile the CUDA kernels for the host")
        pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed for the emulated module")
        self.flags, self.plain, self._linked = flags, plain, flags if linked else ()
        self._folders = folders
        folders = [ROOT / "csrc", ROOT / "python", HERE / "include"]
        self._include = [*folders, ROOT, pybind11.get_include(), sysconfig.get_path("include")]
        headers = [*files_below(*folders, ending=(".h", ".cuh")), HERE / "watch.h"]
        names = [str(path.relative_to(ROOT)) for path in headers]
        self._seen = digest(version_of(self.compiler), pybind11.__version__, sys.version, *names, *headers)

    def bindings(self) -> list[Path]:
        """Those of the kernels, and the module's own."""
        found = [p for p in sorted((ROOT / "csrc").glob("*/bind.cpp")) if "SB_BIND_CUDA" in p.read_text()]
        return [*found, HERE / "module.cpp"]

    def _module(self) -> Path:
        """All bindings as one source: pybind11 is most of each, and compiles once for all."""
        lines = []
        for path in self.bindings():
            functions = ("bind_cpu", "bind_cuda")
            lines += [f"#define {f} {path.parent.name}_{f}" for f in functions]
            lines += [f'#include "{path.relative_to(ROOT)}"', *(f"#undef {f}" for f in functions)]
        text = "\n".join([*lines, ""])
        made = kept("bindings", [text], lambda folder: (folder / "module.cpp").write_text(text))
        return made / "module.cpp"

    def sources(self) -> list[Path]:
        kernels = list(kernel_sources().values())
        assert len(kernels) >= 8
        own = sorted({*HERE.glob("*.cpp"), *HERE.glob("*selftest.cu")} - {HERE / "module.cpp"})
        return [self._module(), *kernels, *own]

    def compile(self, source: Path, first: Path | None = None, strict: bool = True) -> Path:
        """The object, kept by content. `first`: a folder of headers that go before the tree's."""
        name = name_of(source)
        flags = [*FLAGS, *(["-Werror"] if strict else ())]
        asked = not self._folders or source.parent.name in (*self._folders, HERE.name)
        flags += self.flags if asked and not name.startswith(self.plain) else ()
        extra = files_below(first) if first else self.bindings() if name == "module" else []

        def make(folder: Path) -> None:
            include = [f"-I{path}" for path in (*([first] if first else ()), *self._include)]
            done = run(self.compiler, *flags, *include, "-x", "c++", "-c", source, "-o", folder / f"{name}.o")
            assert done.returncode == 0, done.stdout + done.stderr

        names = [str(path.relative_to(first or ROOT)) for path in extra]
        contents = [self._seen, *flags, source, *names, *extra]
        return kept(f"emulated-{name}", contents, make) / f"{name}.o"

    def link(self, objects: Sequence[Path], folder: Path) -> Path:
        module = folder / f"cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        done = run(self.compiler, "-shared", *self._linked, *objects, "-o", module)
        assert done.returncode == 0, done.stdout + done.stderr
        return module

    def build(self) -> Emulation:
        with ThreadPoolExecutor(2) as pool:
            self.objects = list(pool.map(self.compile, self.sources()))
        folder = kept("emulation", [*self.flags, *self.objects], lambda f: self.link(self.objects, f))
        (self.module,) = folder.iterdir()
        return self

    def with_one_replaced(self, name: str, replacement: Path, folder: Path) -> Path:
        """The module with another object in place of `name`'s."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.link([replacement if o.stem == name else o for o in self.objects], folder)


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
