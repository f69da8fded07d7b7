"""Ray itself: imported where it is needed, joined or started, and what a cluster has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from semobridge_ext._errors import message


class Cluster(NamedTuple):
    """What a run asks of a cluster."""

    address: str | None = None  # "auto", HOST:PORT; None: RAY_ADDRESS, or this machine alone
    actors: int | None = None  # None: one for each GPU (CPU) of the cluster
    gpus: int = 0  # of an actor


def library(function: str) -> Any:
    """The module `ray`, or the command that installs it."""
    try:
        import ray
        import ray.data  # the callables' home; without its parts it is another error
    except ImportError as error:
        raise ImportError(
            f"{function}: ray must be installed to work on a cluster, got none ({error}); "
            "pip install 'semobridge-ext[ray]'"
        ) from error
    return ray


@contextmanager
def joined(function: str, address: str | None) -> Iterator[Any]:
    """The module `ray`, connected for as long as the block lasts; a connection that exists is taken."""
    ray = library(function)
    if ray.is_initialized():
        yield ray
        return
    # Workers log to the terminal otherwise, each line of theirs between the lines of the progress bar.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        remedy = "start one with: ray start --head; without --address this machine works alone"
        raise ConnectionError(
            message(function, "--address", "lead to a running Ray cluster", f"{address} ({told})", remedy)
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def actor_count(function: str, ray: Any, cluster: Cluster) -> int:
    """How many actors; refused where the cluster can never hold one."""
    kind, each = ("GPU", cluster.gpus) if cluster.gpus else ("CPU", 1)
    there = int(ray.cluster_resources().get(kind, 0)) // each
    if not there:
        remedy = "use --device cpu" if cluster.gpus else "add nodes"
        raise ValueError(message(function, "the cluster", f"have a {kind}", f"{int(there)} of them", remedy))
    return min(there, cluster.actors or there)
