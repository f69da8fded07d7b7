"""Seeds, skip reasons, and the fixtures that put process-wide state back."""

from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded
    # Two threads run what one thread would skip; they sleep while they wait, because workers share cores.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import random
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.bridging import default as bridging
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import rules, self_check
from tests.cuda_emulation.build import Emulation
from tests.support.build_cache import remove_stale
from tests.support.comparer import WORST, note
from tests.support.places import kernel_isas, runnable_isas
from tests.support.tolerances import LIMITS, tolerance

_capability = rules.capability  # a test may put a function in its place
BASE_SEED = int(os.environ.get("TEST_SEED", "250926036"))  # another one finds tests that hang on this one

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU may hold pytest alone; the files that need more say so
    pass
else:
    settings.register_profile("semobridge", derandomize=True, deadline=None, max_examples=30)
    settings.load_profile("semobridge")


def pytest_configure(config: pytest.Config) -> None:
    if _backend._C is None:
        raise pytest.UsageError(
            f"semobridge_ext at {os.path.dirname(sb.__file__)} has no native module "
            f"({_backend.NATIVE_ERROR}); install it, or run the tests from outside the source tree"
        )
    if not hasattr(config, "workerinput"):
        remove_stale()
    gc.disable()  # what is collected stays until the end; see below


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Ten thousand tests and every library are no garbage: a full collection takes a second to say so."""
    gc.freeze()
    gc.enable()


def pytest_report_header(config: pytest.Config) -> list[str]:
    info = sb.build_info()
    return [
        f"semobridge_ext: {os.path.dirname(sb.__file__)}, {info['compiler']}, torch {info['torch']}",
        f"instruction sets: {', '.join(runnable_isas())} (default {info['isa']}), "
        f"{info['threads']} threads, base seed {BASE_SEED}",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WORST:
        terminalreporter.section("worst error against float64 (tests/support/tolerances.py)")
        for (family, dtype), worst in sorted(WORST.items()):
            if (family, dtype) in LIMITS:
                unit = f"of {LIMITS[family, dtype][0]:.1e}"
            else:
                limit = tolerance(family, dtype)
                unit = f"ulp of {limit.ulps:g}" if limit.ulps else f"of {limit.relative:.1e}"
            terminalreporter.line(f"{family:>19} {dtype:<9} {worst:9.2e} {unit}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker's worst errors, as plain values, for the process that prints them."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["worst"] = [(family, dtype, worst) for (family, dtype), worst in WORST.items()]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    for family, dtype, worst in getattr(node, "workeroutput", {}).get("worst", ()):
        note(family, dtype, worst)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A fixed seed for every test's name, wherever its file lies; printed where the test fails."""
    value = (BASE_SEED + zlib.crc32(request.node.name.encode())) % 2**31
    print(f"seed {value}")
    random.seed(value)
    np.random.seed(value)
    if torch.cuda.is_available():
        torch.manual_seed(value)
    else:  # torch.manual_seed keeps a stack for each absent kind of device: half of an empty test
        torch.default_generator.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Default bridge, thread count, instruction set and what is known of devices are as before a test."""
    default, threads, isa = bridging._default, torch.get_num_threads(), _backend._C.active_isa()
    checked = dict(self_check._found)
    yield
    _capability.cache_clear()  # a stand-in's may have been asked
    self_check._found.clear()
    self_check._found.update(checked)
    bridging._default = default
    _backend._C.set_isa(isa)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(params=kernel_isas() if _backend._C is not None else [])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this build and processor that has kernels of its own."""
    _backend._C.set_isa(request.param)
    return request.param


@pytest.fixture(params=runnable_isas() if _backend._C is not None else [])
def code_isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set, those included that differ in the products of codes alone."""
    _backend._C.set_isa(request.param)
    return request.param


@pytest.fixture(scope="session")
def emulation() -> Emulation:
    """The CUDA kernels compiled for the host, once a content."""
    return Emulation().build()


@pytest.fixture
def need_tool():
    """Skips, with the reason, where a command is missing; returns its path."""

    def find(name: str, why: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed; needed to {why}")
        return path

    return find
