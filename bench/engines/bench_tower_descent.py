"""One step of OTI and OVI on a random-weight ViT-B/32, two threads or whatever torch is given.

Members: `eager` is the full context through the model's own forward, with autograd and AdamW
(reference/); `authors` is that step as the authors' program takes it, which tokenises the batch and
reads the loss in every step; `native` is the engine, `native float16` and `native bfloat16` with the
weights stored so (these round random weights; float16 ones are read without loss), `native bf16 products`
with rows rounded as well (compute=torch.bfloat16, where the processor has it). `mm` is the limit: nothing
but the products that are left, as torch.mm into ready outputs.

What is checked before timing is the gradient of the pseudo-tokens against float64, not the tokens: in
its first step AdamW moves by the sign, which a gradient near zero leaves to chance.

`pytest bench/engines/bench_tower_descent.py --benchmark-json=FILE`; SEMOBRIDGE_BENCH_SLOW=0 leaves out the
members
that take seconds a step.
"""

from __future__ import annotations

import math
import os
import statistics
import timeit
from collections.abc import Callable
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from conftest import row_error
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext.inversion import reference
from semobridge_ext.ops import FrozenTower, PackedTower
from semobridge_ext.reference import tower_features
from semobridge_ext.runtime import backend as _backend

SLOW = os.environ.get("SEMOBRIDGE_BENCH_SLOW", "1") != "0"
LR, DECAY = 2e-2, 0.01
WEIGHTS = {
    "native": torch.float32,
    "native float16": torch.float16,
    "native bfloat16": torch.bfloat16,
}
PRODUCTS = "native bf16 products"
OURS = (*WEIGHTS, PRODUCTS)
BOUNDS = {
    "native": 1e-4, "native float16": 2e-2, "native bfloat16": 2e-1, PRODUCTS: 2e-1, "eager": 1e-4,
    "authors": 1e-4,
}  # fmt: skip


@cache
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12}
    text = {"context_length": 77, "width": 512, "heads": 8, "layers": 12}
    return open_clip.CLIP(512, vision, text, quick_gelu=True).eval().requires_grad_(False)


@cache
def tower(kind: str) -> tuple[Any, Any]:
    return clip.text_tower(model()) if kind == "oti" else clip.vision_tower(model())


@cache
def packed(kind: str, member: str) -> PackedTower:
    return PackedTower(tower(kind)[0], WEIGHTS.get(member), bf16_products=member == PRODUCTS)


@cache
def data(kind: str, batch: int) -> tuple[Tensor, Tensor]:
    """Unit targets [B, D] around a common mean, as CLIP's are, and start values [B, 1, T]."""
    generator = torch.Generator().manual_seed(batch)
    f = torch.randn(batch, 512, generator=generator) + 2 * torch.randn(512, generator=generator)
    width = tower(kind)[0].width
    return f / f.norm(dim=1, keepdim=True), torch.randn(batch, 1, width, generator=generator) * 0.02


@cache
def oracle(kind: str, batch: int) -> Tensor:  # [B, T]
    """Gradient of the mean loss in float64, by autograd over all positions."""
    f, v = data(kind, batch)
    double = model().double()
    try:
        t, rows = clip.text_tower(double) if kind == "oti" else clip.vision_tower(double)
        wide = v.double().requires_grad_()
        parts = []
        for i in range(0, batch, 8):
            features = tower_features(t, rows, wide[i : i + 8])
            loss = (1 - torch.cosine_similarity(features, f[i : i + 8].double(), dim=1)).sum() / batch
            parts.append(torch.autograd.grad(loss, wide)[0][i : i + 8])
        return torch.cat(parts).flatten(1)
    finally:
        model().float()


def native_step(kind: str, batch: int, member: str) -> Callable[[], Tensor]:
    engine = FrozenTower(packed(kind, member), tower(kind)[1])
    f, v = data(kind, batch)
    tokens, first, second = v.clone(), torch.zeros_like(v), torch.zeros_like(v)

    def step() -> Tensor:
        tokens.copy_(v)
        first.zero_()
        engine.descend(tokens, first, second, f, 0, 1, grad_scale=1 / batch, lr=LR, weight_decay=DECAY)
        return first.flatten(1) * 10  # the first moment after one step is a tenth of the gradient

    return step


def eager_step(kind: str, batch: int, tokenise: bool) -> Callable[[], Tensor]:
    """One step of reference.oti or ovi; with `tokenise`, what the authors' loop does besides."""
    f, start = data(kind, batch)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    features_of, _ = reference.text_features(model()) if kind == "oti" else reference.image_features(model())
    v = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([v], lr=LR, weight_decay=DECAY)

    def step() -> Tensor:
        if tokenise:
            ids = tokenizer(["a photo of  £ "] * batch)
            (ids == tokenizer.encode("£")[0]).nonzero()
        with torch.no_grad():
            v.copy_(start)
        loss = (1 - torch.cosine_similarity(features_of(v), f, dim=1)).mean()
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
        if tokenise:
            loss.item()
        return v.grad.flatten(1)

    return step


def products(kind: str, batch: int) -> tuple[Callable[[], Tensor], Tensor, float]:
    """The matrix products that a step cannot do without: forward and input gradient, and their
    operations."""
    t, rows = tower(kind)
    engine = FrozenTower(packed(kind, torch.float32), rows)
    count = engine.slots * batch
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, block in enumerate(t.blocks):
        last = i == len(t.blocks) - 1
        for linear in (block.qkv, block.out, block.fc, block.proj):
            n = batch if last and linear is not block.qkv else count
            for w in (linear.weight.contiguous(), linear.weight.T.contiguous()):
                work.append((torch.randn(n, w.shape[0]), w, torch.empty(n, w.shape[1])))

    def run() -> Tensor:
        for a, w, c in work:
            torch.mm(a, w, out=c)
        return work[-1][2]

    flops = sum(2.0 * a.shape[0] * a.shape[1] * w.shape[1] for a, w, _ in work)
    return run, work[-1][0].double() @ work[-1][1].double(), flops


CASES = [("oti", 1), ("oti", 8), ("oti", 64), ("ovi", 8)]
MEMBERS = ("eager", "authors", *OURS, "mm")


@pytest.mark.parametrize("kind,batch", CASES)
@pytest.mark.parametrize("member", MEMBERS)
def test_step(benchmark: Any, kind: str, batch: int, member: str) -> None:
    if member == "authors" and kind == "ovi":
        pytest.skip("the authors' OVI loop is the eager one: nothing is tokenised")
    if member == PRODUCTS and not _backend._C.active_bf16():
        pytest.skip("needs a processor with AVX-512-BF16")
    if member in ("eager", "authors") and batch > 8 and not SLOW:
        pytest.skip("takes seconds a step; SEMOBRIDGE_BENCH_SLOW=0")
    if member == "mm":
        function, want, flops = products(kind, batch)
        bound = 1e-4
    else:
        _, _, flops = products(kind, batch)
        want, bound = oracle(kind, batch), BOUNDS[member]
        if member in OURS:
            function = native_step(kind, batch, member)
        else:
            function = eager_step(kind, batch, member == "authors")
    error = row_error(function(), want)
    assert error <= bound, f"{kind} {member}: gradient off by {error:.2e}, bound {bound:.0e}"
    took = min(timeit.repeat(function, number=1, repeat=1))
    if took < 1:
        took = statistics.median(timeit.repeat(function, number=1, repeat=3))
    rounds = int(min(max(2.0 / took, 3), 300))
    benchmark.group = f"{kind}_step/B={batch}/float32"
    benchmark.name = f"{benchmark.group} {member}"
    extra = {}
    if member in OURS:
        engine = FrozenTower(packed(kind, member), tower(kind)[1])
        extra["workspace_bytes_per_sample"] = math.ceil(engine.workspace_bytes(batch) / batch)
    benchmark.extra_info.update(
        member=member, error=error, flops=flops, peak_bytes=None, isa=sb.build_info()["isa"],
        threads=torch.get_num_threads(), torch=torch.__version__, **extra,
    )  # fmt: skip
    benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=0)


@pytest.mark.skipif(not SLOW, reason="150 full-context steps; SEMOBRIDGE_BENCH_SLOW=0")
def test_150_steps_parity() -> None:
    """Feature cosine ≥ 0.9999 and losses within 1e-3 of the full-context float32 run."""
    f, v = data("oti", 8)
    ours, theirs = sb.oti(model(), f, init=v), sb.reference.oti(model(), f, init=v)
    cosine = torch.cosine_similarity(ours.features, theirs.features, dim=1)
    worst = float((ours.losses - theirs.losses).abs().max())
    print(f"150 steps, B=8: smallest cosine {float(cosine.min()):.7f}, losses within {worst:.1e}")
    assert float(cosine.min()) >= 0.9999 and worst <= 1e-3
