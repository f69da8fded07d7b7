"""Times of calls on a CUDA device by pairs of events, Python's time apart, and the device's own rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UP = 3  # calls: modules load, cuBLAS and Triton choose, graphs are captured
CYCLES = 2e9  # a second, at least: the fastest clock of a GPU so far
LONGEST_HOLD = 0.05  # seconds that the device is kept busy for the host to run ahead


class Spread(NamedTuple):
    """Of repeated times, in seconds."""

    median: float
    low: float  # lower quartile
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


class Times(NamedTuple):
    """Of one call.

    device: between a pair of events around it, everything launched before the device came there.
    python: until the call returns to Python, the device idle before.
    whole: from the call until its result is there, the device idle before.
    ahead: share of calls in which the host was ahead of the device, so that `device` holds no gaps of its.
    """

    device: Spread
    python: Spread
    whole: Spread
    ahead: float


class Clock:
    """Times calls on one device.

    Args:
        device: of the calls.
        flush_bytes: written between two calls, so that each finds its inputs in memory, not in L2; 0: four
            times the device's L2.
        least, most: rounds of each kind.
    """

    def __init__(self, device: torch.device, *, flush_bytes: int = 0, least: int = 7, most: int = 50) -> None:
        own = torch.cuda.get_device_properties(device)
        size = flush_bytes or 4 * getattr(own, "L2_cache_size", 64 << 20)
        self._junk = torch.zeros(size // 4, dtype=torch.int32, device=device)
        self.least, self.most = least, most

    def measure(self, call: Callable[[], Any], seconds: float = 0.6) -> Times:
        """Medians and quartiles over as many rounds as the seconds allow, within the clock's bounds."""
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        python, whole = self._from_python(call, seconds / 2)
        device, ahead = self._by_events(call, seconds / 2, statistics.median(python))
        return Times(Spread.of(device), Spread.of(python), Spread.of(whole), ahead)

    def _rounds(self, begin: float, done: int, seconds: float) -> bool:
        late = time.perf_counter() - begin > seconds
        return done < self.least or (done < self.most and not late)

    def _from_python(self, call: Callable[[], Any], seconds: float) -> tuple[list[float], list[float]]:
        python: list[float] = []
        whole: list[float] = []
        begin = time.perf_counter()
        while self._rounds(begin, len(whole), seconds):
            self._junk.zero_()
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            returned = time.perf_counter()
            torch.cuda.synchronize()
            python.append(returned - start)
            whole.append(time.perf_counter() - start)
        return python, whole

    def _by_events(self, call: Callable[[], Any], seconds: float, python: float) -> tuple[list[float], float]:
        """A pair a call. The device first waits as long as Python needs to launch what it will then run."""
        hold = int(CYCLES * min(2 * python + 2e-5, LONGEST_HOLD))
        found: list[float] = []
        ahead = 0
        begin = time.perf_counter()
        while self._rounds(begin, len(found), seconds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(hold)
            self._junk.zero_()
            start.record()
            call()
            ahead += not start.query()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end) * 1e-3)
        return found, ahead / len(found)


class Rates(NamedTuple):
    """What this device reaches: the limits that a share of the roofline refers to."""

    bandwidth: float  # bytes/s, read and written, of a large copy
    half: float  # operations/s of a bfloat16 product
    single: float  # ... of a float32 product, without TF32

    def floor(self, moved: float, operations: float, half: bool) -> float:
        """Seconds below which no program comes that moves these bytes and does these operations."""
        return max(moved / self.bandwidth, operations / (self.half if half else self.single))


def measured_rates(clock: Clock, device: torch.device, *, copy_bytes: int, side: int) -> Rates:
    """By a copy and two square products of random values (zeros would run faster than data does).

    Args:
        copy_bytes: of the source. side: of the matrices of the products.
    """
    source = torch.randint(-128, 127, (copy_bytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = clock.measure(lambda: target.copy_(source)).device.median

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2.0 * side**3 / clock.measure(lambda: torch.mm(a, b, out=out)).device.median

    return Rates(2.0 * copy_bytes / copied, product(torch.bfloat16), product(torch.float32))


def worst_row(
    got: Tensor,  # [N, M]
    want: Tensor,  # [N, M] float64
) -> float:
    """The largest ‖got − want‖ / ‖want‖ over rows; infinite where a value is not finite."""
    assert want.dtype is torch.float64 and got.shape == want.shape, (got.shape, want.shape, want.dtype)
    lengths = want.norm(dim=1)
    assert bool((lengths > 0).all()), "an oracle without signal"
    errors = (got.double() - want).norm(dim=1) / lengths
    return float(errors.nan_to_num(nan=float("inf")).max())
