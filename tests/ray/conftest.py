"""A real cluster on this machine: a head without processors, and three nodes of one each.

It is killed with the process that made it, by Ray's own reaper, and its files lie in one short folder, which
the next session removes where its maker has died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.source_tree import environment

_HOME, _PREFIX = Path("/tmp"), "sbray-"  # sockets lie below: their paths have at most 107 bytes
_NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_left() -> None:
    for folder in _HOME.glob(f"{_PREFIX}*"):
        process = folder.name.removeprefix(_PREFIX)
        if process.isdecimal() and not _alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """The cluster, whose worker nodes can be killed and added."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def kill(self, node_id: str) -> None:
        self._remove(next(n for n in self.cluster.worker_nodes if n.node_id == node_id))

    def kill_any(self) -> None:
        self._remove(sorted(self.cluster.worker_nodes, key=lambda n: n.node_id)[0])

    def _remove(self, node: Any) -> None:
        """Its workers first: they would go on for a moment without their node."""
        raylet = node.all_processes["raylet"][0].process.pid
        for worker in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def fill_up(self) -> None:
        while len(self.cluster.worker_nodes) < 3:
            self.cluster.add_node(**_NODE)


@pytest.fixture(scope="session")
def _nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="needed: pip install 'ray[data]'")
    before, place = dict(os.environ), _HOME / f"{_PREFIX}{os.getpid()}"
    # Before Ray is imported: its constants are read from there.
    os.environ.update(
        environment(),
        RAY_TMPDIR=str(place),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # else a FutureWarning, an error here
        RAY_enable_metrics_collection="0",
        RAY_DATA_DISABLE_PROGRESS_BARS="1",
        RAY_health_check_initial_delay_ms="500",
        RAY_health_check_period_ms="500",
        RAY_health_check_failure_threshold="4",
    )
    _remove_left()
    (place / "ray").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start
        import ray
        import ray.data
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "num_cpus": 0})
        nodes = Nodes(cluster)
        nodes.fill_up()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield nodes
    finally:
        with contextlib.suppress(Exception):  # the nodes' processes are what must go
            ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def nodes(_nodes: Nodes) -> Nodes:
    """The cluster with three nodes."""
    _nodes.fill_up()
    return _nodes
