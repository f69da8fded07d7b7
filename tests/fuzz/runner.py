"""Tries cases in forked children, so that a case that ends its process is named and the next one runs."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.fuzz.attacks import FLIPS, Case

SECONDS = 2.0  # of the processor for one case
SILENCE = 60.0  # of the clock without a word, on a machine that others share
MEMORY = 200 << 20  # what one case may add to the resident size
ADDRESSES = 8 << 30  # what all cases of a child may ask for
IN_USE = ("retrieval_metrics: ",)  # what a command hands its rows to
REFUSALS = (ValueError, TypeError, FileNotFoundError, OSError)  # these and no subclass but OSError's


class Target(NamedTuple):
    """One loader.

    Args:
        name: of the loader. form: of its file, for `attacks`.
        functions: with one of which a refusal must begin.
        make: writes the valid files into a folder and returns the one to attack.
        use: loads the file and computes with what it holds.
        share: of the cases that a pass takes, for loaders that compute for long.
        depth: how many folders above the file a refusal may name instead of it.
        free: words of a case that may lead to results of other shapes, or to a refusal in use.
        nan: whether values that are not finite are legal, and stay in their rows.
        sealed: whether a checksum is over all of the file, so that no flipped bit may pass.
    """

    name: str
    form: str
    functions: tuple[str, ...]
    make: Callable[[Path], Path]
    use: Callable[[Path], Sequence[torch.Tensor]]
    share: float = 1.0
    depth: int = 0
    nan: bool = False
    sealed: bool = False
    free: tuple[str, ...] = ()


_loaded = [False]


def loaded(value: Any) -> Any:
    """Marks the end of loading: what a later error says of the caller's rows need not name the file."""
    _loaded[0] = True
    return value


class Outcome(NamedTuple):
    case: int
    what: str  # accepted, refused, or what is wrong
    text: str = ""


def wrong_of(error: Exception, target: Target, path: Path, overflow: bool) -> str:
    """Empty for a refusal in the house's grammar, else what is wrong with it."""
    text = f"{type(error).__name__}: {error}"
    if type(error) not in REFUSALS and not isinstance(error, OSError):
        return f"another error: {text}"
    if _loaded[0] or str(error).startswith(
        IN_USE
    ):  # finite numbers of a file may lead out of float32, which the operators name
        named = re.fullmatch(r"[\w.]+: .+ must .+, got .+; .+", str(error), re.DOTALL)
        return "" if named and (overflow or str(error).startswith(IN_USE)) else f"refused in use: {text}"
    if not any(str(error).startswith(f"{f}: ") for f in target.functions):
        return f"names no function: {text}"
    if not any(str(place) in str(error) for place in (path, *path.parents[: target.depth])):
        return f"names no file: {text}"
    if "; " not in str(error):
        return f"names no remedy: {text}"
    return ""


def _may_overflow(case: Case) -> bool:
    """Whether the file may hold finite values that leave float32 where they are computed with."""
    if case.kind == "value edit":
        return not case.label.endswith(("nan", "inf"))
    large = ("e+30", "00000000", "999", "2147483648", "9223372036854775808")
    return case.kind.startswith("flip") or any(word in case.label for word in large)


def _try(target: Target, path: Path, shapes: list[list[int]] | None, overflow: bool) -> Outcome:
    _loaded[0] = False
    try:
        results = target.use(path)
    except Exception as error:
        wrong = wrong_of(error, target, path, overflow)
        return Outcome(0, "find" if wrong else "refused", wrong)
    finite = all(bool(torch.isfinite(r).all()) for r in results if r.is_floating_point())
    if not finite and not overflow and not target.nan:
        return Outcome(0, "find", "not finite")
    found = [list(r.shape) for r in results]
    if shapes is not None and found != shapes:
        return Outcome(0, "find", f"shapes {found} instead of {shapes}")
    return Outcome(0, "accepted")


def _child(target: Target, path: Path, cases: Sequence[tuple[int, Case]], shapes: Any, write: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    warnings.simplefilter("ignore")
    with os.fdopen(write, "w") as out:
        for index, case in cases:
            path.parent.mkdir(exist_ok=True)  # of parts, which a finished run removes
            path.write_bytes(case.data())
            print(json.dumps(index), file=out, flush=True)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.process_time()
            # Sizes that changed give other shapes.
            free = any(word in f"{case.kind} {case.label}" for word in target.free)
            sized = None if free or case.kind == "resized" else shapes
            found = _try(target, path, sized, free or _may_overflow(case))
            if target.sealed and case.kind in FLIPS and found.what == "accepted":
                found = Outcome(0, "find", "a flipped bit was taken")
            seconds = time.process_time() - began
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
            if seconds > SECONDS:
                found = Outcome(0, "find", f"{seconds:.1f} s; {found}")
            elif grown > MEMORY:
                found = Outcome(0, "find", f"{grown >> 20} MB; {found}")
            print(json.dumps([index, found.what, found.text]), file=out, flush=True)


def _batch(target: Target, path: Path, cases: list[tuple[int, Case]], shapes: Any) -> list[Outcome]:
    """Outcomes of the cases, up to the one that ended the child."""
    read, write = os.pipe()
    gc.freeze()  # a child's collection would copy every page that it visits
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            torch.set_num_threads(1)  # a fork copies no threads: PyTorch would wait for them
            _child(target, path, cases, shapes, write)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    found: list[Outcome] = []
    current, silent, text = -1, False, b""
    while True:
        if not select.select([read], [], [], SILENCE)[0]:
            silent = True
            os.kill(pid, signal.SIGKILL)
        part = os.read(read, 1 << 16)
        *lines, text = (text + part).split(b"\n")
        for line in lines:
            value = json.loads(line)
            if isinstance(value, int):
                current = value
            else:
                found.append(Outcome(*value))
        if not part:
            break
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status and (not found or found[-1].case != current):
        what = f"silent for {SILENCE:.0f} s" if silent else f"the process ended with {status}"
        found.append(Outcome(current, "find", what))
    elif status:
        raise RuntimeError(f"{target.name}: the child ended with {status} between two cases")
    return found


def try_all(target: Target, path: Path, cases: Sequence[Case], batch: int = 500) -> list[Outcome]:
    """Every case's outcome, in order."""
    whole = path.read_bytes()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        shapes = [list(r.shape) for r in target.use(path)]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole)
    left, done = list(enumerate(cases)), []
    while left:
        found = _batch(target, path, left[:batch], shapes)
        done += found
        left = left[len(found) :]
    return done
