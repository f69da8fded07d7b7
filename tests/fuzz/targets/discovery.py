"""Category discovery: filters, models, block inputs and the checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import P, half_way, rows, saved
from tests.support import discovery, towers

S = "safetensors"
GCD = {"width": 6, "hidden": 4, "projection": 3, "epochs": 2, "checkpoint_every": 1}


def spectral_filter() -> Any:
    return sb.SpectralFilter(temperature=0.5).fit(P.queries, P.text)


def use_filter(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralFilter.load(path))
    found.save(path)
    assert found.scores_[found.kept_].shape == found.kept_.shape and repr(found)
    return [found.scores_, found.spectrum_, found.fit(P.queries, P.text).scores_]


def discovered(checkpoint: Path | None = None) -> Any:
    data = discovery.images(40, dtype=torch.float32)
    return discovery.fit(data, checkpoint=checkpoint, **GCD)


def use_gcd(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralGCD.load(path))
    x = rows(found.n_features_in_, 6)
    assert len(found.predict(x)) == 6 and repr(found) and len(found.classes_) >= len(found.old_classes_)
    found.save(path)
    return [found.logits(x), found.predict_proba(x)]


def trained_block() -> Any:
    """Of a tower small enough that its file is."""
    model = towers.VISION_MODELS["open_clip"]()
    inputs = sb.discovery.cache_block_inputs(model, torch.zeros(12, 3, 32, 32), dtype=torch.float32)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    gcd = sb.SpectralGCD(model=model, num_classes=3, **{**GCD, "batch_size": 6})
    return gcd.fit(inputs + noise, ["a", None, "b", None] * 3)


def use_block(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralGCD.load(path))
    facts, width = found._facts, len(found._folded["block_norm1_weight"])
    x = rows(width, 2 * facts.tokens).reshape(2, facts.tokens, width)
    found.save(path)
    return [found.features(x), found.logits(x)]


def make_block_inputs(folder: Path) -> Path:
    path = folder / "file.safetensors"
    model = towers.VISION_MODELS["open_clip"]()
    sb.discovery.cache_block_inputs(model, torch.zeros(2, 3, 3, 32, 32), out=path)
    return path


def use_block_inputs(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.discovery.load_block_inputs(path))
    assert found.dim() == 4
    return [found.nan_to_num()]


# -- training ----------------------------------------------------------------------------------------


def discover(path: Path) -> Sequence[Tensor]:
    found = discovered(path)
    return [found.losses_, found.logits(rows(10))]


def make_discovery(folder: Path) -> Path:
    """The file after one of two epochs."""
    from semobridge_ext.discovery.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: discover(path), path)


TARGETS = [
    Target(
        "SpectralFilter.load", S, ("SpectralFilter.load",), saved(spectral_filter), use_filter, sealed=True
    ),
    Target("SpectralGCD.load", S, ("SpectralGCD.load",), saved(discovered), use_gcd, sealed=True),
    Target(
        "SpectralGCD.load, a block", S, ("SpectralGCD.load",), saved(trained_block), use_block, sealed=True
    ),
    Target("load_block_inputs", S, ("load_block_inputs",), make_block_inputs, use_block_inputs, sealed=True),
    Target(
        "SpectralGCD.fit(checkpoint=)", S, ("SpectralGCD.fit",), make_discovery, discover, 0.5, sealed=True
    ),
]
