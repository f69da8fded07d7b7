"""Writers that see the same process number for themselves, as in two containers; and others' inputs.

A lock or a temporary file that was told by a process number would be taken for the writer's own.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from tests.faults import namespaces
from tests.faults.campaign import TEMPORARY, Answer, Place, Runs, contents

ONE_RUN = "must belong to one run"
LOCKING = ("extract", "fewshot", "invert", "oti", "fit")
SAVING = ("Bridge.save", "estimator.save", "SupportSet.save", "thresholds")
QUICK = ("fewshot", "fit", "SupportSet.save", "thresholds")


def marked(*names: str) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", autouse=True)
def _permitted() -> None:
    refused = namespaces.permitted()
    if refused:
        pytest.skip(
            f"no PID namespace can be made here (unshare: {refused}); run as root or in a user namespace"
        )


def check(place: Place, answers: list[Answer], told: str) -> None:
    """All had one number; one ended well, and the others did or were refused. Nothing is torn."""
    assert {a.pid for a in answers if a.code == 0} == {namespaces.NUMBER}, f"{told}: {answers}"
    assert any(a.right for a in answers), f"{told}: {answers}"
    for a in answers:
        assert a.right or ONE_RUN in a.message, f"{told}: {a}"
    place.check_nothing_torn(told)
    left = [p.name for p in place.out.rglob("*") if TEMPORARY.fullmatch(p.name)]
    assert not left, f"{told}: {left}"
    place.runs.counts["two namespaces", place.name] += 1


@pytest.mark.parametrize("name", marked(*LOCKING, *SAVING))
def test_two_at_once(runs: Runs, name: str) -> None:
    place = runs.place(name)
    for i in range(3):
        place.reset()
        check(place, runs.ask_all(place, beside=1, apart=True), f"{name}, {i}")
        place.check_goes_on(name)


@pytest.mark.parametrize("name", marked(*LOCKING, *SAVING))
def test_one_stands_still_in_the_other_namespace(runs: Runs, name: str) -> None:
    """Stopped in its first write and before its last rename: its temporary file is not taken away."""
    place = runs.place(name)
    for n in {place.trace.index("w") + 1, place.trace.rindex("r") + 1}:
        place.reset()
        answers = runs.ask_all(place, n=n, action="stop", beside=1, apart=True)
        assert answers[0].fired == 1 and answers[0].right, answers[0]
        if name in LOCKING:
            assert ONE_RUN in answers[1].message, answers[1]
        if name in LOCKING and place.trace[n - 1] == "r":  # the lock says who holds it by then
            assert f"process {namespaces.NUMBER} on " in answers[1].message, answers[1]
        if name not in (*LOCKING, "thresholds"):
            assert answers[1].right, answers[1]
        check(place, answers, f"{name}, stopped at call {n} of {place.trace}")
        place.check_goes_on(name)


@pytest.mark.parametrize("name", marked(*LOCKING, *SAVING))
def test_killed_and_taken_up_by_the_same_number(runs: Runs, name: str, seed: int) -> None:
    """What process 2 left, process 2 of the next namespace takes up; locks and temporary files go."""
    place, draw = runs.place(name), random.Random(seed)
    for n in {place.trace.rindex("r") + 1, *(draw.randrange(1, len(place.trace) + 1) for _ in range(3))}:
        place.reset()
        killed = place.run(n=n, action=draw.choice(("kill", "half and kill")), apart=True)
        assert killed.code == -9, killed
        told = f"{name}, killed at call {n} of {place.trace}"
        place.check_nothing_torn(told)
        again = place.run(apart=True)
        assert again.right and again.pid == namespaces.NUMBER, f"{told}: {again}"
        assert contents(place.out) == place.reference, told
        runs.counts["killed", name] += 1


# -- two inputs on one output --------------------------------------------------------------------------


def other_result(place: Place) -> dict[str, bytes]:
    place.reset()
    assert place.run(what="other").right
    found = contents(place.out)
    assert found != place.reference
    return found


def after_each_other(place: Place) -> list[dict[str, bytes]]:
    """What two runs leave that did not meet, in either order."""
    found = []
    for order in (("run", "other"), ("other", "run")):
        place.reset()
        assert all(place.run(what=what).right for what in order)
        found.append(contents(place.out))
    return found


@pytest.mark.parametrize("name", marked(*LOCKING))
def test_another_input_while_the_first_stands_still(runs: Runs, name: str) -> None:
    """It is refused, and the first ends as if it had been alone."""
    place = runs.place(name)
    for n in {place.trace.index("w") + 1, place.trace.rindex("r") + 1}:
        place.reset()
        answers = runs.ask_all(place, n=n, action="stop", beside=1, beside_what="other", apart=True)
        assert answers[0].right and not answers[1].right and ONE_RUN in answers[1].message, answers
        assert contents(place.out) == place.reference, f"{name}, stopped at call {n} of {place.trace}"


@pytest.mark.parametrize("name", marked(*LOCKING))
def test_two_inputs_at_once(runs: Runs, name: str) -> None:
    """The result is wholly one of the two, and who did not make it was told so."""
    place = runs.place(name)
    other = other_result(place)
    for i in range(3):
        place.reset()
        first, second = runs.ask_all(place, beside=1, beside_what="other")
        found = contents(place.out)
        if name == "fewshot" and first.right and second.right:
            # One ended before the other began, and the list of results has both. Nobody was to be told.
            assert found in after_each_other(place), f"{name}, {i}"
            continue
        assert found in (place.reference, other), f"{name}, {i}"
        if name != "fit":  # its checkpoint goes when it ends: the second may train as well
            assert first.right != second.right, (first, second)
        for answer in (first, second):
            assert answer.right or str(place.out) in answer.message, answer


def test_two_devices_in_one_file_of_choices(runs: Runs) -> None:
    """Each adds its own: what was told to be written is there, whoever stood still meanwhile."""
    place = runs.place("thresholds")
    path = place.out / "here" / "thresholds.json"
    at_rename = {"n": place.trace.rindex("r") + 1, "action": "stop"}
    for fault in ({}, {}, at_rename):
        place.reset()
        answers = runs.ask_all(place, beside=1, beside_what="other", **fault)
        devices = json.loads(path.read_text())["devices"]
        for answer, device in zip(answers, "BC", strict=True):
            assert answer.right or (fault and ONE_RUN in answer.message), answer
            assert not answer.right or device in devices, (device, sorted(devices))
        assert "A" in devices and os.listdir(path.parent) == [path.name]
