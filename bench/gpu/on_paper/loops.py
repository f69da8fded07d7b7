"""Steps of inversion and of training: what the engines launch, and what a user's own loop does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from on_paper.counting import Count, counted
from on_paper.machine import Launch, at_once, streamed
from on_paper.machine import product as machine_product
from on_paper.row import Row
from semobridge_ext._engines.bridge_training import reference as reference_training
from semobridge_ext._engines.tower_descent.chunk import chunk_samples, sample_bytes
from semobridge_ext._engines.tower_descent.cost import counted_step, tower_of_shape
from semobridge_ext._engines.tower_descent.products import Rounds, Tiles
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext.inversion import reference as reference_inversion

FREE = 70 << 30  # bytes of an idle device of 80 GB
FEW_ROWS_RATE = 0.35  # as tiles of a library that are as small (machine.TILES)
RESIDENT_TILES = 3  # blocks of few_rows that a multiprocessor holds, by their registers
RESIDENT_STEP = 2  # ... of tower_step
RESIDENT_ATTENTION = 2  # ... of attention's gradient
TOWERS = {"ViT-B/32": (512, 8, 12, 512), "ViT-L/14": (768, 12, 12, 768)}  # width, heads, layers, features


def noted(launches: list[Launch], *, half: bool = True) -> Callable[..., None]:
    """What a kernel's stand-in calls: its name, bytes and operations, which run outside of tensor cores.

    A product of few rows also tells its tiles, on tensor cores where its type is `half`; its matrix comes
    from memory, since a step's do not fit L2. A library's product of half types with a float32 result tells
    its rows, depth and columns; an attention its blocks and the loads of one that wait for each other.
    """

    def note(
        name: str, moved: float, operations: float = 0.0, cut: Tiles | Rounds | None = None,
        product: tuple[int, int, int] | None = None,
    ) -> None:  # fmt: skip
        if product is not None:
            launches.append(machine_product(name, *product, out_size=4))
            return
        if isinstance(cut, Rounds):
            launches.append(
                Launch(name, streamed(name, moved).memory, moved, operations, False, cut.blocks,
                       RESIDENT_ATTENTION, cut.trips, meets=not cut.alone)
            )  # fmt: skip
            return
        if cut is None:
            launches.append(streamed(name, moved, operations))
            return
        launches.append(
            Launch(name, cut.weight, cut.cache, operations, half, cut.blocks, RESIDENT_TILES, cut.trips,
                   FEW_ROWS_RATE)
        )  # fmt: skip

    return note


def chunks_of(batch: int, tower: Tower, rows: LearnedRows) -> list[int]:
    """Samples of each chunk, as `oti` takes them on a GPU that is otherwise idle."""
    size = chunk_samples(sample_bytes(tower, rows, torch.bfloat16, kernels=True), 2, FREE)
    return [min(size, batch - first) for first in range(0, batch, size)]


def engine_step(batch: int, tower: Tower, rows: LearnedRows) -> list[Launch]:
    count = Count()
    step = counted_step(tower, rows, batch, noted(count.launches), weights=torch.bfloat16)
    with count:
        step()
    return count.launches


def oti_step(batch: int, name: str, width: int, heads: int, layers: int, features: int) -> Row:
    # "a photo of £": the start and three words before the pseudo-token, the end behind it
    base = torch.empty(77, width, device="meta")
    rows = LearnedRows(base, tuple(0 if i == 4 else -1 for i in range(77)), pool=5)
    tower = tower_of_shape(width, heads, layers, features)
    found: dict[int, list[Launch]] = {}
    ours: list[Launch] = []
    launched: list[Launch] = []
    for size in chunks_of(batch, tower, rows):
        if size not in found:
            found[size] = engine_step(size, tower, rows)
        few = any(launch.name == "few_rows" for launch in found[size])
        ours += [at_once("tower_step", found[size], RESIDENT_STEP)] if few else found[size]
        launched += found[size]

    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    with torch.device("meta"):
        vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=32)
        text = CLIPTextCfg(width=width, heads=heads, layers=layers)
        model = CLIP(features, vision, text).to(torch.bfloat16)
    model.requires_grad_(False)
    features_of, _ = reference_inversion.text_features(model)
    v = torch.empty(batch, 1, width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    target = torch.empty(batch, features, dtype=torch.bfloat16, device="meta")
    optimizer = torch.optim.AdamW([v], lr=0.02, foreach=True)

    def plain() -> None:
        loss = (1 - nn.functional.cosine_similarity(features_of(v), target, dim=-1)).mean()
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()

    other = None if launched == ours else ("launch by launch", launched)
    title = f"OTI step, {name}, B = {batch}, bfloat16"
    return Row(title, "2 rows instead of 77", ours, counted(plain), other)


def semobridge_t_step(classes: int, shots: int, width: int) -> Row:
    from semobridge_ext._engines.bridge_training.cost import counted_step as counted_training_step

    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)

    x, t, s, w = rows(classes * shots), rows(classes), rows(classes), torch.eye(width)
    labels = torch.arange(classes).repeat_interleave(shots)
    count = Count()
    step = counted_training_step(w.clone(), w, x, labels, t, s, note=noted(count.launches))
    with count:
        step()
    inverse, tau = w.clone().requires_grad_(), torch.zeros(classes, width, requires_grad=True)
    optimizer = torch.optim.AdamW([inverse, tau], lr=1.5e-4, foreach=True)

    def plain() -> None:
        loss, _ = reference_training.semobridge_t_loss(inverse, tau, w, x, labels, t, s)
        loss.backward()
        optimizer.step()

    title = f"SeMoBridge-T step, C = {classes}, K = {shots}, D = T = {width}, float32"
    return Row(title, "backend native", count.launches, counted(plain))


def rows() -> list[Row]:
    found = [oti_step(batch, name, *sizes) for name, sizes in TOWERS.items() for batch in (1, 64, 2048)]
    return [*found, semobridge_t_step(1000, 16, 512)]
