"""The kernels with every access watched: races between threads, and what the requests of warps move.

g++ -fsanitize=thread puts a call before every load and store of the kernels. It is linked without
ThreadSanitizer: hooks.cpp takes the calls, races.cpp and traffic.cpp judge them. watch.h says how.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.cuda_emulation.build import Emulation, report_of, run_cases
from tests.support.source_tree import ROOT, environment, need

# Inlined as on a GPU, so that a place in the code is one instruction; an aggregate moves in one piece,
# and neighbours are not joined.
FLAGS = ("-fsanitize=thread", "--param", "tsan-distinguish-volatile=1", "-finline-functions",
         "-finline-small-functions", "--param", "max-inline-insns-auto=2000", "--param",
         "max-inline-insns-single=2000", "-fno-tree-sra", "-fno-tree-vectorize", "-fno-store-merging",
         "-g1")  # fmt: skip
PLAIN = ("module", "selftest", "emulation", "hooks", "races", "traffic")


class Site(NamedTuple):
    """An instruction of a kernel: its requests, the sectors or wavefronts they move, and those they need."""

    kernel: str
    place: str  # file:line
    shared: bool
    store: bool
    requests: int
    moved: int
    needed: int
    worst_moved: int
    worst_needed: int


class Line(NamedTuple):
    """All that one line of a kernel loads or stores, in every instantiation."""

    kernel: str
    shared: bool
    place: str
    store: bool
    requests: int
    moved: int
    needed: int
    worst: float  # moved over needed, of one request

    @property
    def ratio(self) -> float:
        return self.moved / self.needed


def watched(*folders: str) -> Emulation:
    """All is there; watched are every kernel, or those of these folders of csrc alone."""
    need("addr2line", "name the line of an access")
    return Emulation(*FLAGS, plain=PLAIN, linked=False, folders=folders)


def run_watched(what: str, module: Path, *names: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    """`what`: races or traffic. Addresses in the words of a race are turned into lines."""
    # The same sizes and layouts as under AddressSanitizer: halves and bfloat16 share their addresses.
    env = environment(CUDA_EMULATION_WATCH=what, CUDA_EMULATION_SANITIZED="1", OMP_NUM_THREADS="1")
    done = run_cases(module, "ascending", *names, env=env, timeout=timeout)
    done.stderr = in_lines(module, done.stderr)
    return done


def race_in(done: subprocess.CompletedProcess[str]) -> str:
    """What the detector said, or nothing."""
    found = re.search(r"race: .*", done.stderr)
    return found[0] if found else ""


def traffic(module: Path, *names: str) -> list[Site]:
    """Of the named cases, or of all."""
    return sites(module, report_of(run_watched("traffic", module, *names))["traffic"])


def sites(module: Path, rows: list[list]) -> list[Site]:
    kernels = kernel_names(module, {row[0] for row in rows})
    lines = places(module, [row[1] for row in rows])
    return [
        Site(kernels[row[0]], line, bool(row[2]), bool(row[3]), *row[4:])
        for row, line in zip(rows, lines, strict=True)
    ]


def by_line(found: Iterable[Site]) -> list[Line]:
    grouped: dict[tuple[str, bool, str, bool], list[Site]] = {}
    for site in found:
        grouped.setdefault((site.kernel, site.shared, site.place, site.store), []).append(site)
    return [
        Line(
            *key, sum(s.requests for s in mine), sum(s.moved for s in mine), sum(s.needed for s in mine),
            max(s.worst_moved / s.worst_needed for s in mine),
        )
        for key, mine in sorted(grouped.items())
    ]  # fmt: skip


def kernel_names(module: Path, addresses: Iterable[int]) -> dict[int, str]:
    listed = subprocess.run(["nm", "-C", module], capture_output=True, text=True, check=True).stdout
    symbols = {}
    for line in listed.splitlines():
        if found := re.match(r"([0-9a-f]{16}) \w .*?(\w+_kernel)\b", line):
            symbols.setdefault(int(found[1], 16), found[2])
    return {address: symbols.get(address, "a kernel without a name") for address in addresses}


def places(module: Path, addresses: list[int]) -> list[str]:
    """The lines before these return addresses, an inlined function's own: device.cuh says little."""
    if not addresses:
        return []
    asked = "\n".join(f"{address - 1:#x}" for address in addresses)
    command = ["addr2line", "-a", "-i", "-e", str(module)]
    told = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    found = []
    for block in re.split(r"^0x[0-9a-f]+\n", told, flags=re.MULTILINE)[1:]:
        lines = [line.split(" ")[0] for line in block.splitlines()]
        own = [line for line in lines if "/core/" not in line and "cuda_emulation/include" not in line]
        path, _, number = (own or lines)[0].rpartition(":")
        name = Path(path)
        found.append(f"{name.parent.name}/{name.name}:{number}")
    return found


def in_lines(module: Path, text: str) -> str:
    return re.sub(r"\+(\d+)\+", lambda at: places(module, [int(at[1])])[0], text)


def source_of(place: str) -> str:
    """The line of a kernel's source, for a message."""
    name, _, number = place.rpartition(":")
    path = ROOT / "csrc" / name
    return path.read_text().splitlines()[int(number) - 1].strip() if path.is_file() else ""
