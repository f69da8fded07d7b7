"""The loops' problems of measure.py: a step of OTI, of OVI and of SeMoBridge-T."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from problems import BACKENDS, Lazy, Make, Prepared, Problem, Sizes, compile_anew, draw, name_of, under, unit
from timing import worst_row
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import clip
from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext.inversion import reference
from tests.support.plain_clip import PlainCLIP, WordTokenizer

BF16, F32 = torch.bfloat16, torch.float32
# Features and gradients after a dozen layers whose every product is rounded.
BOUNDS = {F32: 1e-3, BF16: 0.1}
CHECKED = 8  # samples held against float64
STEPS = 10  # of ours in a call, as a run takes them
LR = 2e-2

Features = Callable[[Tensor], Tensor]  # [B, R, T] -> [B, D]


def problems(sizes: Sizes, device: torch.device) -> Iterator[Lazy]:
    names = list(sizes.towers)
    for batch in sizes.batches:
        yield partial(oti, sizes, device, names[0], batch, BF16)
    yield partial(semobridge_t, sizes, device)
    yield partial(ovi, sizes, device, BF16)
    for batch in sizes.batches:
        yield partial(oti, sizes, device, names[-1], batch, BF16)
    yield partial(oti, sizes, device, names[0], sizes.batches[1], F32)


@cache
def tokenizer(context: int) -> WordTokenizer:
    return WordTokenizer(context_length=context)


def model_of(sizes: Sizes, device: torch.device, name: str, vision: bool = False) -> PlainCLIP:
    """A CLIP of random weights; the norms and biases differ from 1 and 0, where a lost one would not show."""
    torch.manual_seed(0)
    *text, features = sizes.towers[name]
    model = PlainCLIP(
        features, tuple(text), sizes.vision if vision else None, context_length=sizes.context, quick_gelu=True
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    return model.eval().requires_grad_(False).to(device)


def descent_problem(
    title: str,
    model: PlainCLIP,
    features_of: Callable[[PlainCLIP], Features],
    ours: Callable[[str], Any],  # the engine of a backend
    start: Tensor,  # [B, R, T]
    dtype: torch.dtype,
    rows: float,  # that any program must compute in each sample
    blocks: Any,
    compiles: bool,  # torch.compile takes most of a minute for a tower
) -> Problem:
    """Ours at a rate of 0: the same work and the same gradient in each step."""
    batch, features = len(start), features_of(model)(start[:1]).shape[1]
    targets = unit(start.device, 9, batch, features)

    def with_gradient(of: Features, v: Tensor, to: Tensor) -> Tensor:
        """Features and the gradient of their inner product with the targets, each of length 1."""
        leaf = v.detach().requires_grad_()
        with torch.enable_grad():
            out = of(leaf)
            (grad,) = torch.autograd.grad((out * to).sum(), leaf)
        return joined(out.detach(), grad)

    def joined(out: Tensor, grad: Tensor) -> Tensor:  # [B, D], [B, R, T] -> [2 B, ..]
        width = max(out.shape[1], grad[0].numel())
        parts = (F.normalize(p.flatten(1).double(), dim=1) for p in (out, grad))
        return torch.cat([F.pad(p, (0, width - p.shape[1])) for p in parts])

    some, aims = start[:CHECKED], targets[:CHECKED]
    want = with_gradient(features_of(model.double()), some.double(), aims.double())
    model.float()

    def plain_step(
        loss_of: Callable[..., Tensor], of: Features, leaf: Tensor, optimizer: Any
    ) -> Callable[[], None]:
        def step() -> None:
            with torch.enable_grad():
                loss = loss_of(of, leaf, targets.to(dtype))
                (leaf.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()

        return step

    def plain(loss_of: Callable[..., Tensor]) -> Prepared:
        own = features_of(model_in(model, dtype))
        leaf = start.to(dtype, copy=True).requires_grad_()
        optimizer = torch.optim.AdamW([leaf], lr=LR)
        step = plain_step(loss_of, own, leaf, optimizer)
        return Prepared(step, partial(with_gradient, own, some.to(dtype), aims.to(dtype)))

    def engine(backend: str) -> Prepared:
        with sb.backend(backend):
            own = ours(backend)
        tokens = start.clone()
        moments = torch.zeros_like(tokens), torch.zeros_like(tokens)

        def steps() -> Tensor:
            return own.descend(
                tokens, *moments, targets, 0, STEPS, grad_scale=1 / batch, lr=0.0, weight_decay=0.0
            )

        def probe() -> Tensor:
            return joined(own.features(some.clone()), own.gradient(some.clone(), aims))

        return Prepared(under(backend, steps), under(backend, probe), STEPS)

    weights = sum(p.numel() for p in blocks.parameters())
    members: dict[str, Make] = {"plain": lambda: plain(cosine_loss)}
    members |= {name: partial(engine, name) for name in BACKENDS}
    if compiles:
        members["compile"] = lambda: plain(compile_anew(cosine_loss))
    return Problem(
        title, members, lambda got: worst_row(got, want), BOUNDS[dtype],
        2.0 * weights * dtype.itemsize, 4.0 * rows * batch * weights, dtype is BF16,
    )  # fmt: skip


def cosine_loss(features_of: Features, v: Tensor, targets: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(features_of(v), targets, dim=-1)).mean()


def model_in(model: PlainCLIP, dtype: torch.dtype) -> PlainCLIP:
    """The model itself, or a copy in a half type."""
    return model if dtype is F32 else copy.deepcopy(model).to(dtype)


def oti(sizes: Sizes, device: torch.device, name: str, batch: int, dtype: torch.dtype) -> Problem:
    """Of 77 positions 2 must be computed in each sample: the pseudo-word and the end."""
    model, words = model_of(sizes, device, name), tokenizer(sizes.context)
    tower, rows = clip.text_tower(model, tokenizer=words)
    start = draw(device, 1, batch, 1, tower.width) * 0.02
    weights = None if dtype is F32 else dtype
    return descent_problem(
        f"OTI step {name}, B = {batch} {name_of(dtype)}", model,
        lambda m: reference.text_features(m, tokenizer=words)[0],
        lambda _: make_engine("oti", model, tower, rows, weights), start, dtype, 2.0, model.transformer,
        (name, batch, dtype) == (next(iter(sizes.towers)), sizes.batches[1], BF16),
    )  # fmt: skip


def ovi(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    """All patches and the class token."""
    name = next(iter(sizes.towers))
    model = model_of(sizes, device, name, vision=True)
    assert model.visual is not None
    tower, rows = clip.vision_tower(model)
    start = draw(device, 1, sizes.patches, 1, tower.width) * 0.02
    weights = None if dtype is F32 else dtype
    return descent_problem(
        f"OVI step {name}, B = {sizes.patches} {name_of(dtype)}", model,
        lambda m: reference.image_features(m)[0],
        lambda _: make_engine("ovi", model, tower, rows, weights), start, dtype, float(len(rows.source)),
        model.visual.transformer, False,
    )  # fmt: skip


def semobridge_t(sizes: Sizes, device: torch.device) -> Problem:
    """Ten steps at a rate of 0; plain is the authors' loop, in float32 and under autocast."""
    c, d = sizes.classes, sizes.width
    labels = torch.arange(c, device=device).repeat_interleave(sizes.shots)
    means, w = draw(device, 5, c, d), draw(device, 6, d, d) * 0.3 / d**0.5
    w += torch.eye(d, device=device)
    shots = means[labels] + draw(device, 7, len(labels), d)
    text, hidden = (F.normalize(means + draw(device, seed, c, d), dim=1) for seed in (8, 9))
    inverse = torch.linalg.pinv(w.double()).float()
    given = (w, shots, labels, text, hidden)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = inverse.to(dtype, copy=True).requires_grad_()
        tau = torch.zeros(c, d, dtype=dtype, device=device)
        own = [t.to(dtype) if t.is_floating_point() else t for t in given]
        with torch.enable_grad():
            return torch.autograd.grad(semobridge_t_loss(leaf, tau, *own)[0], leaf)[0]

    want = gradient(torch.float64)

    def plain(loss: Callable[..., Any], half: bool) -> Prepared:
        leaf = inverse.clone().requires_grad_()
        tau = torch.zeros(c, d, device=device, requires_grad=True)
        optimizer = torch.optim.AdamW([leaf, tau], lr=0.0, weight_decay=0.0)

        def step() -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad(), torch.autocast(device.type, dtype=BF16, enabled=half):
                total = loss(leaf, tau, *given)[0]
            total.backward()
            optimizer.step()
            assert leaf.grad is not None
            return leaf.grad

        return Prepared(step)

    def ours(backend: str) -> Prepared:
        with sb.backend(backend):
            trainer = BridgeTrainer(inverse, *given)
        trainer.plan([0.0] * STEPS, 0.0)

        def steps() -> Tensor:
            trainer.steps = 0
            for _ in range(STEPS):
                trainer.step()
            return trainer.gradients["inverse"]

        return Prepared(under(backend, steps), None, STEPS)

    members: dict[str, Make] = {
        "plain": lambda: plain(semobridge_t_loss, half=False),
        "plain autocast": lambda: plain(semobridge_t_loss, half=True),
        **{name: partial(ours, name) for name in BACKENDS},
        "compile": lambda: plain(compile_anew(semobridge_t_loss), half=False),
    }
    n, least = len(labels), c * sizes.shots * d + 7 * (d * d + c * d)
    return Problem(
        f"SeMoBridge-T step C = {c}, K = {sizes.shots} float32", members, lambda got: worst_row(got, want),
        1e-2, 4.0 * least, 2.0 * n * d * (3 * d + 4 * c), False,
    )  # fmt: skip
