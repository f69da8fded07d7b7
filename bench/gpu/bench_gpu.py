"""Every op and loop on a GPU, timed by CUDA events: the same inputs for all members, checked before.

Members: `eager` is the plain PyTorch program of the method, `auto` what a user gets unasked, `native` the
CUDA kernels, `triton` the Triton kernels, `mm` the bare product: the practical limit. A member that has no
kernel for a call skips and says so.

`pytest bench/gpu/bench_gpu.py --benchmark-json=FILE`. SEMOBRIDGE_BENCH_DEVICE=cpu runs it at small sizes on
the
CPU: that shows that the benches are right, and measures nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import pytest
import torch
from conftest import row_error
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext import clip, reference
from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext.reference import tower_features

DEVICE = torch.device(os.environ.get("SEMOBRIDGE_BENCH_DEVICE", "cuda"))
REAL = DEVICE.type == "cuda"
WIDTH = 512 if REAL else 64
BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class EventTimer:
    """Seconds on the device since the first call; waits for what was launched before."""

    def __init__(self) -> None:
        self.first: torch.cuda.Event | None = None

    def __call__(self) -> float:
        if not REAL:
            return time.perf_counter()
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        if self.first is None:
            self.first = now
        return self.first.elapsed_time(now) * 1e-3


pytestmark = [
    pytest.mark.skipif(
        REAL and not torch.cuda.is_available(), reason="needs a CUDA device; make gpu-check runs it there"
    ),
    pytest.mark.benchmark(timer=EventTimer()),
]


def timed(
    benchmark: Any, member: str, group: str, function: Callable[[], Tensor], oracle: Tensor, bound: float
) -> None:
    """Checks against the float64 oracle on the CPU, then times."""
    backend = member if member in ("auto", "native", "triton") else "auto"
    with sb.backend(backend), torch.no_grad():
        try:
            error = row_error(function().cpu(), oracle)
        except (NotImplementedError, RuntimeError) as refused:
            if "use backend" not in str(refused) and "was built without" not in str(refused):
                raise
            pytest.skip(str(refused))
        assert error <= bound, f"{group} {member}: error {error:.2e} against float64 is above {bound:.0e}"
        benchmark.group, benchmark.name = group, f"{group} {member}"
        peak = None
        if REAL:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            peak = torch.cuda.max_memory_allocated() - before
        benchmark.extra_info.update(
            member=member, error=error, torch=torch.__version__, threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if REAL else "cpu", peak_bytes=peak,
            isa=sb.build_info()["isa"],
        )  # fmt: skip
        benchmark.pedantic(function, rounds=30 if REAL else 1, warmup_rounds=3 if REAL else 0)


def draw(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- ops ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def bridge_problem(n: int, dtype: torch.dtype) -> tuple[Tensor, sb.Bridge, Tensor]:
    w = draw(0, WIDTH, WIDTH) * 0.06 + torch.eye(WIDTH)
    f = (draw(n, n, WIDTH) + 0.3).to(dtype)
    bridge = sb.Bridge(w)
    want = reference.bridge(f.double(), w.double(), inverse=bridge.inverse.detach().double())
    return f.to(DEVICE), bridge.to(DEVICE), want


@pytest.mark.parametrize("member", ["eager", "auto", "native", "triton", "mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("n", [1, 256, 65536] if REAL else [1, 40])
def test_bridge(benchmark: Any, n: int, dtype: torch.dtype, member: str) -> None:
    f, bridge, want = bridge_problem(n, dtype)
    inverse, w = bridge.inverse.detach().to(dtype), bridge.text_projection.to(dtype)
    if member == "mm":
        matrix, out = bridge.projector.to(dtype), torch.empty_like(f)
        want = f.cpu().double() @ bridge.projector.cpu().to(dtype).double()
        function = partial(torch.mm, f, matrix, out=out)
    elif member == "eager":
        function = partial(reference.bridge, f, w, inverse=inverse)
    else:
        function = partial(sb.bridge, f, bridge=bridge)
    timed(benchmark, member, f"bridge/{n}x{WIDTH}/{name_of(dtype)}", function, want, BOUNDS[dtype])


@lru_cache(maxsize=1)
def support_problem(s: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k = (normalize(draw(seed, rows, WIDTH), dim=1).half() for seed, rows in ((1, 1024), (2, s)))
    labels = torch.arange(classes).repeat_interleave(s // classes)
    want = torch.cat([
        reference.support_logits(part.double(), k.double(), labels, classes, beta=5.5)
        for part in q.split(64)
    ])  # fmt: skip
    return q.to(DEVICE), k.to(DEVICE), labels.to(DEVICE), want


@pytest.mark.parametrize("member", ["eager", "auto", "triton", "mm"])
@pytest.mark.parametrize("s,classes", [(16000, 1000), (128000, 1000)] if REAL else [(600, 10)])
def test_support_logits(benchmark: Any, s: int, classes: int, member: str) -> None:
    q, k, labels, want = support_problem(s, classes)
    if member == "mm":
        out, keys = torch.empty(len(q), s, dtype=q.dtype, device=DEVICE), k.T
        timed(benchmark, member, f"support_logits/1024x{s}/float16", lambda: torch.mm(q, keys, out=out),
              q.cpu().double() @ k.cpu().double().T, BOUNDS[torch.float16])  # fmt: skip
        return
    values = torch.nn.functional.one_hot(labels, classes).to(q.dtype)

    def eager() -> Tensor:
        return (5.5 * (q @ k.T - 1)).exp() @ values

    ours = partial(sb.support_logits, q, k, labels, classes, beta=5.5)
    timed(benchmark, member, f"support_logits/1024x{s}/float16", eager if member == "eager" else ours, want,
          BOUNDS[torch.float16])  # fmt: skip


@lru_cache(maxsize=1)
def gallery(g: int) -> tuple[Tensor, Tensor, Tensor]:
    q, rows = (normalize(draw(seed, n, WIDTH), dim=1) for seed, n in ((3, 1000 if REAL else 20), (4, g)))
    want = torch.cat([(part.double() @ rows.double().T).topk(10).values for part in q.split(100)])
    return q.to(DEVICE), rows.to(DEVICE), want


@pytest.mark.parametrize("member", ["eager", "auto", "native", "triton", "mm"])
def test_topk(benchmark: Any, member: str) -> None:
    q, rows, want = gallery(200_000 if REAL else 500)
    group = f"topk/{len(q)}x{len(rows)}/float32"
    if member == "mm":
        out = torch.empty(len(q), len(rows), device=DEVICE)
        timed(benchmark, member, group, lambda: torch.mm(q, rows.T, out=out),
              q.cpu().double() @ rows.cpu().double().T, 1e-4)  # fmt: skip
        return

    def eager() -> Tensor:
        return (q @ rows.T).topk(10).values

    def ours() -> Tensor:
        return sb.topk(q, rows, 10).scores

    timed(benchmark, member, group, eager if member == "eager" else ours, want, 1e-4)


# -- loops -------------------------------------------------------------------------------------------


@cache
def model() -> torch.nn.Module:
    import open_clip

    torch.manual_seed(0)
    layers, width = (12, 512) if REAL else (2, 64)
    vision = {"image_size": 224, "patch_size": 32, "width": 64, "layers": 1}
    text = {"context_length": 77 if REAL else 16, "width": width, "heads": width // 64, "layers": layers}
    return open_clip.CLIP(WIDTH, vision, text, quick_gelu=True).eval().requires_grad_(False).to(DEVICE)


@cache
def oti_oracle(batch: int) -> tuple[Tensor, Tensor]:
    """Start values [B, 1, T] and their features in float64 [B, D]."""
    tower, rows = clip.text_tower(model().double())
    start = draw(batch, batch, 1, tower.width) * 0.02
    features = torch.cat([
        tower_features(tower, rows, part.to(DEVICE, torch.float64)) for part in start.split(64)
    ])  # fmt: skip
    model().float()
    return start, features.cpu()


@pytest.mark.parametrize("member", ["eager", "auto", "native", "native bfloat16"])
@pytest.mark.parametrize("batch", [1, 64, 2048] if REAL else [2])
def test_oti_steps(benchmark: Any, batch: int, member: str) -> None:
    if member == "eager" and batch > 256:
        pytest.skip("autograd keeps the activations of all 77 positions: more than a GPU holds")
    start, want = oti_oracle(batch)
    backend, _, weights = member.partition(" ")
    with sb.backend(backend):
        try:
            tower, rows = clip.text_tower(model())
            engine = make_engine("oti", model(), tower, rows, torch.bfloat16 if weights else None)
        except (NotImplementedError, RuntimeError) as refused:
            pytest.skip(str(refused))
    tokens = start.to(DEVICE)
    moments = torch.zeros_like(tokens), torch.zeros_like(tokens)
    targets = normalize(draw(9, batch, WIDTH), dim=1).to(DEVICE)

    def steps() -> Tensor:
        engine.descend(tokens, *moments, targets, 0, 10, grad_scale=1 / batch, lr=0.0, weight_decay=0.0)
        return engine.features(tokens)

    bound = BOUNDS[torch.bfloat16 if weights else torch.float32]
    with torch.no_grad():
        assert row_error(steps().cpu(), want) <= bound
    timed(benchmark, member, f"oti 10 steps/B{batch}", steps, want, bound)


@lru_cache(maxsize=1)
def training_problem(classes: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inverse, projection, shots, labels, text, hidden on the device; the inverse's gradient in float64."""
    labels = torch.arange(classes).repeat_interleave(16)
    means, w = draw(5, classes, WIDTH), draw(6, WIDTH, WIDTH) * 0.06
    shots = means[labels] + draw(7, len(labels), WIDTH)
    text, hidden = (normalize(means + draw(seed, classes, WIDTH), dim=1) for seed in (8, 9))
    given = (sb.Bridge(w).inverse.detach(), w, shots, labels, text, hidden)
    leaf = given[0].double().requires_grad_()
    tau = torch.zeros(classes, WIDTH, dtype=torch.float64)
    wide = [t.double() if t.is_floating_point() else t for t in given[1:]]
    loss, _ = semobridge_t_loss(leaf, tau, *wide)
    return tuple(t.to(DEVICE) for t in given), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("member", ["eager", "auto", "native", "triton"])
@pytest.mark.parametrize("classes", [47, 1000] if REAL else [5])
def test_semobridge_t_steps(benchmark: Any, classes: int, member: str) -> None:
    """Ten steps at a rate of 0: the same work and the same gradient in each."""
    given, want = training_problem(classes)
    leaf = given[0].clone().requires_grad_()
    tau = torch.zeros(classes, WIDTH, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.AdamW([leaf, tau], lr=0.0)

    def eager() -> Tensor:
        for _ in range(10):
            optimizer.zero_grad()
            with torch.enable_grad():
                semobridge_t_loss(leaf, tau, *given[1:])[0].backward()
            optimizer.step()
        assert leaf.grad is not None
        return leaf.grad

    function = eager
    if member != "eager":
        try:
            with sb.backend(member):
                trainer = BridgeTrainer(*given)
        except (NotImplementedError, RuntimeError) as refused:
            pytest.skip(str(refused))
        trainer.plan([0.0] * 10, 0.0)

        def function() -> Tensor:
            trainer.steps = 0
            for _ in range(10):
                trainer.step()
            return trainer.gradients["inverse"]

    timed(benchmark, member, f"SeMoBridge-T 10 steps/C{classes}", function, want, 1e-3)
