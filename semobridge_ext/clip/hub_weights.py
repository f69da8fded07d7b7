"""Weights that open_clip fetched from the hub, held against the digest that the hub names.

huggingface_hub compares lengths alone. It keeps a large file under its SHA-256, so that what a bad line or
disk changed can be told without asking anybody.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_PIECE = 1 << 22


def _repository(name: str, pretrained: str | None) -> tuple[str, list[str]] | None:
    """The repository of a model of open_clip's, and the files that it may take from there."""
    import open_clip

    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:"), list(_WEIGHTS)
    found = open_clip.pretrained.get_pretrained_cfg(name, pretrained) if pretrained else None
    repository, file = os.path.split((found or {}).get("hf_hub", ""))
    if not repository:
        return None
    return repository, [f"{file.rpartition('.')[0]}.safetensors", file] if file else list(_WEIGHTS)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def check_fetched(function: str, name: str, pretrained: str | None) -> None:
    """ValueError where the file that open_clip loaded is another than the hub's."""
    from huggingface_hub import try_to_load_from_cache

    repository = _repository(name, pretrained)
    if repository is None:
        return
    for file in repository[1]:
        found = try_to_load_from_cache(repository[0], file)
        if not isinstance(found, str):
            continue
        blob = Path(found).resolve()
        # A file system without links has copies under the file's own name, and no digest to compare with.
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and (got := _digest(blob)) != blob.name:
            raise ValueError(
                f"{function}: {file} of {repository[0]} must have the SHA-256 that the hub names, "
                f"{blob.name}, got {got}; delete {blob} and run again"
            )
        return
