"""From which size on `auto` takes which backend on a CUDA device: as measured there, else plain PyTorch.

`semobridge-ext calibrate` measures and writes the file; nothing is measured behind a user's back.
"""

from __future__ import annotations

import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from semobridge_ext import _files, _locks
from semobridge_ext._version import __version__

FORMAT = "semobridge-ext thresholds 2"
_OLDER = ("semobridge-ext thresholds 1",)  # its keys were the names of callers
_PATIENCE = 5.0  # seconds that a write waits for another: it takes milliseconds, unless it stands still
_BACKENDS = ("eager", "native", "triton")
VARIABLE = "SEMOBRIDGE_THRESHOLDS"

Steps = list[tuple[int, str]]  # from this size on, this backend; ascending


def path() -> Path:
    """Where this user's measurements lie: SEMOBRIDGE_THRESHOLDS, else the cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "semobridge-ext" / "thresholds.json"


def key(op: str, dtype: torch.dtype) -> str:
    return f"{op} {str(dtype).removeprefix('torch.')}"


def read(file: Path, *, remake: bool = False) -> dict[str, Any]:
    """The file's devices; ValueError for what is no such file.

    Args:
        file: what `write` wrote.
        remake: True takes a file of an older format as one without devices.
    """
    try:
        record = _files.parse_json(file.read_text(encoding="utf-8"))
        if remake and record["format"] in _OLDER:
            return {}
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}")
        for device in record["devices"].values():
            for name, steps in device["calls"].items():
                if not all(isinstance(n, int) and backend in _BACKENDS for n, backend in steps):
                    raise ValueError(f"steps of {name!r} that are no pairs of a size and a backend")
        return record["devices"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"calibrate: {file} must be a '{FORMAT}' file, got {type(error).__name__}: {error}; remove it, "
            "or write it again with: semobridge-ext calibrate"
        ) from error


def write(file: Path, device: str, version: str, calls: dict[str, Steps]) -> None:
    """Adds or replaces one device's measurements; the file is whole at every moment.

    Processes that measure several devices write one after another, so that each keeps what the others added.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_name(f"{file.name}.lock")
    with _locks.held("calibrate", "the file of choices", file, lock, patience=_PATIENCE):
        devices = read(file, remake=True) if file.exists() else {}
        devices[device] = {"version": version, "torch": torch.__version__, "calls": calls}
        text = json.dumps({"format": FORMAT, "devices": devices}, indent=1)
        _files.write_bytes(file, text.encode() + b"\n")
    measured.cache_clear()


@lru_cache(maxsize=16)
def measured(device: str) -> dict[str, Steps]:
    """What was measured on the device with this version of the kernels; empty where nothing was."""
    file = path()
    if not file.exists() and not os.environ.get(VARIABLE):
        return {}
    try:
        found = read(file).get(device, {})
    except ValueError as error:
        if os.environ.get(VARIABLE):
            raise
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        return {}
    if found.get("version") != __version__:
        return {}  # other kernels
    return {name: [(n, backend) for n, backend in steps] for name, steps in found["calls"].items()}


@lru_cache(maxsize=16)
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def choose(op: str, device: torch.device, dtype: torch.dtype, size: int) -> str:
    """The backend of `auto` for an operator's call of that size; "eager" where nothing was measured."""
    steps = measured(_name(device)).get(key(op, dtype), [])
    return next((backend for least, backend in reversed(steps) if least <= size), "eager")
