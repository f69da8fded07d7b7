"""The demo's times: ours beside the plain program in the same run, and how far the results differ."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._ops.blend_logits.eager import blend_logits
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.embedded import Clip
from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.study import Problem
from semobridge_ext.inversion import oti
from semobridge_ext.retrieval.gallery import Gallery
from semobridge_ext.runtime.rows import unit_rows

BATCH = 256
IMAGES, STEPS = 32, 2  # of inversion
TRIALS = 200
GALLERY, QUERIES, K = 50_000, 100, 10


def _turns(
    ours: Callable[[], Any], plain: Callable[[], Any], blocks: int, calls: int = 1
) -> dict[str, float]:
    """Median seconds of either; they take turns, so that a slow moment of the machine meets both."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(blocks):
        for member, function in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[member].append((time.perf_counter() - start) / calls)
    seconds = {f"{member}_seconds": statistics.median(values) for member, values in times.items()}
    return {**seconds, "ratio": seconds["plain_seconds"] / seconds["ours_seconds"]}


def _apart(ours: Tensor, plain: Tensor) -> float:  # [N, D]
    """Largest ‖ours − plain‖ / ‖plain‖ over rows."""
    return float(((ours - plain).norm(dim=1) / plain.norm(dim=1)).max())


def _bridge(bridge: Bridge, features: Tensor) -> Iterator[dict[str, Any]]:
    weights, inverse = bridge.text_projection, bridge.inverse.detach()
    batch = features[:BATCH]
    for rows, blocks, calls in ((batch[:1], 30, 30), (batch, 40, 1)):

        def ours(rows: Tensor = rows) -> Tensor:
            return bridge(rows)

        def plain(rows: Tensor = rows) -> Tensor:
            return unit_rows(unit_rows(rows @ inverse) @ weights)

        name = "bridge, 1 image" if len(rows) == 1 else f"bridge, {len(rows)} images"
        error = _apart(ours(), plain())
        yield {
            "what": name, "plain": "two products, two norms, W⁺ ready", "error": error,
            **_turns(ours, plain, blocks, calls),
        }  # fmt: skip


def _inversion(clip: Clip, features: Tensor) -> Iterator[dict[str, Any]]:
    import semobridge_ext as sb

    targets = features[:IMAGES]
    width = clip.model.text_projection.shape[0]
    start = 0.02 * torch.randn(len(targets), 1, width, generator=torch.Generator().manual_seed(0))

    def step(program: Any) -> Any:
        return program(clip.model, targets, tokenizer=clip.tokenizer, init=start, steps=STEPS)

    with torch.enable_grad():
        error = _apart(step(oti).features, step(sb.reference.oti).features)
        found = _turns(lambda: step(oti), lambda: step(sb.reference.oti), 2)
    for key in ("ours_seconds", "plain_seconds"):
        found[key] /= STEPS
    name = f"OTI, {len(targets)} images, a step"
    yield {"what": name, "plain": "full context, autograd", "error": error, **found}


def _search(bridge: Bridge, problem: Problem) -> Iterator[dict[str, Any]]:
    assert problem.val is not None
    clf = SeMoBridgeClassifier(bridge, problem.text).fit(*problem.train)
    x, y = (torch.cat([problem.val[i], problem.test[i]]) for i in (0, 1))

    def ours() -> list[float]:
        clf.tune(x, y, n_trials=TRIALS, sampler="random", batch=TRIALS)
        assert clf.search_ is not None
        return [accuracy for _, accuracy in clf.search_.history]

    found = ours()
    assert clf.search_ is not None
    trials = [params for params, _ in clf.search_.history]
    z, exponents = clf.similarities(x), clf.exponents_

    def plain() -> list[float]:
        return [
            float((blend_logits(z, params, exponents).argmax(dim=1) == y).double().mean())
            for params in trials
        ]

    error = max(abs(a - b) for a, b in zip(found, plain(), strict=True))
    times = _turns(ours, plain, 2)
    for key in ("ours_seconds", "plain_seconds"):
        times[key] /= TRIALS
    name = f"blend search, {len(x)} × {len(z.text.T)}, a trial"
    yield {"what": name, "plain": "three exponentials, argmax", "error": error, **times}


def _topk(features: Tensor) -> Iterator[dict[str, Any]]:
    """Rows around the drawings' features, so that near neighbours are as near as theirs."""
    generator = torch.Generator().manual_seed(0)
    unit = normalize(features, dim=1)
    drawn = unit[torch.randint(len(unit), (GALLERY,), generator=generator)]
    noise = torch.randn(drawn.shape, generator=generator)
    rows = normalize(drawn + 0.5 * float(unit.std()) * noise, dim=1)
    gallery = Gallery(rows)
    for queries, blocks, calls in ((unit[:1], 20, 2), (unit[:QUERIES], 5, 1)):

        def ours(queries: Tensor = queries) -> Tensor:
            return gallery.topk(queries, K).scores

        def plain(queries: Tensor = queries) -> Tensor:
            return torch.topk(queries @ rows.T, K).values

        many = "1 query" if len(queries) == 1 else f"{len(queries)} queries"
        error = _apart(ours(), plain())
        yield {
            "what": f"top {K} of {len(rows)}, {many}", "plain": "mm, torch.topk", "error": error,
            **_turns(ours, plain, blocks, calls),
        }  # fmt: skip


@torch.no_grad()
def figures(clip: Clip, problem: Problem) -> list[dict[str, Any]]:
    """Seconds of ours and of the plain program, their ratio, and the largest difference of the results."""
    bridge = Bridge.from_clip(clip.model, text_length=problem.text_length)
    features = torch.cat([part[0] for part in (problem.train, problem.test)])
    rows = [*_bridge(bridge, features), *_inversion(clip, features), *_search(bridge, problem)]
    return rows + list(_topk(features))
