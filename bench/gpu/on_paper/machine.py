"""A machine, and the time of a launch on it: by memory, L2, rate, waves and what nothing hides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from semobridge_ext.runtime import multiprocessors as _multiprocessors

NODE = 2.5e-6  # seconds that a launch costs behind the one that it waits for: 2 to 5 µs are usual
TRIP = 0.35e-6  # seconds of a load that nothing hides, from L2 or memory
MEETING = (
    1.5e-6  # seconds until all blocks of a launch have met: 1 to 2 µs are usual with two a multiprocessor
)
RESIDENT = 32 << 20  # bytes that stay in an L2 of 40 or 50 MB from one launch to the next


class Device(NamedTuple):
    """What programs reach, not what is published."""

    name: str
    memory: float  # bytes/s
    cache: float  # bytes/s from L2
    half: float  # operations/s of bfloat16 and float16 products, float32 accumulation
    single: float  # ... of float32 outside tensor cores
    processors: int
    node: float = NODE
    meeting: float = MEETING
    resident: int = RESIDENT


_resident = RESIDENT


def resident() -> int:
    """Bytes that stay in the L2 of the machine that is counted for."""
    return _resident


@contextlib.contextmanager
def counting_for(device: Device) -> Iterator[None]:
    """Launches that are counted inside are cut for this device's multiprocessors, and find its L2."""
    global _resident
    before = _resident, _multiprocessors.ASSUMED
    _resident, _multiprocessors.ASSUMED = device.resident, device.processors
    try:
        yield
    finally:
        _resident, _multiprocessors.ASSUMED = before


# H100: copies and bfloat16 products as seen on one, the others assumed. A100: the same shares of what is
# published, and L2 as assumed.
DEVICES = (
    Device("A100 80GB SXM", 1.82e12, 4.0e12, 252e12, 14.6e12, 108),
    Device("H100 SXM", 3.0e12, 5.5e12, 798e12, 50e12, 132),
)


def spread(blocks: float, processors: int) -> float:
    """The share of the machine that works until the busiest multiprocessor is done."""
    if math.isinf(blocks):
        return 1.0
    each = blocks / processors
    return each / math.ceil(each)


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Args:
        name: of the kernel or of PyTorch's operator.
        memory: bytes from and to memory.
        cache: bytes through L2, repeated reads of a tile and those of `memory` included.
        operations: of its products.
        half: they run on tensor cores.
        blocks: of the grid; infinite: enough to fill any machine evenly.
        resident: blocks that a multiprocessor holds at once.
        trips: loads of one block that wait for each other and that nothing hides.
        rate: share of the device's rate that its tile reaches.
        meets: as a phase of a launch it waits for all blocks; else each block goes on with what it completed.
    """

    name: str
    memory: float
    cache: float = 0.0
    operations: float = 0.0
    half: bool = True
    blocks: float = math.inf
    resident: int = 1
    trips: float = 0.0
    rate: float = 1.0
    meets: bool = True

    def seconds(self, device: Device) -> float:
        share = spread(self.blocks, device.processors)
        peak = (device.half if self.half else device.single) * self.rate
        work = max(
            self.memory / device.memory,
            max(self.cache, self.memory) / (device.cache * share),
            self.operations / (peak * share),
        )
        waves = 1 if math.isinf(self.blocks) else math.ceil(self.blocks / (device.processors * self.resident))
        return device.node + max(work, waves * self.trips * TRIP)


@dataclass(frozen=True)
class AtOnce(Launch):
    """One launch whose blocks meet between its phases; what a phase reads first is fetched meanwhile."""

    phases: tuple[Launch, ...] = ()

    def seconds(self, device: Device) -> float:
        ahead = device.memory * device.meeting  # bytes
        total = self.phases[0].seconds(device)
        for phase in self.phases[1:]:
            if phase.meets:
                fetched = replace(phase, memory=max(phase.memory - ahead, 0.0))
                total += device.meeting + fetched.seconds(device) - device.node
            else:
                total += TRIP + phase.seconds(device) - device.node  # the count of what is complete
        return total


def at_once(name: str, launches: Sequence[Launch], resident: int) -> AtOnce:
    """These launches as the phases of one, of which a multiprocessor holds so many blocks."""
    moved, through = sum(x.memory for x in launches), sum(max(x.cache, x.memory) for x in launches)
    phases = tuple(replace(x, resident=resident) for x in launches)
    return AtOnce(name, moved, through, sum(x.operations for x in launches), phases=phases)


class Tile(NamedTuple):
    """Of a library's product; two multiprocessors may share one, and read its operands once."""

    rows: int
    cols: int
    rate: float  # share of the device's that it reaches: small tiles read more for each product
    blocks: int = 1


TILES = (Tile(256, 256, 1.0, 2), Tile(128, 256, 1.0), Tile(128, 128, 0.9), Tile(64, 128, 0.7),
         Tile(64, 64, 0.5), Tile(32, 64, 0.35), Tile(16, 64, 0.2))  # fmt: skip
SPLITS = (1, 2, 4, 8)  # of the depth; more than one take a launch that adds them up


@dataclass(frozen=True)
class Product(Launch):
    """A library's x [rows, depth] · [depth, cols]: it is granted the best tile and split of a list."""

    rows: float = 0.0
    depth: float = 0.0
    cols: float = 0.0
    size: int = 2  # bytes of an operand's value
    out_size: int = 2

    def seconds(self, device: Device) -> float:
        if min(self.rows, self.cols) == 1:  # a matrix and a vector: read once, outside of tensor cores
            return Launch(self.name, self.memory, self.cache, self.operations, False).seconds(device)
        return min(
            self._tiled(tile, split).seconds(device) + (device.node if split > 1 else 0.0)
            for tile in TILES
            for split in SPLITS
            if split == 1 or self.depth / split >= 64
        )

    def _tiled(self, tile: Tile, split: int) -> Launch:
        down, across = math.ceil(self.rows / tile.rows), math.ceil(self.cols / tile.cols)
        operands = down * across * (tile.rows + tile.cols) * self.depth * self.size
        written = self.rows * self.cols * (self.out_size + (8.0 * split if split > 1 else 0.0))
        work = 2.0 * down * tile.rows * across * tile.cols * self.depth
        blocks = down * across * split * tile.blocks
        return Launch(self.name, self.memory, operands + written, work, self.half, blocks, rate=tile.rate)


def product(
    name: str, rows: float, depth: float, cols: float, *, size: int = 2, out_size: int | None = None,
    memory: float | None = None,
) -> Product:  # fmt: skip
    """A dense product; `memory` defaults to each operand once."""
    wide = size if out_size is None else out_size
    moved = size * depth * (rows + cols) + wide * rows * cols
    return Product(
        name, moved if memory is None else memory, moved, 2.0 * rows * depth * cols, size == 2,
        rows=rows, depth=depth, cols=cols, size=size, out_size=wide,
    )  # fmt: skip


def streamed(name: str, moved: float, operations: float = 0.0, *, half: bool = False) -> Launch:
    """An elementwise kernel: what is small was just written and comes from L2."""
    return Launch(name, moved if moved > resident() else 0.0, moved, operations, half)
