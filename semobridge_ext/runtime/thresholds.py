"""From which size on `auto` takes which backend on a CUDA device, where that was measured; else see rules.py.

`semobridge-ext calibrate` measures and writes the file; nothing is measured behind a user's back. Choices
hold for the versions that they were measured with, and are ignored with a warning under any other.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from semobridge_ext import _files, _locks
from semobridge_ext._version import __version__
from semobridge_ext.runtime.rules import Steps, at

FORMAT = "semobridge-ext thresholds 2"
_OLDER = ("semobridge-ext thresholds 1",)  # its keys were the names of callers
_BACKENDS = ("eager", "native", "triton")
VARIABLE = "SEMOBRIDGE_THRESHOLDS"
_WAIT = 10.0  # seconds for others, of whom each takes milliseconds

_DRIVER = Path("/proc/driver/nvidia/version")


def path() -> Path:
    """Where this user's measurements lie: SEMOBRIDGE_THRESHOLDS, else the cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "semobridge-ext" / "thresholds.json"


def versions() -> dict[str, str]:
    """What a measurement depends on beside the device."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return {"torch": torch.__version__, "triton": triton, "driver": _driver()}


def _driver() -> str:
    """The driver's version where Linux tells it, else that of the CUDA that it serves."""
    try:
        found = re.search(r"Module\s+([\d.]+)", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found is not None:
        return found[1]
    serves = getattr(torch._C, "_cuda_getDriverVersion", None)
    return "none" if serves is None else f"CUDA {serves()}"


@lru_cache(maxsize=64)
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

    Others that write at the same moment, for other devices, wait for each other: none is lost.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{os.path.realpath(file)}.lock"  # one for all names of the file
    # Minutes were measured: a file system without locks is no reason to lose them.
    with _locks.held("calibrate", "--out", file, lock, wait=_WAIT, needed=False):
        devices = read(file, remake=True) if file.exists() else {}
        devices[device] = {"version": version, **versions(), "calls": calls}
        text = json.dumps({"format": FORMAT, "devices": devices}, indent=1)
        _files.write_bytes(file, text.encode() + b"\n")
    measured.cache_clear()


@lru_cache(maxsize=16)
def measured(device: str) -> dict[str, Steps]:
    """What was measured on the device with these versions; empty where nothing was.

    Warns:
        RuntimeWarning: once, where the file is not readable or was measured with other versions.
    """
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
    other = _other_versions(found)
    if found and other:
        warnings.warn(
            f"the kernels of {device} were measured with {other}: these choices are ignored; measure again "
            "with: semobridge-ext calibrate",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    return {name: [(n, backend) for n, backend in steps] for name, steps in found.get("calls", {}).items()}


def _other_versions(found: dict[str, Any]) -> str:
    """Where a device's section differs from what runs here; "" where it does not."""
    now = {"version": __version__, **versions()}
    shown = {"version": "semobridge-ext"}
    return ", ".join(
        f"{shown.get(name, name)} {found.get(name, 'unknown')} (now {version})"
        for name, version in now.items()
        if found.get(name) != version
    )


@lru_cache(maxsize=16)
def _name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None


def steps(op: str, device: torch.device, dtype: torch.dtype) -> Steps | None:
    """What was measured for an operator; None where nothing was, or with other versions."""
    name = _name(device)
    return None if name is None else measured(name).get(key(op, dtype))


def choose(op: str, device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """The measured backend for a call of that size; None where the operator was not measured."""
    found = steps(op, device, dtype)
    return None if found is None else at(found, size)
