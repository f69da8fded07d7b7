"""A disk that refuses a call: one clear line, nothing torn, and the next run ends right.

The shim sees what goes through libc's functions: all of Python's own writes. Parquet and safetensors
are made in memory and written so. What stdio flushes by itself, as for NumPy, it does not see: there a
limit on the size of files stands in, and a file system that is full.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import Answer, Place, Runs, mount
from tests.faults.jobs import JOBS

QUICK = ("fewshot", "fit", "SupportSet.save", "thresholds", "from_pretrained")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
KEPT_IN_CACHE = "could not be kept in"  # the only write that may fail: the result is there


def check_refusal(place: Place, answer: Answer, error: int, told: str) -> None:
    """The message names reason and file, and is one line of the command's."""
    assert answer.code == 0 and not answer.right, f"{told}: {answer}"
    assert os.strerror(error) in answer.message and str(place.out) in answer.message, f"{told}: {answer}"
    assert ".tmp" not in answer.message, f"{told}: a name that the user does not know: {answer.message}"
    if place.job.from_cli:
        assert answer.status == 2 and "Traceback" not in answer.printed, f"{told}: {answer}"


def refuse(place: Place, n: int, error: int, sticky: bool) -> None:
    told = f"{place.name}, {errno.errorcode[error]} {'from' if sticky else 'at'} call {n} of {place.trace}"
    place.reset()
    answer = place.run(n=n, action="fail", error=error, sticky=sticky)
    assert answer.fired, told
    place.check_nothing_torn(told)
    if place.name == "from_pretrained":
        assert answer.right and KEPT_IN_CACHE in answer.printed and os.strerror(error) in answer.printed, told
    elif answer.trace[n - 1] in "um" and answer.right:
        pass  # what has no use any more stays until the next run; a folder that is there need not be made
    else:
        check_refusal(place, answer, error, told)
    place.runs.counts["refused", place.name] += 1
    place.check_goes_on(told)


def refuse_some(runs: Runs, name: str, count: int, seed: int) -> None:
    place, draw = runs.place(name), random.Random(seed)
    calls = range(1, len(place.trace) + 1)
    for n in draw.sample(calls, min(count, len(calls))):
        refuse(place, n, draw.choice(ERRORS), sticky=draw.random() < 0.5)
    print({f"{what} {of}": n for (what, of), n in runs.counts.items()})


@pytest.mark.parametrize("name", QUICK)
def test_some_faults(runs: Runs, name: str, seed: int) -> None:
    refuse_some(runs, name, 3, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_many_faults(runs: Runs, name: str, seed: int) -> None:
    refuse_some(runs, name, 2 if JOBS[name].slow else 4, seed)


@pytest.mark.parametrize(
    "name", ["fewshot", "SupportSet.save", pytest.param("extract", marks=pytest.mark.slow)]
)
def test_short_writes_lose_nothing(runs: Runs, name: str) -> None:
    """Every write takes half of what it is given."""
    place = runs.place(name)
    place.reset()
    answer = place.run(n=1, action="short", sticky=True)
    assert answer.fired > place.trace.count("w") and answer.right
    place.check_nothing_torn(name)
    place.check_goes_on(name)


def test_the_shim_fires(runs: Runs) -> None:
    """The calls of one write, and the error of each."""
    place = runs.place("estimator.save")
    assert place.trace == "owsrs"
    for n, letter in enumerate(place.trace, 1):
        place.reset()
        answer = place.run(n=n, action="fail", error=errno.EDQUOT)
        assert answer.fired == 1 and os.strerror(errno.EDQUOT) in answer.error, (n, letter, answer)
    assert place.run(kinds="r", n=2, action="fail", error=errno.EIO).fired == 0


# -- what the shim does not see ------------------------------------------------------------------------


def test_rows_that_do_not_fit_are_no_shard(runs: Runs) -> None:
    """The last rows are flushed when stdio closes a file; the limit lets the first ones through."""
    name = "extract"
    place = runs.place(name)
    place.reset()
    shard = max((n for n in place.reference if n.endswith("_0.npy")), key=len)
    limit = len(place.reference[shard]) - 100
    answer = place.run(limit=limit)
    check_refusal(place, answer, errno.EFBIG, name)
    place.check_nothing_torn(name)
    place.check_goes_on(name)


@pytest.fixture
def small_disk(runs: Runs) -> Iterator[Path]:
    """A file system of 128 KiB in place of the output of `extract`."""
    out = runs.place("extract").out
    mount("-t", "tmpfs", "-o", "size=128k", "none", out)
    yield out
    subprocess.run(["umount", str(out)], check=True)


@pytest.mark.slow
def test_a_full_disk(runs: Runs, small_disk: Path) -> None:
    """With ever less room, page by page: a message and no torn file, and with room the whole result."""
    place, filler, refused = runs.place("extract"), small_disk / "filler", 0
    for pages in range(31, 3, -4):
        filler.write_bytes(bytes(4096 * pages))
        answer = place.run()
        if not answer.right:
            check_refusal(place, answer, errno.ENOSPC, f"{pages} pages taken")
            refused += 1
        filler.unlink()
        place.check_nothing_torn(f"{pages} pages taken")
    assert refused
    place.check_goes_on("with room")
