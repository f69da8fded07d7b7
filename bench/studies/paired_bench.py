"""Times two source trees against each other, taking turns, each round in a fresh process.

    python bench/studies/paired_bench.py BEFORE AFTER                  about 6 minutes on a quiet machine
    python bench/studies/paired_bench.py BEFORE AFTER --only 'bridge*' --rounds 12

BEFORE and AFTER are folders that hold a built semobridge_ext. Every member is a public call, warmed up and
timed inside a process that imports one tree; the order of the two changes from round to round, so that a
drift of the machine falls on both. Printed: the medians over rounds, the median of the ratios after/before
of each round, and its noise, the notch of a box plot (1.57·IQR/√rounds). Exits 1 where a median ratio is
above 1.03 by more than its noise.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

LIMIT = 1.03
WIDTH = 512
Member = tuple[str, Callable[[], Any], int]  # name, call, steps that one call takes


def members(wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Groups are prepared one after another, and only if a member of them is wanted."""
    for names, make in (
        (("bridge 1", "bridge 256", "bridge 65536"), bridges),
        (("dense 1", "dense 256", "LinearMap 1", "LinearMap 256", "project_normalize 256"), projections),
        (("support_logits 1024x16000",), support),
        (("topk 1000x50000",), search),
        (("retrieval_metrics 11788",), retrieval),
        (("blend predict", "blend tune trial"), blend),
        (("SeMoBridgeT step 47x16",), lambda: training(47, 12)),
        (("SeMoBridgeT step 1000x16",), lambda: training(1000, 2)),
        (("OTI step B=1", "OTI step B=8", "OTI step B=64"), textual),
        (("OVI step B=8",), visual),
    ):
        if any(wanted(name) for name in names):
            yield from (member for member in make() if wanted(member[0]))


def _draw(seed: int, *shape: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _unit(seed: int, *shape: int) -> Any:
    import torch

    return torch.nn.functional.normalize(_draw(seed, *shape), dim=-1)


def _projection(rank: int) -> Any:  # [T, D], `rank` singular values above the bridge's tolerance
    import torch

    u, _, v = torch.linalg.svd(_draw(1, WIDTH, WIDTH))
    return (u * torch.cat([torch.linspace(3, 0.5, rank), torch.full((WIDTH - rank,), 0.1)])) @ v


def bridges() -> Iterator[Member]:
    import semobridge_ext as sb

    b = sb.Bridge(_projection(480))
    for rows in (1, 256, 65536):
        yield f"bridge {rows}", partial(sb.bridge, _draw(2, rows, WIDTH), bridge=b), 1


def projections() -> Iterator[Member]:
    import semobridge_ext as sb

    matrix = _draw(1, WIDTH, WIDTH)
    plan, linear = sb.ops.Projection(matrix), sb.LinearMap(matrix, _draw(2, WIDTH))
    for rows in (1, 256):
        yield f"dense {rows}", partial(plan, _draw(2, rows, WIDTH)), 1
        yield f"LinearMap {rows}", partial(linear, _draw(2, rows, WIDTH)), 1
    yield "project_normalize 256", partial(sb.ops.project_normalize, _draw(2, 256, WIDTH), matrix), 1


def support() -> Iterator[Member]:
    import torch

    import semobridge_ext as sb

    q, keys, labels = _unit(1, 1024, WIDTH), _unit(2, 16000, WIDTH), torch.arange(16000) % 1000
    yield "support_logits 1024x16000", lambda: sb.support_logits(q, keys, labels, 1000, beta=5.5), 1


def search() -> Iterator[Member]:
    import semobridge_ext as sb

    q, gallery = _unit(1, 1000, WIDTH), _unit(2, 50000, WIDTH)
    yield "topk 1000x50000", lambda: sb.topk(q, gallery, 10), 1


def retrieval() -> Iterator[Member]:
    import torch

    import semobridge_ext as sb

    x, y = _unit(1, 11788, WIDTH), torch.arange(11788) % 200
    yield "retrieval_metrics 11788", lambda: sb.retrieval_metrics(x, x, y, y, same_set=True), 1


def blend() -> Iterator[Member]:
    import torch

    import semobridge_ext as sb

    labels = torch.arange(1600) % 100
    centres = _draw(1, 100, WIDTH)
    held = torch.arange(3000) % 100
    x = centres[held] + 4 * _draw(2, 3000, WIDTH)
    clf = sb.SeMoBridgeClassifier(sb.Bridge(_projection(480)), _unit(3, 100, WIDTH))
    clf.fit(centres[labels] + 4 * _draw(4, 1600, WIDTH), labels)
    yield "blend predict", lambda: clf.predict(x), 1
    yield "blend tune trial", lambda: clf.tune(x, held, n_trials=300, sampler="random"), 300


def training(classes: int, steps: int) -> Iterator[Member]:
    """Through fit, which both trees have; its share outside the steps is the same work on both."""
    import torch

    import semobridge_ext as sb

    labels = torch.arange(classes * 16) % classes
    b, text, hidden = sb.Bridge(_projection(480)), _unit(1, classes, WIDTH), _unit(2, classes, WIDTH)
    x = _draw(3, classes * 16, WIDTH)
    clf = sb.SeMoBridgeT(b, text, hidden, steps=steps)
    yield f"SeMoBridgeT step {classes}x16", lambda: clf.fit(x, labels), steps


def _vit_b_32(vision_layers: int, text_layers: int) -> Any:
    import open_clip
    import torch

    torch.manual_seed(0)
    vision = {"image_size": 224, "patch_size": 32, "width": 768, "layers": vision_layers}
    text = {"context_length": 77, "width": 512, "heads": 8, "layers": text_layers}
    return open_clip.CLIP(WIDTH, vision, text, quick_gelu=True).eval().requires_grad_(False)


def textual() -> Iterator[Member]:
    import semobridge_ext as sb

    model, init = _vit_b_32(1, 12), 0.02 * _draw(1, 1, 512)
    for batch, steps in ((1, 40), (8, 15), (64, 3)):
        call = partial(sb.oti, model, _draw(batch, batch, WIDTH), steps=steps, init=init)
        yield f"OTI step B={batch}", call, steps


def visual() -> Iterator[Member]:
    import semobridge_ext as sb

    model, init, f = _vit_b_32(12, 1), 0.02 * _draw(1, 1, 768), _draw(2, 8, WIDTH)
    yield "OVI step B=8", lambda: sb.ovi(model, f, steps=1, init=init), 1


def seconds_of(call: Callable[[], Any], budget: float) -> float:
    """Median seconds of a call after a warm-up; short calls are timed in runs of two milliseconds."""
    call()
    once = timeit.timeit(call, number=1)
    number = max(1, math.ceil(2e-3 / once))
    repeat = int(min(max(budget / (once * number), 2), 200))
    return statistics.median(timeit.repeat(call, number=number, repeat=repeat)) / number


def run_members(pattern: str, threads: int, budget: float) -> dict[str, float]:
    """What a child process measures: seconds by member."""
    import torch

    torch.set_num_threads(threads)
    began = time.perf_counter()
    import semobridge_ext  # noqa: F401

    def wanted(name: str) -> bool:
        return fnmatch.fnmatch(name, pattern)

    found = {"import after torch": time.perf_counter() - began} if wanted("import after torch") else {}
    for name, call, steps in members(wanted):
        with torch.inference_mode(name.startswith(("bridge", "dense", "LinearMap"))):
            found[name] = seconds_of(call, budget) / steps
    return found


def child(tree: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "--only", args.only, "--threads", str(args.threads),
               "--seconds", str(args.seconds), str(tree), str(tree)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"paired_bench: a round on {tree} must finish, got\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(before: list[float], after: list[float]) -> tuple[float, float, bool]:
    """Median ratio, its noise, and whether it is worse than the limit beyond that noise."""
    ratios = [a / b for a, b in zip(after, before, strict=True)]
    middle = statistics.median(ratios)
    if len(ratios) < 4:
        return middle, max(ratios) - min(ratios), False
    low, _, high = statistics.quantiles(ratios, n=4)
    noise = 1.57 * (high - low) / len(ratios) ** 0.5
    return middle, noise, middle > LIMIT + noise


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=6, help="pairs of processes; 4 judge")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="members by name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.4, help="for one member in one process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_members(args.only, args.threads, args.seconds)))
        return 0
    trees = {"before": args.before, "after": args.after}
    for tree in trees.values():  # compiles what Python keeps, fills the page cache; thrown away
        subprocess.run([sys.executable, "-c", "import semobridge_ext"], check=True,
                       env={**os.environ, "PYTHONPATH": str(tree.resolve())})  # fmt: skip
    rounds: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for i in range(args.rounds):
        for side in ("before", "after") if i % 2 == 0 else ("after", "before"):
            rounds[side].append(child(trees[side], args))
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr, flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rounds), encoding="utf-8")
    print(f"| member, {args.threads} threads | before, µs | after, µs | after/before | noise | |")
    print("|---|---|---|---|---|---|")
    worse = 0
    for name in rounds["before"][0]:
        before, after = ([r[name] for r in rounds[side]] for side in ("before", "after"))
        ratio, noise, bad = verdict(before, after)
        worse += bad
        old, new = (f"{1e6 * statistics.median(values):.1f}" for values in (before, after))
        print(f"| {name} | {old} | {new} | {ratio:.3f} | ± {noise:.3f} | {'worse' if bad else ''} |")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
