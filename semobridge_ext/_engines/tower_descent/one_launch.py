"""The step of few rows as one launch, whose blocks wait for each other (csrc/tower_descent/cuda_step.h).

The launches of few_rows.py are written down once, as phases with the addresses that they name. All blocks of
a cooperative launch are on the device at once: they take the tiles of a phase in turn, meet, and go on to the
next. So a step pays for one launch and, phase by phase, for a meeting, which costs less than a launch; the
matrix of the next phase is on its way to L2 meanwhile. The attention of a few samples needs no meeting: who
finishes a head's last columns goes on with it, and a layer has eight in place of ten. Each phase is the
launch's own code over the same tiles, in the same order: the same bits.

Letters as in torch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from semobridge_ext._engines.tower_descent.cuda import FEW_SLOTS, WIDEST_HEAD, CudaTowerPieces
from semobridge_ext._engines.tower_descent.few_rows import FewRowsPlan
from semobridge_ext._engines.tower_descent.rows import SlotRows
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights

MOST_HEADS = 64  # as in csrc/tower_descent/cuda_step.h


def takes_one_launch(weights: LaunchedWeights, rows: SlotRows) -> bool:
    """Whether every launch of few_rows.py is a phase: its attention is the core's, by loads of 16 bytes."""
    head = weights.tower.width // weights.tower.heads
    fits = len(rows.source) <= FEW_SLOTS and head <= WIDEST_HEAD
    return fits and head * weights.stored.itemsize % 16 == 0


class Phases:
    """In place of the native module: what would be launched is written down."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.records: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        if not name.endswith("_cuda"):
            return getattr(self._native, name)
        phase = getattr(self._native, f"{name}_phase")

        def write(*args: Any) -> None:
            self.records.append(phase(*args[:-2]))  # without the device and its stream

        return write


class OneLaunchPlan(FewRowsPlan):
    """FewRowsPlan's step, forward and backward pass in one launch each.

    Args:
        blocks: that the device holds at once.
    """

    def __init__(
        self,
        weights: LaunchedWeights,
        rows: SlotRows,
        samples: int,
        pieces: type[CudaTowerPieces],
        blocks: int,
    ) -> None:
        super().__init__(weights, rows, samples, pieces)
        for _ in range(2):  # the first time the workspaces grow, and with them their addresses
            forward, backward = self._written(super().forward), self._written(super().backward)
        native = self.pieces.native
        records = [*forward, native.tower_step_cuda_loss(), *backward, native.tower_step_cuda_update()]
        self.loss, self.count = len(forward), len(records)
        # Tiles of a head that a product has finished, where its attention need not wait for all blocks.
        self.done = torch.zeros(MOST_HEADS, dtype=torch.int32, device=self.device)
        whole, self.joined = native.tower_step_cuda_heads(b"".join(records), self.done.data_ptr())
        self.phases = torch.frombuffer(bytearray(whole), dtype=torch.uint8).to(self.device, copy=True)
        self.blocks = min(blocks, native.tower_step_cuda_tiles(whole))
        self.arrived = torch.zeros(1, dtype=torch.int64, device=self.device)

    def _written(self, launches: Callable[[], None]) -> list[bytes]:
        self.pieces.recording = found = Phases(self.pieces.native)
        try:
            launches()
        finally:
            self.pieces.recording = None
        return found.records

    def _launch(self, first: int, last: int) -> None:
        self.pieces.take_phases(self.phases, first, last, self.ends, self.blocks, self.arrived)

    def forward(self) -> None:
        """inputs → features."""
        self._launch(0, self.loss)

    def backward(self) -> None:
        """grad_features → grad of the inputs."""
        self._launch(self.loss + 1, self.count - 1)

    def step(self) -> None:
        """Loss and gradient of the inputs as they are, AdamW, the inputs of the next step."""
        self._launch(0, self.count)
