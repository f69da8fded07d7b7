"""A template's rows in slots, and the constants around them, as every engine but the eager one runs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.forward import run_block
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower, slots_of


@dataclass(frozen=True)
class SlotRows:
    """What is computed in every step, and what stands before it."""

    base: Tensor  # [n, 1 or S, T]
    source: tuple[int, ...]  # [n], −1 for none
    visible: tuple[tuple[int, ...], ...]  # per slot
    prefix: int  # P, the positions before the first learned one
    prefixes: tuple[Tensor, ...]  # per layer [2, P, T] keys, then values; none at all where P is 0
    vectors: int

    @property
    def learned(self) -> range:
        slots = [i for i, s in enumerate(self.source) if s >= 0]
        return range(slots[0], slots[-1] + 1)


def slot_rows(tower: Tower, rows: LearnedRows, compute: torch.dtype, stored: torch.dtype) -> SlotRows:
    """The slots of ``rows`` in ``compute``; the keys and values before them in ``stored``."""
    slots = slots_of(tower, rows)
    base = rows.base.to(compute)
    base = base.unsqueeze(1) if base.dim() == 2 else base  # [L, 1 or S, T]
    prefixes: list[Tensor] = []
    x = base[: slots.prefix, 0].unsqueeze(0)  # [1, P, T]
    for block in tower.blocks if slots.prefix else ():
        x, k, v = run_block(tower, block, x)
        prefixes.append(torch.cat([k, v]).to(stored).contiguous())  # [2, P, T]
    source = tuple(rows.source[p] for p in slots.order)
    return SlotRows(
        base[list(slots.order)].contiguous(), source, slots.visible, slots.prefix, tuple(prefixes),
        rows.vectors,
    )  # fmt: skip
