"""What else may happen to a run: no rights, a standstill, another clock, and others on the same output."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.faults.campaign import Answer, Place, Runs, mount
from tests.faults.jobs import JOBS

ONE_RUN = "must belong to one run"  # the refusal of whoever comes second
REPLACING = ("estimator.save", "SupportSet.save", "thresholds")


def check_all(place: Place, answers: list[Answer], told: str) -> None:
    """One wins; the others are refused or right too. The result is that of one run alone."""
    assert any(answer.right for answer in answers), f"{told}: {answers}"
    for answer in answers:
        assert answer.right or ONE_RUN in answer.message, f"{told}: {answer}"
    place.check_nothing_torn(told)
    place.check_goes_on(told)


@pytest.mark.parametrize(
    "name", ["fit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SupportSet.save", "extract"))]
)
def test_a_standstill(runs: Runs, name: str) -> None:
    """Stopped for two seconds before its rename, then continued."""
    place = runs.place(name)
    place.reset()
    answer = place.run(n=place.trace.index("r") + 1, action="stop", stopped=2.0)
    assert answer.fired == 1 and answer.right, answer
    place.check_nothing_torn(name)
    place.check_goes_on(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("fewshot", "fit", *REPLACING) else pytest.mark.slow)
        for name in JOBS
    ],
)
def test_a_second_process_while_the_first_stands_still(runs: Runs, name: str) -> None:
    """At every kind of call; what is replaced as a whole, both may write."""
    place = runs.place(name)
    for letter in "wr":
        at = place.trace.find(letter) + 1
        if at:
            place.reset()
            answers = runs.ask_all(place, n=at, action="stop", beside=1)
            assert answers[0].fired == 1
            check_all(place, answers, f"{name}, stopped at call {at} of {place.trace}")


@pytest.mark.parametrize("name", ["fit", *REPLACING, pytest.param("map", marks=pytest.mark.slow)])
def test_three_processes_at_once(runs: Runs, name: str) -> None:
    place = runs.place(name)
    for _ in range(2):
        place.reset()
        check_all(place, runs.ask_all(place, beside=2), name)


@pytest.mark.parametrize("name", ["fit", *REPLACING])
def test_two_threads_at_once(runs: Runs, name: str) -> None:
    place = runs.place(name)
    place.reset()
    answer = place.run(threads=2)
    assert answer.rights == 2 or (answer.rights == 1 and ONE_RUN in answer.error), answer
    place.check_nothing_torn(name)
    place.check_goes_on(name)


# -- rights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "fewshot", *REPLACING])
def test_a_folder_without_rights(runs: Runs, name: str) -> None:
    place = runs.place(name)
    place.reset()
    folders = [place.out, *(p for p in place.out.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    answer = place.run(plain_user=True)
    for folder in folders:
        folder.chmod(0o755)
    assert not answer.right and os.strerror(errno.EACCES) in answer.message, answer
    assert str(place.out) in answer.message and ".tmp" not in answer.message, answer
    place.check_nothing_torn(name)
    place.check_goes_on(name)


@pytest.fixture
def read_only(runs: Runs, request: pytest.FixtureRequest) -> Iterator[Place]:
    """The older result on a file system that is read-only."""
    place = runs.place(request.param)
    place.reset()
    mount("--bind", place.out, place.out)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place.out)], check=True)
    yield place
    subprocess.run(["umount", str(place.out)], check=True)


@pytest.mark.parametrize("read_only", ["fit", "fewshot", *REPLACING], indirect=True)
def test_a_read_only_file_system(read_only: Place) -> None:
    answer = read_only.run()
    assert not answer.right and os.strerror(errno.EROFS) in answer.message, answer
    assert str(read_only.out) in answer.message and ".tmp" not in answer.message, answer
    read_only.check_nothing_torn(read_only.name)


# -- clocks --------------------------------------------------------------------------------------------

YEARS = (-10 * 365 * 86400, 0, 250 * 365 * 86400)  # before 1970, its first second, and far ahead


@pytest.mark.parametrize("name", ["fit", "fewshot", pytest.param("map", marks=pytest.mark.slow)])
def test_what_was_written_may_have_any_time(runs: Runs, name: str) -> None:
    """A killed run's files from another clock: they are taken by what they hold."""
    place = runs.place(name)
    for seconds in YEARS:
        place.reset()
        assert place.run(n=len(place.trace) * 2 // 3, action="kill").code == -9
        for path in place.out.rglob("*"):
            os.utime(path, (seconds, seconds))
        place.check_goes_on(f"{name}, at {seconds}")


@pytest.mark.slow
def test_inputs_may_have_any_time(runs: Runs) -> None:
    """Before 1970 and far ahead; a jump between two runs is another input, and refused by name."""
    place = runs.place("extract")
    image = sorted((place.home / "in" / "images").rglob("*.png"))[0]
    before = image.stat()
    for seconds in YEARS:
        place.reset()
        os.utime(image, (seconds, seconds))
        assert place.run().right
        again = place.run()
        assert again.right and "finished already" in again.printed
        os.utime(image, (seconds + 1, seconds + 1))
        refused = place.run()
        assert refused.status == 2 and image.name in refused.message, refused
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
