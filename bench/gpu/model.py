"""A model on paper: launches, bytes, operations, and the time these imply on an A100 and an H100.

`python bench/gpu/model.py [--docs docs/gpu.md]`. No figure here is a measurement. Ours is counted from
the kernels' own tiles; the eager sequence by running it on meta tensors (SeMoBridge-T: on real ones)
and counting what PyTorch dispatches. Every launch takes the longest of

    bytes / (efficiency · bandwidth)      operations / (efficiency · rate)      LAUNCH

so the host's time, caches that hold operands between launches, and overlap are left out. Both sides
are counted the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from semobridge_ext import reference
from semobridge_ext._engines.bridge_training import reference as reference_training
from semobridge_ext.inversion import reference as reference_inversion

MARKS = ("<!-- model: written by bench/gpu/model.py -->", "<!-- end of model -->")
EFFICIENCY = 0.7  # of bandwidth and of rate
LAUNCH = 2e-6  # seconds, the least that a kernel takes in a stream


class Device(NamedTuple):
    """Published figures, without sparsity."""

    name: str
    bandwidth: float  # bytes/s
    half: float  # operations/s of bfloat16 and float16 products, float32 accumulation
    single: float  # ... of float32 outside tensor cores


DEVICES = (
    Device("A100 80GB SXM", 2039e9, 312e12, 19.5e12),
    Device("H100 SXM", 3350e9, 989.4e12, 66.9e12),
)


class Launch(NamedTuple):
    name: str
    bytes: float
    operations: float = 0.0
    half: bool = True  # products on tensor cores

    def seconds(self, device: Device) -> float:
        rate = device.half if self.half else device.single
        by_memory = self.bytes / (EFFICIENCY * device.bandwidth)
        return max(by_memory, self.operations / (EFFICIENCY * rate), LAUNCH)


class Count(TorchDispatchMode):
    """One launch for every operator that is no view and no bare allocation."""

    _FREE = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh", "item",
             "_local_scalar_dense", "is_same_size", "set_", "resize_")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if self.paused or view or name in self._FREE:
            return out
        touched = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in {id(t): t for t in touched}.values())
        flops = flop_registry.get(func._overloadpacket)
        work = float(flops(*args, **(kwargs or {}), out_val=out)) if flops else 0.0
        self.launches.append(Launch(name, moved, work, all(t.element_size() == 2 for t in touched)))
        return out


def counted(step: Callable[[], object]) -> list[Launch]:
    with Count() as count, fused_attention(count):
        step()
    return count.launches


@contextlib.contextmanager
def fused_attention(count: Count) -> Iterator[None]:
    """Attention as one launch each way, which CUDA gives and meta tensors would not."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            count.paused = True
            ctx.save_for_backward(q, k, v)
            out = torch.empty_like(q)
            count.paused = False
            ctx.work = 4.0 * q.numel() * k.shape[-2]
            count.launches.append(Launch("attention", 4 * q.numel() * q.element_size(), ctx.work))
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q = ctx.saved_tensors[0]
            moved = 8 * q.numel() * q.element_size()
            count.launches.append(Launch("attention_backward", moved, 2.5 * ctx.work))
            return torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)

    before = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = before


def product(name: str, rows: float, k: float, cols: float, size: int = 2, traffic: float = 0.0) -> Launch:
    """x [rows, k] · [k, cols]; `traffic` is what its epilogue moves besides."""
    moved = size * (rows * k + k * cols + rows * cols) + traffic
    return Launch(name, moved, 2.0 * rows * k * cols, size == 2)


# -- the rows ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    title: str
    note: str
    ours: list[Launch]
    eager: list[Launch]


PARTS = 2  # of a float32 matrix that meets rows of a half type


def bridge(n: int, width: int, dtype: torch.dtype) -> Row:
    """Beyond a few rows those of a half type."""
    size, work = dtype.itemsize, 2.0 * PARTS * n * width * width
    if n <= 32:
        ours = [product("project_normalize_fwd_kernel", n, width, width, size)]
    elif n <= 1024:
        # Raw sums go to memory and come back for the norm.
        moved = 2.0 * size * n * width + 4.0 * width * width + 8.0 * n * width
        ours = [Launch("project_tile_fwd_kernel", moved, work)]
    else:
        moved = size * (2.0 * n * width + PARTS * width * width)
        ours = [Launch("project_normalize_fwd_kernel (Triton)", moved, work)]

    def eager() -> None:
        f = torch.empty(n, width, dtype=dtype, device="meta")
        w = torch.empty(width, width, dtype=dtype, device="meta")
        reference.bridge(f, w, inverse=w)

    kind = str(dtype).removeprefix("torch.")
    return Row(f"bridge, N = {n}, D = {width}, {kind}", "one folded projector", ours, counted(eager))


def support_logits(n: int, s: int, classes: int, width: int) -> Row:
    # Keys come from memory once: the programs of one class, all blocks of queries, follow each other.
    moved = 2.0 * s * width + 8.0 * s + 2.0 * n * width + 4.0 * n * classes
    ours = [Launch("support_logits_fwd_kernel (Triton)", moved, 2.0 * n * s * width)]

    def eager() -> None:
        q, k = (torch.empty(rows, width, dtype=torch.float16, device="meta") for rows in (n, s))
        affinity = (5.5 * (q @ k.T - 1)).exp()
        values = torch.empty(s, classes, dtype=torch.float16, device="meta")  # the one-hot labels, kept
        affinity @ values

    title = f"support_logits, {n} × {s}, C = {classes}, D = {width}, float16"
    return Row(title, "keys in class order", ours, counted(eager))


def noted(launches: list[Launch], half: bool) -> Callable[..., None]:
    """What a kernel's stand-in calls: its name, bytes and operations (outside of tensor cores)."""

    def note(name: str, moved: float, operations: float = 0.0) -> None:
        launches.append(Launch(name, moved, operations, half and operations == 0))

    return note


def oti_step(batch: int, name: str, width: int, heads: int, layers: int, features: int) -> Row:
    from semobridge_ext._engines.tower_descent.cost import counted_step, tower_of_shape
    from semobridge_ext._engines.tower_descent.spec import LearnedRows

    # "a photo of £": the start and three words before the pseudo-token, the end behind it
    base = torch.empty(77, width, device="meta")
    rows = LearnedRows(base, tuple(0 if i == 4 else -1 for i in range(77)), pool=5)
    tower = tower_of_shape(width, heads, layers, features)
    count = Count()
    step = counted_step(tower, rows, batch, noted(count.launches, True), weights=torch.bfloat16)
    with count:
        step()
    ours = count.launches

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

    def eager() -> None:
        loss = (1 - nn.functional.cosine_similarity(features_of(v), target, dim=-1)).mean()
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()

    title = f"OTI step, {name}, B = {batch}, bfloat16"
    return Row(title, "2 rows instead of 77", ours, counted(eager))


def semobridge_t_step(classes: int, shots: int, width: int) -> Row:
    from semobridge_ext._engines.bridge_training.cost import counted_step

    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)

    x, t, s, w = rows(classes * shots), rows(classes), rows(classes), torch.eye(width)
    labels = torch.arange(classes).repeat_interleave(shots)
    count = Count()
    step = counted_step(w.clone(), w, x, labels, t, s, note=noted(count.launches, False))
    with count:
        step()
    ours = count.launches
    inverse, tau = w.clone().requires_grad_(), torch.zeros(classes, width, requires_grad=True)
    optimizer = torch.optim.AdamW([inverse, tau], lr=1.5e-4, foreach=True)

    def eager() -> None:
        loss, _ = reference_training.semobridge_t_loss(inverse, tau, w, x, labels, t, s)
        loss.backward()
        optimizer.step()

    title = f"SeMoBridge-T step, C = {classes}, K = {shots}, D = T = {width}, float32"
    return Row(title, "backend native", ours, counted(eager))


def all_rows() -> list[Row]:
    found = [
        bridge(1, 512, torch.float32),
        bridge(256, 512, torch.bfloat16),
        bridge(65536, 512, torch.bfloat16),
        support_logits(1024, 1_281_167, 1000, 512),
    ]
    for name, width, heads, features in (("ViT-B/32", 512, 8, 512), ("ViT-L/14", 768, 12, 768)):
        found += [oti_step(batch, name, width, heads, 12, features) for batch in (64, 2048)]
    found.append(semobridge_t_step(1000, 16, 512))
    return found


# -- the table ---------------------------------------------------------------------------------------


def amount(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "


def duration(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def table(found: Sequence[Row]) -> str:
    header = ["call", "", "launches", "bytes", "operations", "op/byte", *(d.name for d in DEVICES)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in found:
        for kind, launches in (("ours", row.ours), ("eager", row.eager)):
            moved, work = sum(x.bytes for x in launches), sum(x.operations for x in launches)
            times = [duration(sum(x.seconds(d) for x in launches)) for d in DEVICES]
            title = f"{row.title} ({row.note})" if kind == "ours" else ""
            cells = [title, kind, str(len(launches)), f"{amount(moved)}B", f"{amount(work)}FLOP"]
            lines.append("| " + " | ".join([*cells, f"{work / moved:.3g}", *times]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    devices = "; ".join(
        f"{d.name} {d.bandwidth / 1e9:.0f} GB/s, {d.half / 1e12:.0f} and {d.single / 1e12:.1f} TFLOP/s"
        for d in DEVICES
    )
    text = (
        f"**A model, not a measurement.** Published figures ({devices}: half-type products and float32), at "
        f"{EFFICIENCY:.0%} of each; at least {LAUNCH * 1e6:.0f} µs a launch.\n\n{table(all_rows())}"
    )
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
