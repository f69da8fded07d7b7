"""Inversions and the maps learned from them: results, parts of a killed run, and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import half_way, rows, saved
from tests.support import towers

S = "safetensors"
SAMPLES = 4


@cache
def _model() -> Any:
    model = towers.TEXT_MODELS["open_clip one layer"]()
    return model


def invert(path: Path) -> Sequence[Tensor]:
    targets = towers.targets(SAMPLES, towers.D, towers.F32)
    start = towers.start(SAMPLES, 1, towers.TEXT, towers.F32)
    found = sb.oti(_model(), targets, init=start, steps=2, batch_size=2, record_steps=(1,), out=path)
    return [found.tokens, found.features, found.losses]


def make_inversion(folder: Path) -> Path:
    invert(folder / "file.safetensors")
    return folder / "file.safetensors"


def make_part(folder: Path) -> Path:
    """The first chunk, as a killed run leaves it."""
    from semobridge_ext.inversion import invert as inversion

    out, save = folder / "whole.safetensors", inversion.Store.save

    class Killed(Exception):
        pass

    def dies(self: Any, index: int, chunk: Any) -> None:
        if index == 1:
            raise Killed
        save(self, index, chunk)

    inversion.Store.save = dies  # type: ignore[method-assign]
    try:
        invert(out)
    except Killed:
        pass
    finally:
        inversion.Store.save = save  # type: ignore[method-assign]
    (path,) = (folder / "whole.safetensors.parts").iterdir()
    return path


def use_part(path: Path) -> Sequence[Tensor]:
    whole = path.parent.parent / "whole.safetensors"
    whole.unlink(missing_ok=True)
    return invert(whole)


# -- inversion maps ----------------------------------------------------------------------------------


def inversion_map(out: Path | None = None) -> Any:
    targets, start = towers.targets(12, towers.D, towers.F32), torch.Generator().manual_seed(1)
    return sb.InversionMap.fit(
        _model(), targets, steps=2, refine=(1,), hidden=3, train_steps=4, generator=start, out=out
    )


def use_inversion_map(path: Path) -> Sequence[Tensor]:
    phi = loaded(sb.InversionMap.load(path))
    phi.save(path)
    assert repr(phi) and phi.num_tokens == len(phi.offset)
    return [phi(rows(len(phi.matrix)))]


def make_map_training(folder: Path) -> Path:
    """The file after the first of four steps, pilots beside it gone."""
    from semobridge_ext.inversion.map_training import Checkpoint

    out = folder / "map.safetensors"
    path = half_way(Checkpoint, lambda: inversion_map(out), folder / "map.safetensors.training.safetensors")
    out.unlink()
    return path


def use_map_training(path: Path) -> Sequence[Tensor]:
    out = path.with_name("map.safetensors")
    out.unlink(missing_ok=True)
    phi = inversion_map(out)
    return [phi.matrix, phi.offset, phi.outer]


TARGETS = [
    Target("oti(out=)", S, ("oti",), make_inversion, invert, 0.2, sealed=True),
    Target("oti(out=), a part", S, ("oti",), make_part, use_part, 0.2, sealed=True),
    Target(
        "InversionMap.load", S, ("InversionMap.load",), saved(inversion_map), use_inversion_map, sealed=True
    ),
    Target(
        "InversionMap.fit(out=)",
        S,
        ("InversionMap.fit",),
        make_map_training,
        use_map_training,
        0.3,
        sealed=True,
    ),
]
