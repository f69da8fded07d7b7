"""SIGKILL at any call that changes a file: nothing is torn, and the next run ends as if nothing had been."""

from __future__ import annotations

import random

import pytest

from tests.faults.campaign import Place, Runs
from tests.faults.jobs import JOBS

QUICK = ("fewshot", "fit", "estimator.save", "SupportSet.save", "thresholds", "from_pretrained")


def killed(place: Place, n: int, half: bool) -> str:
    """One run that is killed before its n-th call, or in the midst of it where it writes."""
    action = "half and kill" if half else "kill"
    answer = place.run(n=n, action=action)
    told = f"{place.name}, {action} at call {n} of {place.trace}"
    assert answer.code == -9, f"{told}: {answer}"
    place.check_nothing_torn(told)
    place.runs.counts["killed", place.name] += 1
    return told


def some(count: int, draw: random.Random, place: Place) -> list[int]:
    return draw.sample(range(1, len(place.trace) + 1), min(count, len(place.trace)))


def kill_and_go_on(runs: Runs, name: str, count: int, seed: int) -> None:
    place, draw = runs.place(name), random.Random(seed)
    for n in some(count, draw, place):
        place.reset()
        told = killed(place, n, half=draw.random() < 0.5)
        # The run that goes on is sometimes killed as well: it removes what the first one left.
        second = draw.randrange(1, len(place.trace) + 1)
        if draw.random() < 0.3 and place.run(n=second, action="kill").code == -9:
            told += f", and again at {second}"
            place.check_nothing_torn(told)
            runs.counts["killed", name] += 1
        place.check_goes_on(told)
    print({f"{what} {of}": n for (what, of), n in runs.counts.items()})


@pytest.mark.parametrize("name", QUICK)
def test_some_kills(runs: Runs, name: str, seed: int) -> None:
    kill_and_go_on(runs, name, 3, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_many_kills(runs: Runs, name: str, seed: int) -> None:
    kill_and_go_on(runs, name, 2 if JOBS[name].slow else 4, seed)


def test_the_kill_is_where_it_is_said_to_be(runs: Runs) -> None:
    """Before the rename the old file stands, after it the new one."""
    place = runs.place("estimator.save")
    rename = place.trace.index("r") + 1
    path = place.out / "clf.safetensors"
    for n, want in ((rename, place.before), (rename + 1, place.reference)):
        place.reset()
        killed(place, n, half=False)
        assert path.read_bytes() == want[path.name]
        assert len(list(place.out.iterdir())) == (2 if n == rename else 1)  # the temporary file
