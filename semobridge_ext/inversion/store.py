"""An inversion on disk: finished chunks in a folder, then one file.

Every file is written to a temporary name and renamed, and carries a digest of the settings, the weights, the
features and the start values. So a killed run loses one chunk at most, and a run that differs is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _files, _schema
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext.inversion.descent import Chunk
from semobridge_ext.inversion.settings import Settings

FORMAT = "semobridge-ext inversion 1"
_NAMES = ("tokens", "features", "losses", "recorded", "steps_done")
_FILE = {
    "tokens": _schema.Field(("B", "R", "T"), finite=False),
    "features": _schema.Field(("B", "D"), finite=False),
    "losses": _schema.Field(("steps", "B"), finite=False),  # NaN where no step was taken
    "recorded": _schema.Field(("n", "B", "D"), finite=False),
    "steps_done": _schema.Field(("B",), _schema.WHOLE),
    "settings": _schema.Field(("bytes",), (torch.uint8,)),
}


def _digest_tensors(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.dtype}{list(t.shape)}".encode())
        flat = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def _tower_tensors(tower: Tower, rows: LearnedRows) -> list[Tensor]:
    tensors = [rows.base]
    for linear in tower.linears():
        tensors += [linear.weight.T, *([] if linear.bias is None else [linear.bias])]
    for block in tower.blocks:
        tensors += [*block.norm1[:2], *block.norm2[:2], *([] if block.query is None else [block.query])]
    for norm in (tower.norm_pre, tower.norm_final):
        tensors += [] if norm is None else list(norm[:2])
    return tensors


class Store:
    """One inversion on disk."""

    def __init__(
        self,
        function: str,
        out: str | Path,
        settings: Settings,
        description: dict[str, Any],
        targets: Tensor,
        tokens: Tensor,
        size: int,
    ) -> None:
        self.function, self.path = function, Path(out)
        self.parts = self.path.with_name(self.path.name + ".parts")
        tower, rows = description["tower"], description["rows"]
        facts = {
            "function": function,
            "samples": len(targets),
            "batch_size": size,
            **vars(settings),
            **{k: v for k, v in description.items() if k not in ("tower", "rows")},
            "tower": tower.name,
            "source": rows.source,
            "model_digest": _digest_tensors(_tower_tensors(tower, rows)),
            "features_digest": _digest_tensors([targets]),
            "init_digest": _digest_tensors([tokens]),
        }
        self.facts = json.loads(json.dumps(facts))

    def _read(self, path: Path) -> Chunk:
        tensors, _ = _schema.load(self.function, path, FORMAT, _FILE)
        with _schema.restoring(self.function, path):
            found = json.loads(bytes(tensors.pop("settings").tolist()))
            _schema.need(self.function, path, isinstance(found, dict), "settings", found)
        if found != self.facts:
            other = sorted(k for k in {*found, *self.facts} if found.get(k) != self.facts.get(k))
            raise ValueError(
                f"{self.function}: out must be new or of the same run, got {path} with other "
                f"{', '.join(other)}; choose another name or delete {self.path} and {self.parts}"
            )
        return Chunk(**tensors)

    def finished(self) -> Chunk | None:
        """The whole result, if an earlier run wrote it."""
        return self._read(self.path) if self.path.exists() else None

    def _part(self, index: int) -> Path:
        return self.parts / f"chunk-{index:06d}.safetensors"

    def load(self, index: int) -> Chunk | None:
        path = self._part(index)
        return self._read(path) if path.exists() else None

    def save(self, index: int, chunk: Chunk) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        _files.save_tensors(self._part(index), self._tensors(chunk), {"format": FORMAT})

    def _tensors(self, chunk: Chunk) -> dict[str, Tensor]:
        # A tensor, because the order of several metadata keys in the file is left to chance.
        settings = torch.tensor(list(json.dumps(self.facts, sort_keys=True).encode()), dtype=torch.uint8)
        return {"settings": settings, **{name: getattr(chunk, name) for name in _NAMES}}

    def finish(self, chunks: list[Chunk]) -> None:
        """Writes the whole and removes the parts, and what killed runs left between two names."""
        whole = Chunk(
            tokens=torch.cat([c.tokens for c in chunks]),
            features=torch.cat([c.features for c in chunks]),
            losses=torch.cat([c.losses for c in chunks], 1),
            recorded=torch.cat([c.recorded for c in chunks], 1),
            steps_done=torch.cat([c.steps_done for c in chunks]),
        )
        _files.save_tensors(self.path, self._tensors(whole), {"format": FORMAT})
        if self.parts.is_dir():
            for path in self.parts.iterdir():
                if path.name.lstrip(".").startswith("chunk-"):
                    path.unlink(missing_ok=True)
            if not any(self.parts.iterdir()):
                self.parts.rmdir()
