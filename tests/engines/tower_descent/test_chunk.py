"""Samples that a GPU takes at once: what one costs, how many fit, and how a killed run keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._engines.tower_descent import choice
from semobridge_ext._engines.tower_descent.chunk import chunk_samples, sample_bytes
from semobridge_ext._engines.tower_descent.cost import _NotedPieces, tower_of_shape
from semobridge_ext._engines.tower_descent.spec import LearnedRows
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext.inversion.store import FORMAT
from semobridge_ext.ops import LaunchedTower, LaunchedWeights
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.towers import F32, TEXT, TEXT_MODELS

BF16, GIB = torch.bfloat16, 1 << 30


def held(plan: Any, apart: tuple[object, ...]) -> int:
    """Bytes of every tensor that the plan reaches, not through `apart`."""
    seen, storages, waiting = {id(a) for a in apart}, {}, [plan]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            storage = found.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list | tuple):
            waiting.extend(found)
        elif hasattr(found, "__dict__"):
            waiting.extend(vars(found).values())
    return sum(storages.values())


TEMPLATES = {
    "text": ((77, 4, 5), True, 512),
    "longer text": ((77, 4, 12), True, 768),
    "vision": ((50, 1, 0), False, 768),
}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("stored", [F32, BF16])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_sample_s_bytes(kind: str, stored: torch.dtype, kernels: bool) -> None:
    """Against the buffers themselves: eight samples more, a step taken, everything counted."""
    (length, learned, pool), causal, width = TEMPLATES[kind]
    tower = tower_of_shape(width, width // 64, 3, 512, causal=causal, pre=not causal)
    source = tuple(0 if i == learned or (not causal and i >= learned) else -1 for i in range(length))
    rows = LearnedRows(torch.empty(length, width, device="meta"), source, pool)
    weights, found = LaunchedWeights(tower, stored), []
    engine = LaunchedTower(weights, rows, pieces=_NotedPieces if kernels else TorchTowerPieces)
    for samples in (8, 16):
        plan = engine.plan(samples)[0]
        with torch.no_grad():
            plan.step()
        found.append(held(plan, (weights, engine.rows)))
    real = (found[1] - found[0]) / 8
    ratio = sample_bytes(tower, rows, stored, kernels=kernels) / real
    assert 1 <= ratio < 1.35, f"{kind}: {ratio:.3f} of what is held"


@pytest.mark.parametrize(
    ("sample", "slots", "free", "want"),
    [
        (400_000, 2, 60 * GIB, 4096),  # ViT-B/32 in bfloat16, whatever the GPU
        (400_000, 2, 3 * GIB, 2048),
        (400_000, 2, 2 * GIB, 2048),
        (400_000, 2, 1 * GIB, 1024),
        (3_000_000, 6, 60 * GIB, 2048),
        (20_000_000, 50, 60 * GIB, 256),
        (20_000_000, 257, 60 * GIB, 32),
        (20_000_000, 50, 0, 32),
    ],
)
def test_samples_of_a_chunk(sample: int, slots: int, free: int, want: int) -> None:
    assert chunk_samples(sample, slots, free) == want


def test_a_cuda_engine_asks_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory and PyTorch's own reserve; on other devices nobody is asked."""
    tower = tower_of_shape(64, 1, 2, 16)
    rows = LearnedRows(torch.empty(6, 64, device="meta"), (-1, -1, 0, -1, -1, -1), 4)
    engine = LaunchedTower(LaunchedWeights(tower), rows, pieces=_NotedPieces)
    assert engine.chunk() is None
    engine.device = torch.device("cuda", 1)
    need = sample_bytes(tower, rows, F32, kernels=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * need, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600 * need)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500 * need)
    assert engine.chunk() == 512  # half of 1100, a power of two


def test_a_killed_run_keeps_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that is free the second time would make others."""
    monkeypatch.setattr(choice, "choose", lambda *_: "torch")
    model, f = TEXT_MODELS["open_clip"](), towers.targets(10, towers.D, F32)
    options = {"init": towers.start(10, 1, TEXT, F32), "steps": 3}
    by_memory, sizes = [4], []
    monkeypatch.setattr(LaunchedTower, "chunk", lambda self: by_memory[0])
    kept = LaunchedTower.features

    def fails_in_the_second_chunk(self, tokens, **unit):
        sizes.append(len(tokens))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return kept(self, tokens, **unit)

    monkeypatch.setattr(LaunchedTower, "features", fails_in_the_second_chunk)
    out = tmp_path / "inv.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sb.oti(model, f, out=out, **options)
    by_memory[0], sizes[:] = 8, [0, 0]
    whole = sb.oti(model, f, out=out, **options)
    assert sizes[2:] == [4, 2], "the finished chunk was taken again, or others were made"
    again = sb.oti(model, f, out=out, **options)
    assert_same_bits(again.tokens, whole.tokens)
    with pytest.raises(ValueError, match="other batch_size"):
        sb.oti(model, f, out=out, batch_size=8, **options)
    assert FORMAT.endswith("2"), "chunks of runs before this one are still read"


def test_bfloat16_products_on_a_device_are_bfloat16_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choose", lambda *_: "torch")
    model, f = TEXT_MODELS["open_clip"](), towers.targets(3, towers.D, F32)
    options = {"init": towers.start(3, 1, TEXT, F32), "steps": 5}
    compute = sb.oti(model, f, compute=BF16, **options)
    assert_same_bits(compute.tokens, sb.oti(model, f, weights=BF16, **options).tokens)
    assert not torch.equal(compute.tokens, sb.oti(model, f, **options).tokens)
    with pytest.raises(ValueError, match="a float64 tower"):
        sb.oti(TEXT_MODELS["open_clip"]().double(), f.double(), steps=1, compute=BF16)
