"""What `invert` reads: the embedded images, a file of features, or the first rows of shards and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _checksum, _errors
from semobridge_ext.cli.shard_files import npy_header
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features


def picto_features(name: str, model: Any, kind: str, limit: int | None) -> Tensor:
    from semobridge_ext.clip.texts import encode_text
    from semobridge_ext.data import load_picto, load_picto_clip, picto_transform

    data = load_picto(name)
    if kind == "ovi":
        _, _, tokenizer = load_picto_clip()
        return encode_text(model, data.texts("a drawing of {}")[:limit], tokenizer=tokenizer)
    with torch.inference_mode():
        feats = torch.cat([model.encode_image(picto_transform(c)) for c in data.images[:limit].split(256)])
    return feats.clone()


class _NoKey(KeyError):
    """The names that a file has instead."""


def _read_npy(path: str, key: str) -> Tensor:
    import numpy as np

    rows = np.load(path, allow_pickle=False)
    if (size := Path(path).stat().st_size) != (whole := npy_header(Path(path)) + rows.nbytes):
        raise ValueError(f"{size} bytes where its header says {whole}")
    return torch.from_numpy(rows)


def _read_safetensors(path: str, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if key not in names:
            raise _NoKey(names)
        rows, metadata = file.get_tensor(key), file.metadata() or {}
    if metadata.get("format", "").startswith(
        "semobridge-ext "
    ):  # an inversion; others may mean another entry
        _checksum.check("invert", path, metadata, names, {key: rows})
    return rows


def _read_pt(path: str, key: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".pt": _read_pt}


def read_features(path: str, key: str) -> Tensor:
    suffix = Path(path).suffix
    if not Path(path).is_file():
        raise FileNotFoundError(f"invert: input must be an existing file or picto:<set>, got {path}")
    if suffix not in (".npy", ".safetensors", ".pt"):
        raise ValueError(
            f"invert: input must be .safetensors, .npy or .pt, got {path}; convert it to one of them"
        )
    try:
        found = _READERS[suffix](path, key)
    except _NoKey as error:
        raise ValueError(
            f"invert: --key must be a tensor of {path}, got {key!r}; it has {error.args[0]}"
        ) from error
    except Exception as error:  # the three readers raise every kind at damaged bytes
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"invert: {path} must be a whole {suffix} file, got {told}; copy or write it again"
        ) from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() != 2:
        raise ValueError(
            f"invert: {path} must hold float features [N, D], got {_errors.describe(found)}; write them so"
        )
    return found


def read_folder(path: str, limit: int | None) -> tuple[Folder, Tensor]:
    """Shards or a table, and its first rows [N, D] in memory."""
    folder = open_features("invert", path)
    for index in folder.shards():
        folder.check_rows(index)
    folder.check_finished()
    parts, left = [], limit
    for block in folder.blocks():
        parts.append(block[:left].clone())
        left = None if left is None else left - len(parts[-1])
        if left == 0:
            break
    if not parts:
        raise ValueError(
            _errors.message("invert", "input", "hold rows", f"none in {path}", "extract some images")
        )
    return folder, torch.cat(parts)
