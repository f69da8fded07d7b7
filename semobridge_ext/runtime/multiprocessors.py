"""How many programs fill a device: its multiprocessors, asked once."""

from __future__ import annotations

from functools import cache

import torch

ASSUMED = 132  # of an H100; where no device can be asked: the interpreter, the emulation, a trace


@cache
def _asked(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors (compute units) of a device; `ASSUMED` for the CPU and without a GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ASSUMED
    return _asked(torch.cuda.current_device() if device.index is None else device.index)


def parts_to_fill(programs: int, most: int, places: int) -> int:
    """Into how many parts the work of ``programs`` equal programs is cut so that no place stands idle.

    Args:
        programs: of the call, each of which may be cut.
        most: parts that a program may have at most.
        places: programs that the device runs at once.

    Returns:
        1..most: the fewest parts whose last wave is full to nine tenths, among those of up to four
        waves; else those that fill it best.
    """
    best, filled = 1, 0.0
    for waves in (1, 2, 3, 4):
        parts = max(1, min(waves * places // max(programs, 1), most))
        used = programs * parts
        share = used / (-(-used // places) * places)
        if share > filled + 1e-9:
            best, filled = parts, share
        if filled >= 0.9:
            break
    return best
