"""Jobs over actors, results in the order of the jobs; a lost actor costs the jobs that it had, not the run.

Ray can restart actors and repeat their calls, but a call stays with its actor: where its node has gone and no
other has room, the call waits while other actors have nothing to do. So the driver hands out the jobs itself,
and those of a lost actor go to the next that is free.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from semobridge_ext._errors import message

_RETRIES = 3  # losses of one job: a job that kills its actor must not go on for ever
_QUEUED = 2  # jobs of an actor at once: the next one is there when it ends
_AHEAD = 2  # results beyond the queues that wait for an earlier one, a slow job's, for each actor
_LOOK = 1.0  # seconds between two looks at `stopped`
_END = object()


class _Actor:
    """What runs on a node: makes its worker at the first job, so that errors are those of a call."""

    def __init__(self, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self._make, self._arguments = make, arguments
        self._worker: Callable[[Any], Any] | None = None

    def node(self) -> str:
        """Where it runs; the answer says that it does."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def run(self, job: Any) -> Any:
        if self._worker is None:
            self._worker = self._make(**self._arguments)
        return self._worker(job)


class Pool:
    """Actors that are replaced when they are lost.

    Args:
        function: for messages. ray: the connected module.
        make: called with `arguments` in each actor gives a function from job to result.
        actors: how many. gpus: of each.
    """

    def __init__(
        self, function: str, ray: Any, make: Callable[..., Any], arguments: dict[str, Any], actors: int,
        gpus: int = 0,
    ) -> None:  # fmt: skip
        self.function, self._ray, self._size = function, ray, actors
        # In the object store once; a ref that is an argument itself arrives as its value.
        self._arguments = ray.put(arguments)
        self._make = make
        self._remote = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(_Actor)
        self._starting: dict[Any, Any] = {}  # ref of `node` → actor
        self._free: dict[Any, int] = {}  # actor → jobs that it has
        self._nodes: dict[Any, str] = {}
        self._running: dict[Any, tuple[Any, int]] = {}  # ref of a result → actor, number of the job
        self._jobs: dict[int, Any] = {}  # by number, until the result is there
        self._losses: dict[int, int] = {}
        self._waiting: deque[int] = deque()
        self._taken = self._failed_starts = 0

    def results(
        self, jobs: Iterable[Any], stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Any, None, None]:
        """The results in the order of the jobs, which are taken as the actors get on.

        `stopped` ends it between two results. An error of a worker is raised as it is.
        """
        source, done = iter(jobs), {}  # type: Iterator[Any], dict[int, Any]
        try:
            for _ in range(self._size):
                self._start()
            for number in itertools.count():
                while number not in done:
                    self._fill(source, number)
                    if not self._jobs:
                        return
                    self._hand_out()
                    self._collect(done)
                    if stopped():
                        return
                yield done.pop(number)
                if stopped():
                    return
        finally:
            self._close()

    # -- jobs ----------------------------------------------------------------------------------------

    def _fill(self, source: Iterator[Any], next_number: int) -> None:
        """Takes jobs: two for each actor, and not so far ahead that many results wait for an earlier one."""
        while len(self._jobs) < _QUEUED * self._size:
            if self._taken - next_number >= (_QUEUED + _AHEAD) * self._size:
                return
            job = next(source, _END)
            if job is _END:
                return
            self._jobs[self._taken] = job
            self._waiting.append(self._taken)
            self._taken += 1

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            actor = min(self._free, key=self._free.__getitem__)
            if self._free[actor] >= _QUEUED:
                return
            number = self._waiting.popleft()
            self._free[actor] += 1
            self._running[actor.run.remote(self._jobs[number])] = actor, number

    def _collect(self, done: dict[int, Any]) -> None:
        refs = [*self._starting, *self._running]
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=_LOOK)
        for ref in ready:
            if ref in self._starting:
                self._started(ref)
            elif ref in self._running:
                self._finished(ref, done)

    def _finished(self, ref: Any, done: dict[int, Any]) -> None:
        actor, number = self._running.pop(ref)
        try:
            done[number] = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:  # the actor, its node or the result has gone
            self._lost(actor, number, error)
            return
        del self._jobs[number]
        self._losses.pop(number, None)
        self._failed_starts = 0
        if actor in self._free:
            self._free[actor] -= 1

    # -- actors --------------------------------------------------------------------------------------

    def _start(self) -> None:
        actor = self._remote.remote(self._make, self._arguments)
        self._starting[actor.node.remote()] = actor

    def _started(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._nodes[actor] = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts > _RETRIES * self._size:
                remedy = "see Ray's own logs, in /tmp/ray"
                got = f"{self._failed_starts} that failed ({_told(error)})"
                raise RuntimeError(
                    message(self.function, "the cluster", "start actors", got, remedy)
                ) from error
            self._start()
            return
        self._free[actor] = 0

    def _lost(self, actor: Any, number: int, error: Exception) -> None:
        """The job goes to the front, and the actor is replaced, once for all its jobs."""
        self._losses[number] = self._losses.get(number, 0) + 1
        if self._losses[number] > _RETRIES:
            remedy = "give its actor more memory, or make its batch smaller; Ray's logs say more"
            got = f"{self._losses[number]} lost actors at job {number} ({_told(error)})"
            raise RuntimeError(message(self.function, "a job", "outlive its actor", got, remedy)) from error
        self._waiting.appendleft(number)
        if self._free.pop(actor, None) is not None:
            self._ray.kill(actor)
            self._start()

    def _close(self) -> None:
        if self._ray.is_initialized():
            for actor in (*self._starting.values(), *self._free):
                self._ray.kill(actor)


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
