"""The driver's pool over a stand-in for Ray that loses actors when it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from semobridge_ext.ray.pool import Pool


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    """A call that has ended, or not, with a value or an error."""

    def __init__(self, value: Any = None) -> None:
        self.value, self.ready = value, False


class Remote:
    def __init__(self, run: Any) -> None:
        self.remote = run


class Handle:
    """An actor; `lost` makes all that it has not finished an error."""

    def __init__(self, ray: StandIn, instance: Any) -> None:
        self.ray, self.instance, self.refs, self.killed = ray, instance, [], False
        self.node = Remote(lambda: self._call(lambda: "node"))
        self.run = Remote(lambda job: self._call(lambda: self._result(job)))

    def _result(self, job: Any) -> Any:
        try:
            return self.instance.run(job)
        except Exception as error:
            return RayTaskError(error)

    def _call(self, run: Any) -> Ref:
        ref = Ref(run)
        self.refs.append(ref)
        self.ray.pending.append((self, ref))
        return ref


class StandIn:
    """One call ends at each `wait`, the newest first: results come out of order."""

    def __init__(self, lose_at: tuple[int, ...] = ()) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.pending: list[tuple[Handle, Ref]] = []
        self.started: list[Handle] = []
        self.lose_at, self.ended, self.most, self.initialized = lose_at, 0, 0, True

    def put(self, value: Any) -> Any:
        return value

    def is_initialized(self) -> bool:
        return self.initialized

    def remote(self, **_: Any) -> Any:
        def class_of(cls: type) -> Any:
            def make(*arguments: Any) -> Handle:
                self.started.append(Handle(self, cls(*arguments)))
                return self.started[-1]

            return Remote(make)

        return class_of

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        assert refs and num_returns == 1
        ready = [ref for ref in refs if ref.ready]
        if ready:
            return ready[:1], []
        handle, ref = self.pending.pop()
        self.most = max(self.most, len(self.pending))
        self.ended += 1
        if self.ended in self.lose_at:
            for one in handle.refs:
                if not one.ready:
                    one.value, one.ready = RayError("the actor died"), True
            self.pending = [(h, r) for h, r in self.pending if h is not handle]
        else:
            ref.value, ref.ready = ref.value(), True
        return [ref], []

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.value, RayError):
            raise ref.value
        return ref.value

    def kill(self, handle: Handle) -> None:
        handle.killed = True


def doubling(by: int) -> Any:
    def double(job: int) -> int:
        if job == 13:
            raise ValueError("extract: thirteen must not be")
        return by * job

    return double


def pool(ray: StandIn, actors: int = 3) -> Pool:
    return Pool("extract", ray, doubling, {"by": 2}, actors)


@pytest.mark.parametrize("jobs", [0, 1, 2, 12])
def test_results_come_in_the_order_of_the_jobs(jobs: int) -> None:
    ray = StandIn()
    assert list(pool(ray).results(range(jobs))) == [2 * i for i in range(jobs)]
    assert len(ray.started) == 3 and all(actor.killed for actor in ray.started)


@pytest.mark.parametrize("lose_at", [(1,), (4,), (5, 9), (2, 3, 4), (6, 7, 12)])
def test_lost_actors_are_replaced_and_their_jobs_done_again(lose_at: tuple[int, ...]) -> None:
    ray = StandIn(lose_at)
    assert list(pool(ray).results(range(12))) == [2 * i for i in range(12)]
    assert len(ray.started) == 3 + len(lose_at)


def test_jobs_are_taken_as_results_are() -> None:
    ray, taken = StandIn(), []

    def jobs() -> Any:
        for i in range(12):
            taken.append(i)
            yield i

    results = pool(ray, actors=1).results(jobs())
    assert next(results) == 0
    assert len(taken) <= 5  # two with the actor, two that wait, and the one that is here
    assert list(results) == [2 * i for i in range(1, 12)] and taken == list(range(12))


def test_a_job_that_kills_its_actor_ends_the_run() -> None:
    ray = StandIn(tuple(range(2, 40, 2)))  # each actor starts, and is lost at its first job
    with pytest.raises(RuntimeError, match=r"^extract: a job must outlive its actor, got 4 lost actors at"):
        list(pool(ray, actors=1).results([7]))


def test_actors_that_never_start_end_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"^extract: the cluster must start actors, got 4 that failed"):
        list(pool(StandIn(tuple(range(1, 40))), actors=1).results([7]))


def test_an_error_of_a_worker_is_raised_as_it_is() -> None:
    ray = StandIn()
    with pytest.raises(ValueError, match=r"^extract: thirteen must not be$"):
        list(pool(ray).results([1, 13, 2]))
    assert all(actor.killed for actor in ray.started)


def test_a_run_is_stopped_between_two_results() -> None:
    ray, found = StandIn(), []
    for value in pool(ray).results(range(12), lambda: len(found) >= 3):
        found.append(value)
    assert found == [0, 2, 4][: len(found)] and 3 <= len(found) <= 4
    assert all(actor.killed for actor in ray.started)
