"""The machines that rules are derived for: what their makers publish, and what programs reach of it.

Shares of what is published are those seen on one H100 SXM: 3.0 of 3.35 TB/s in copies, 798 of 989 TFLOP/s in
bfloat16 products; of float32, 50 of 67 are assumed. L2's rate, launches and meetings are assumed everywhere:
an L2 gives about 40 bytes a clock and multiprocessor at most, and two dies meet more slowly than one.
"""

from __future__ import annotations

from typing import NamedTuple

from on_paper.machine import DEVICES, MEETING, NODE, RESIDENT, Device

COPIES, PRODUCTS, SINGLES = 3.0 / 3.35, 798 / 989, 50 / 67
STAYS = 0.65  # of a large L2, from one launch to the next: as 32 of an H100's 50 MB


class Published(NamedTuple):
    """Dense rates, without sparsity; half types with float32 accumulation."""

    name: str
    capability: tuple[int, int]
    memory: float  # TB/s
    half: float  # TFLOP/s
    single: float  # TFLOP/s
    processors: int
    l2: int  # MB
    source: str
    cache: float  # TB/s from L2, assumed
    node: float = NODE
    meeting: float = MEETING

    def reached(self) -> Device:
        for known in DEVICES:
            if known.name == self.name:
                return known
        stays = max(RESIDENT, int(STAYS * self.l2) << 20)
        return Device(
            self.name, COPIES * self.memory * 1e12, self.cache * 1e12, PRODUCTS * self.half * 1e12,
            SINGLES * self.single * 1e12, self.processors, self.node, self.meeting, stays,
        )  # fmt: skip


MACHINES = (
    Published("A100 80GB SXM", (8, 0), 2.039, 312, 19.5, 108, 40, "A100 data sheet", 4.0),
    Published("L40S", (8, 9), 0.864, 362, 91.6, 142, 48, "L40S data sheet", 4.5),
    Published("RTX 4090", (8, 9), 1.008, 165.2, 82.6, 128, 72, "Ada architecture white paper", 4.5),
    Published("H100 SXM", (9, 0), 3.35, 989, 67, 132, 50, "H100 data sheet", 5.5),
    Published("H200 SXM", (9, 0), 4.8, 989, 67, 132, 50, "H200 data sheet", 5.5),
    Published("B200", (10, 0), 7.7, 2250, 75, 148, 126, "HGX B200 data sheet", 9.0, meeting=2.0e-6),
    Published("RTX 5090", (12, 0), 1.792, 209.5, 104.8, 170, 96, "RTX Blackwell white paper", 6.0),
)


def architectures() -> dict[tuple[int, int], list[Device]]:
    """The machines of each compute capability, as programs reach them."""
    found: dict[tuple[int, int], list[Device]] = {}
    for machine in MACHINES:
        found.setdefault(machine.capability, []).append(machine.reached())
    return found
