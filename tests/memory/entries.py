"""What is called again and again: the operators' random calls, and the classes and files of the library."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.sanitizers.calls import CALLS, ERRORS, Source
from tests.support import incremental, prompt_learning, towers
from tests.support.problems import Problem, make

WIDE = (1, 3, 17, 64, 200, 513, 1500, 4000)  # rows: from under a page to some MiB


@cache
def _folder() -> Path:
    return Path(_kept_folder.name)


_kept_folder = tempfile.TemporaryDirectory(prefix="memory-")


@cache
def _picto() -> Any:
    return sb.load_picto_clip()


def _problem(s: Source) -> Problem:
    draw = s.random.randrange
    return make(draw(2, 30), draw(1, 6), draw(1, 400), draw(4, 100), draw(4, 90), seed=draw(1000))


def _saved(made: Any) -> Any:
    """The same, from its file."""
    path = _folder() / f"{type(made).__name__}.safetensors"
    made.save(path)
    return type(made).load(path)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def wide_rows(s: Source) -> Any:
    n, d = s.random.choice(WIDE), s.random.choice((64, 192, 512, 768))
    x = torch.randn(n, d, generator=s.generator, dtype=torch.float32).to(s.dtype())
    return sb.ops.project_normalize(x, torch.eye(d, dtype=x.dtype)[:, : d // 2])


def wide_topk(s: Source) -> Any:
    n, g = s.random.choice(WIDE[:6]), s.random.choice(WIDE)
    x, y = (torch.randn(rows, 128, generator=s.generator) for rows in (n, g))
    return tuple(sb.topk(x, y, min(g, s.random.choice((1, 10, 100)))))


def wide_gallery(s: Source) -> Any:
    n, g = s.random.choice(WIDE[:6]), s.random.choice(WIDE)
    x, y = (torch.randn(rows, 128, generator=s.generator) for rows in (n, g))
    return tuple(sb.Gallery(y).add(y[: g // 3]).topk(x, min(g, 10)))


def wide_support(s: Source) -> Any:
    n, keys = s.random.choice(WIDE[:6]), s.random.choice(WIDE)
    x, y = (_unit(torch.randn(rows, 128, generator=s.generator)) for rows in (n, keys))
    return sb.support_logits(x, y, torch.arange(keys) % 50, 50, beta=5.5)


def bridge_file(s: Source) -> Any:
    p = _problem(s)
    return _saved(p.bridge())(p.queries)


def map_file(s: Source) -> Any:
    p = _problem(s)
    made = s.random.choice((sb.LinearMap.whitening, sb.LinearMap.centering))(p.queries)
    roles = _saved(sb.RoleCentering().fit({"text": p.text, "image": p.queries}))
    return _saved(made)(p.queries), roles.fuse(p.queries, p.queries, roles=("text", "image"))


def isoclip(s: Source) -> Any:
    p = _problem(s)
    iso = sb.IsoCLIP(p.projection, p.projection.flip(0), k_top=1, k_bottom=1)
    return _saved(iso).image(p.hidden)


def estimators(s: Source) -> Any:
    """Each of them fitted, stored, loaded and asked."""
    p = _problem(s)
    made = s.random.choice(
        (
            lambda: sb.SeMoBridgeClassifier(p.bridge(), p.text),
            lambda: sb.TipAdapter(p.text),
            lambda: sb.APE(p.text, channels=3),
            sb.NearestClassMean,
            sb.LDA,
            lambda: sb.GDA(p.text),
            lambda: sb.ProKeR(p.text),
            lambda: sb.LPPlusPlus(p.text, steps=2),
            lambda: sb.ProLIP(torch.eye(p.text.shape[1]), p.text, steps=2),
        )
    )()
    return _saved(made.fit(p.shots, p.labels)).decision_function(p.queries)


def shots_in_parts(s: Source) -> Any:
    """Two parts, the second with weights."""
    p = _problem(s)
    made = s.random.choice(
        (
            lambda: sb.SeMoBridgeClassifier(p.bridge(), p.text),
            lambda: sb.TipAdapter(p.text),
            lambda: sb.GDA(p.text),
            sb.NearestClassMean,
            sb.LDA,
        )
    )()
    half, weights = len(p.shots) // 2, torch.rand(len(p.shots), generator=s.generator) + 1.0
    made.partial_fit(p.shots[:half], p.labels[:half], classes=range(len(p.text)))
    made.partial_fit(p.shots[half:], p.labels[half:], sample_weight=weights[half:])
    return made.decision_function(p.queries)


def zero_shot(s: Source) -> Any:
    p = _problem(s)
    return _saved(sb.ZeroShot(p.text).fit()).decision_function(p.queries)


def tip_adapter_f(s: Source) -> Any:
    p = _problem(s)
    made = s.random.choice((sb.TipAdapterF, sb.APET))(p.text, epochs=1)
    return made.fit(p.shots, p.labels).decision_function(p.queries)


def support_file(s: Source) -> Any:
    p = _problem(s)
    return _saved(sb.SupportSet(_unit(p.queries), p.targets, int(p.targets.max()) + 1)).logits(_unit(p.shots))


def diagnosis(s: Source) -> Any:
    p = _problem(s)
    sb.diagnose(p.queries, p.targets, recall_at=(1,), resamples=20)
    return None


def revisited(s: Source) -> Any:
    g = s.random.randrange(6, 300)
    x, y = (torch.randn(rows, 32, generator=s.generator) for rows in (3, g))
    sb.revisited_metrics(x, y, [[0], [1], [2]], [[3], [4], [5]], [[], [], []])
    return None


def findings_in_tasks(s: Source) -> Any:
    """Two tasks, the second with the model from its file."""
    data = incremental.findings(s.random.randrange(8, 60), s.random.randrange(4, 40), dtype=torch.float32)
    model = _saved(incremental.fit(data, [0, 1], adaptor=s.random.choice(("linear", "bottleneck"))))
    return model.partial_fit(data.x, data.y[:, :2]).decision_function(data.x)


def inverted(s: Source) -> Any:
    """Twice each: kept in memory, and by way of a file in chunks."""
    n, steps = s.random.randrange(1, 9), s.random.randrange(1, 4)
    model = towers.TEXT_MODELS["open_clip one layer"]()
    given = {"init": towers.start(n, 1, towers.TEXT, towers.F32), "steps": steps}
    out = _folder() / "inversion.safetensors"
    out.unlink(missing_ok=True)
    sb.oti(model, towers.targets(n, towers.D, towers.F32), out=out, batch_size=3, **given)
    found = sb.oti(model, towers.targets(n, towers.D, towers.F32), **given)
    return found.features, found.tokens


def text_features(s: Source) -> Any:
    model, _, tokenizer = _picto()
    names = [f"star {s.random.randrange(9)}" for _ in range(s.random.randrange(1, 5))]
    return sb.class_text_features(model, names, tokenizer=tokenizer).projected


def image_features(s: Source) -> Any:
    """Of arrays, one of which is too large."""
    sides = [s.random.randrange(9, 60) for _ in range(s.random.randrange(1, 5))]
    pixels = [torch.full((side, 50, 3), side, dtype=torch.uint8) for side in (*sides, 64)]
    return sb.encode_images(_picto()[0], pixels, batch_size=2, max_pixels=3000, corrupt="skip").features


def shards(s: Source) -> Any:
    """A table of features mapped into shards, read back, ranked and searched."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = torch.randn(s.random.randrange(4, 60), 8, generator=s.generator)
    table = {"features": rows.tolist(), "label": [str(i % 2) for i in range(len(rows))]}
    with tempfile.TemporaryDirectory() as home:
        pq.write_table(pa.table(table), f"{home}/rows.parquet")
        sb.map_shards(f"{home}/rows.parquet", f"{home}/out", mapping=sb.LinearMap.centering(rows[0]))
        sb.retrieve(f"{home}/out")
        found = sb.read_shards(f"{home}/out").features
        return found, sb.search(f"{home}/out", found[:2], k=3).scores


def prompts(s: Source) -> Any:
    """Learned twice: from labels, and from a teacher by way of a file."""
    seed, path = s.random.randrange(1000), _folder() / "prompts.safetensors"
    prompt_learning.small_kdpl(seed=seed).save(path)
    model, tokenizer, names = prompt_learning.authors()
    found = sb.KDPL.load(path, model, tokenizer=tokenizer).features_for(names)
    return found, prompt_learning.small_coop(seed=seed).context_


def layers(s: Source) -> Any:
    """The default bridge, and a request for a backend in a block."""
    model, _, _ = _picto()
    sb.use(model)
    with sb.backend(s.random.choice(("auto", "eager"))):
        return sb.bridge(torch.randn(s.size(1), 192, generator=s.generator))


LIBRARY: tuple[Callable[[Source], Any], ...] = (
    wide_rows, wide_topk, wide_gallery, wide_support, bridge_file, map_file, isoclip, estimators,
    shots_in_parts, zero_shot, tip_adapter_f, support_file, diagnosis, revisited, findings_in_tasks, inverted,
    text_features, prompts, layers, image_features, shards,
)  # fmt: skip
ENTRIES: dict[str, Callable[[Source], Any]] = {call.__name__: call for call in (*CALLS, *LIBRARY)}
# How often a soak draws them, against 1 for the others: they take long.
WEIGHTS = {
    "inverted": 0.01,
    "text_features": 0.05,
    "image_features": 0.05,
    "shards": 0.05,
    "prompts": 0.1,
    "layers": 0.1,
    "training": 0.2,
    "diagnosis": 0.2,
}


def call(name: str, seed: int) -> bool:
    """One call; whether it was taken. What it returns is dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ENTRIES[name](Source(seed))
        except ERRORS:
            return False
    return True
