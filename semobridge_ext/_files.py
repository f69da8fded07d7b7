"""Tensor files: safetensors only, written to a temporary name and renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor


def save_tensors(path: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes `path` whole or not at all."""
    from safetensors.torch import save

    write_bytes(path, save({k: v.contiguous().cpu() for k, v in tensors.items()}, metadata))


def write_bytes(path: Any, data: bytes) -> None:
    """Writes `path` whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(
    function: str, path: Any, file_format: str, names: tuple[str, ...], fields: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the named tensors and the metadata, with at least `fields`, of a file of `file_format`."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{function}: path must be an existing file, got {path}; check the name, or write it with .save()"
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            if meta.get("format") != file_format:
                raise ValueError(
                    f"{function}: {path} must be a '{file_format}' file, got format "
                    f"{meta.get('format')!r}; write it with .save()"
                )
            missing = [n for n in names if n not in file.keys()]  # noqa: SIM118 - not a dict
            missing += [n for n in fields if n not in meta]
            if missing:
                raise ValueError(f"{function}: {path} lacks {missing}; write it again with .save()")
            return {n: file.get_tensor(n) for n in names}, meta
    except SafetensorError as error:
        raise ValueError(
            f"{function}: {path} must be a whole safetensors file, got a damaged or foreign one "
            f"({error}); copy or write it again"
        ) from error
