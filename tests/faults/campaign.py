"""Runs that are killed or meet faults, and what must hold of the files that they leave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.jobs import JOBS
from tests.support.build_cache import kept, version_of
from tests.support.source_tree import ROOT, environment, need, run

ALL = "owsrumt"  # the kinds of calls that the shim counts
NONE = {"kinds": ALL, "n": 0, "action": "count", "error": 0, "sticky": False}
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def shim() -> Path:
    """The preloaded library, compiled once a content."""
    source, compiler = Path(__file__).with_name("shim.c"), need("cc", "compile tests/faults/shim.c")

    def make(folder: Path) -> None:
        words = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", source, "-ldl"]
        subprocess.run([*words, "-o", folder / "shim.so"], check=True)

    return kept("faults", [source, version_of(compiler)], make) / "shim.so"


def mount(*words: object) -> None:
    """Skips where nothing can be mounted."""
    done = run(need("mount", "mount a small file system"), *words)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


class Answer(NamedTuple):
    code: int  # of the process: minus the signal that ended it
    printed: str
    status: int = 0  # of the command
    error: str = ""  # what the call raised
    rights: int = 0  # threads of it that ended well
    fired: int = 0  # faults that happened
    trace: str = ""  # one letter a counted call
    pid: int = 0  # as the run saw itself

    @property
    def right(self) -> bool:
        return self.code == 0 and self.status == 0 and not self.error

    @property
    def message(self) -> str:
        """What the user reads."""
        lines = self.error or self.printed.strip()
        return lines.splitlines()[-1] if lines else ""


def log_lines(data: bytes) -> bytes:
    """A log as its readers take it: the last whole line of each kind, whatever a kill has cut short."""
    found = {}
    for text in data.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        key = line[0] if isinstance(line, list) else line.get("episode", line.get("problem"))
        found[json.dumps(key)] = line
    return json.dumps(sorted(found.items())).encode()


def without_speed(data: bytes) -> bytes:
    """A summary without what depends on the clock and on where the run was taken up."""
    record = json.loads(data)
    return json.dumps({k: v for k, v in record.items() if "second" not in k and k != "resumed_at"}).encode()


SPECIAL = {"shards.jsonl": log_lines, "results.jsonl": log_lines, "summary.json": without_speed}


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(folder))] = SPECIAL.get(path.name, bytes)(data)
    return found


def is_whole(path: Path) -> bool:
    """By what the formats say of their own length."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        if len(data) < 8:
            return False
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
        except ValueError:
            return False
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return len(data) == 8 + length + max(ends, default=0)
    return data.endswith(b"\n")


class Place:
    """One job's folders: its inputs, an older result, and what an undisturbed run makes."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.runs, self.name, self.job = runs, name, JOBS[name]
        self.home = runs.folder / name
        self.out, self.old = self.home / "out", self.home / "older"
        for folder in (self.home / "in", self.out, self.old):
            folder.mkdir(parents=True)
        assert runs.ask(self, what="prepare").right
        if self.job.older:
            older = runs.ask(self, what="older")
            assert older.right, older
            shutil.copytree(self.out, self.old, dirs_exist_ok=True)
        self.reset()
        whole = self.run()
        assert whole.right, whole
        self.trace, self.reference, self.before = whole.trace, contents(self.out), contents(self.old)
        assert self.reference != self.before
        if self.job.older:
            assert self.reference.keys() == self.before.keys()
        self.reset()
        again = self.run()
        assert again.right and contents(self.out) == self.reference, f"{name} is not the same twice"

    def reset(self) -> None:
        shutil.rmtree(self.out)
        shutil.copytree(self.old, self.out)

    def run(self, **fault: Any) -> Answer:
        return self.runs.ask(self, **fault)

    def check_nothing_torn(self, told: str) -> None:
        """Every file is the old one or the new one; only what is hidden may be half written."""
        for path in self.out.rglob("*"):
            name = str(path.relative_to(self.out))
            if not path.is_file() or TEMPORARY.fullmatch(path.name) or path.name == ".lock":
                continue
            if path.name.endswith(".lock") or path.name in ("shards.jsonl", "results.jsonl"):
                continue  # an empty or cut lock locks as well; of a log, whole lines count
            data = SPECIAL.get(path.name, bytes)(path.read_bytes())
            if data in (self.reference.get(name), self.before.get(name)):
                continue
            # Chunks, listings, checkpoints.
            passing = name not in self.reference or self.name.endswith("fit")
            passing = passing or path.name == "training.safetensors"
            assert passing and is_whole(path), f"{told}: {name} is neither the old nor the new file"

    def check_goes_on(self, told: str) -> None:
        """The next run takes what it finds and ends as if nothing had been; nothing is left over."""
        again = self.run()
        assert again.right, f"{told}: the next run failed: {again}"
        found = contents(self.out)
        assert sorted(found) == sorted(self.reference), told
        for name, data in self.reference.items():
            assert found[name] == data, f"{told}: {name} differs from that of an undisturbed run"


class Runs:
    """The warm process, and counts of what was tried."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counter[tuple[str, str]]()
        self._places: dict[str, Place] = {}
        words = environment(LD_PRELOAD=str(shim()), OMP_NUM_THREADS="1")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=words,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.child.stdout
        return self.child.stdout.readline().strip()

    def place(self, name: str) -> Place:
        if name not in self._places:
            self._places[name] = Place(self, name)
        return self._places[name]

    def ask(self, place: Place, **request: Any) -> Answer:
        return self.ask_all(place, **request)[0]

    def ask_all(
        self,
        place: Place,
        *,
        what: str = "run",
        limit: int = 0,  # bytes that a file may have; 0: any
        plain_user: bool = False,  # modes count
        threads: int = 1,  # that make the same call at once
        beside: int = 0,  # further processes; behind a fault "stop", while the first one stands still
        beside_what: str = "",  # what those do, where it is not the same
        apart: bool = False,  # each process in a PID namespace of its own, with the same number
        stopped: float = 0.0,  # seconds
        **fault: Any,
    ) -> list[Answer]:
        request = {
            "job": place.name, "home": str(place.home), "what": what, "limit": limit,
            "plain_user": plain_user, "threads": threads, "beside": beside, "stopped": stopped,
            "beside_what": beside_what or what, "apart": apart,
            "fault": {**NONE, **fault},
        }  # fmt: skip
        assert self.child.stdin
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        line = self._line()
        assert line, "the warm process has ended"
        return [Answer(**found) for found in json.loads(line)]

    def close(self) -> None:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.close()
        self.child.wait(timeout=30)
        self.child.stdout.close()
