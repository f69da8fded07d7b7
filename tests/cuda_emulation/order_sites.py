"""Every barrier and fence of the kernels, found in their sources, and the kernel without one of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.cuda_emulation.all_cases import CASES
from tests.cuda_emulation.build import Emulation, kernel_sources
from tests.support.source_tree import ROOT

CSRC = ROOT / "csrc"
_STATEMENT = re.compile(r"\b__(?:syncthreads|syncwarp|threadfence)\w*\([^;]*\);")


class Site(NamedTuple):
    file: str  # below csrc
    number: int  # of its statements, from the top
    statement: str

    def without(self) -> str:
        text = (CSRC / self.file).read_text()
        at = list(_STATEMENT.finditer(text))[self.number]
        return f"{text[: at.start()]};{text[at.end() :]}"

    def kernels(self) -> list[str]:
        """Whose object to compile anew: the file's own, or those that call a header's function."""
        mine = [name for name, path in kernel_sources().items() if path == CSRC / self.file]
        if mine:
            return mine
        text = (CSRC / self.file).read_text()
        before = text[: list(_STATEMENT.finditer(text))[self.number].start()]
        function = re.findall(r"^__device__ [^;{]*?\b(\w+)\(", before, re.MULTILINE)[-1]
        sources = {name: path.read_text() for name, path in kernel_sources().items()}
        callers = [name for name, text in sources.items() if re.search(rf"\b{function}\b", text)]
        # A function of a header that others of its header call, or a header's own.
        return callers or [name for name, path in kernel_sources().items() if self.file in included(path)]


def included(path: Path) -> set[str]:
    """Headers of csrc that a file includes, and theirs."""
    found: set[str] = set()
    names = re.findall(r'^#include "(\w+/\w+\.cuh)"', path.read_text(), re.MULTILINE)
    for name in names:
        found |= {name} | included(CSRC / name)
    return found


def sites() -> list[Site]:
    found = []
    for path in sorted([*CSRC.glob("*/*.cu"), *CSRC.glob("*/*.cuh")]):
        statements = _STATEMENT.finditer(path.read_text())
        found += [Site(str(path.relative_to(CSRC)), n, s[0]) for n, s in enumerate(statements)]
    return found


def count_of(text: str) -> int:
    return len(_STATEMENT.findall(text))


def bare(text: str) -> str:
    """Without comments, spaces and empty statements: two ways to remove a statement are the same."""
    code = re.sub(r"\s+", "", re.sub(r"//[^\n]*", "", text))
    return re.sub(r"([;{})]);+", r"\1", code)


def stem_of(case: str) -> str:
    """The kernels' source of a case."""
    others = {"cosine_loss": "descend", "adamw": "descend"}
    others |= {"losses_by_halves": "losses", "sums_by_halves": "shots"}
    return others.get(case, case)


def cases_of(kernel: str) -> list[str]:
    """Those that run a source's kernels: of its name, or any."""
    return [case for case in CASES if stem_of(case) == kernel] or list(CASES)


def compiled(emulation: Emulation, kernel: Path, file: str, text: str, folder: Path) -> Path:
    """The object of a kernel's source where `text` stands in `file`, its own or a header's."""
    mutant = folder / file
    for parent in (mutant.parent, folder / kernel.parent.name):
        parent.mkdir(parents=True, exist_ok=True)
    for header in (CSRC / "core").glob("*.cuh"):  # a header finds others beside it first
        (folder / "core").mkdir(exist_ok=True)
        (folder / "core" / header.name).write_text(header.read_text())
    source = folder / kernel.relative_to(CSRC)
    source.write_text(kernel.read_text())
    mutant.write_text(text)
    return emulation.compile(source, first=folder, strict=False)
