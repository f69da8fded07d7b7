"""What is killed and made to fail: every command and call that writes, on inputs of a few rows.

A job gets a folder with `in`, made once by its `prepare`, and an empty or older `out`, and writes below `out`
alone. Calls of the command line return its status; calls of the library raise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.clip import checkpoints
from semobridge_ext.clip.affine import Affine
from semobridge_ext.runtime import thresholds
from tests.support import data_sets, discovery, images, incremental, inversions, prompt_learning, towers
from tests.support.images import command
from tests.support.problems import Problem, make

SHARDS = ("--quiet", "--shard-size", 2, "--workers", 0)


class Job(NamedTuple):
    prepare: Callable[[Path], object]  # fills home / "in"
    run: Callable[[Path], int | None]  # writes below home / "out"
    older: Callable[[Path], object] | None = None  # what stands there before: another, whole result
    from_cli: bool = False
    slow: bool = False  # takes most of a second: fewer of its runs are killed
    other: Callable[[Path], int | None] | None = None  # the same output from another input


def nothing(home: Path) -> None:
    """No inputs."""


@cache
def problem(seed: int = 0) -> Problem:
    return make(5, 3, 40, noise=1.2, seed=seed)


# -- commands ------------------------------------------------------------------------------------------


def pictures(home: Path) -> None:
    images.write(home / "in" / "images", 2, 3)
    (home / "in" / "images" / "class_01" / "broken.png").write_bytes(b"no picture")


def extract(home: Path, images: str = "images") -> int:
    return command("extract", home / "in" / images, home / "out" / "shards", "--captions", *SHARDS)


def two_folders(home: Path) -> None:
    pictures(home)
    images.write(home / "in" / "others", 3, 1)
    for i, path in enumerate(sorted((home / "in").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"drawing {i}")
    (home / "in" / "images" / "class_00" / "001.txt").unlink()


def shards(home: Path) -> None:
    pictures(home)
    assert command("extract", home / "in" / "images", home / "in" / "shards", *SHARDS) == 0


def mapped(home: Path) -> int:
    words = ("--mapping", "bridge", "--quiet")
    return command("map", home / "in" / "shards", home / "out" / "mapped", *words)


def mapped_table(home: Path) -> int:
    words = ("--mapping", "bridge", "--quiet", "--format", "parquet")
    return command("map", home / "in" / "shards", home / "out" / "mapped", *words)


def studied(home: Path) -> None:
    for seed, name in enumerate(("train", "others")):
        p = problem(seed)
        text = {"text": p.text, "hidden": p.hidden, "text_projection": p.projection}
        arrays(home / "in" / f"{name}.npz", features=p.shots, labels=p.labels, **text)
    p = problem()
    arrays(home / "in" / "test.npz", features=p.queries, labels=p.targets)


def arrays(path: Path, **values: Tensor) -> None:
    np.savez(path, **{name: value.numpy() for name, value in values.items()})


def fewshot(home: Path, train: str = "train") -> int:
    return command(
        "fewshot", f"--train={home / 'in' / train}.npz", f"--test={home / 'in' / 'test.npz'}", "--out",
        home / "out" / "study", "--shots", 1, 2, "--seeds", 2, "--trials", 5, "--preset", "fast",
        "--steps", 3, "--no-plot", "--methods", "nearest class mean", "SeMoBridge",
    )  # fmt: skip


def rows(home: Path) -> None:
    for seed, name in ((1, "rows"), (2, "others")):
        found = torch.randn(6, 192, generator=torch.Generator().manual_seed(seed))
        np.save(home / "in" / f"{name}.npy", found.numpy())


def invert(home: Path, rows: str = "rows") -> int:
    words = ("--steps", 2, "--batch-size", 2, "--quiet")
    return command("invert", home / "in" / f"{rows}.npy", home / "out" / "inv.safetensors", *words)


def retrieve(home: Path, *folders: str) -> int:
    files = ("--csv", home / "out" / "table.csv", "--json", home / "out" / "figures.json")
    return command("retrieve", *(home / "in" / name for name in folders or ("shards",)), *files)


def search(home: Path, text: str = "a star") -> int:
    files = ("--out", home / "out" / "sheet.html", "--json", home / "out" / "hits.json")
    return command("search", home / "in" / "shards", "--text", text, *files)


def partly_labelled(home: Path) -> None:
    pictures(home)
    (home / "in" / "words.txt").write_text("star\nflag\nhouse\narrow\n")


def discover(home: Path, old: str = "class_00") -> int:
    words = ("--concepts", home / "in" / "words.txt", "--epochs", 12, "--workers", 0, "--quiet", "--html")
    return command(
        "discover",
        home / "in" / "images",
        "--out",
        home / "out" / "found",
        "--old",
        old,
        "--classes",
        3,
        *words,
    )


def published(home: Path) -> None:
    data_sets.write(home / "in" / "data", "DTD", train=2, val=2, test=2)


def reproduce(home: Path) -> int:
    words = ("--root", home / "in" / "data", "--out", home / "out" / "study")
    return command("reproduce", "isoclip", *words, "--model", "picto", "--quiet", "--workers", 0)


# -- calls ---------------------------------------------------------------------------------------------


def oti(home: Path, first: int = 0) -> None:
    positional, options = inversions.arguments(steps=6, init=None)
    model, targets = positional
    options |= {"generator": torch.Generator().manual_seed(3)}
    sb.oti(model, targets[first : first + 12], out=home / "out" / "inv.safetensors", **options)


def inversion_map(home: Path) -> None:
    (model, targets), _ = inversions.arguments()
    sb.InversionMap.fit(
        model, targets[:12], steps=3, refine=(2,), batch_size=6, hidden=4, train_steps=6,
        out=home / "out" / "map.safetensors", generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def trained(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    clf = sb.SeMoBridgeT(
        p.bridge(), p.text, p.hidden, steps=12, warmup=2, lr=1e-3, eval_every=4, checkpoint_every=4
    )
    path = home / "out" / "run.safetensors"
    clf.fit(p.shots, p.labels, validation=(p.queries, p.targets), checkpoint=path)


def trained_cache(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    clf = sb.APET(p.text, epochs=4, batch_size=8)
    clf.fit(p.shots, p.labels, checkpoint=home / "out" / "run.safetensors")


def cache(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    sb.APET(p.text, epochs=1).fit(p.shots, p.labels).save(home / "out" / "cache.safetensors")


def bridge(home: Path, seed: int = 0) -> None:
    problem(seed).bridge().save(home / "out" / "bridge.safetensors")


def linear_map(home: Path, seed: int = 0) -> None:
    sb.LinearMap.whitening(problem(seed).queries).save(home / "out" / "map.safetensors")


def role_centering(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    roles = sb.RoleCentering().fit({"query_text": p.text, "document_image": p.queries})
    roles.save(home / "out" / "roles.safetensors")


def estimator(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels).save(home / "out" / "clf.safetensors")


def class_means(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    sb.NearestClassMean().fit(p.shots, p.labels).save(home / "out" / "means.safetensors")


def projection_classifier(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    clf = sb.ProLIP(torch.eye(p.text.shape[1]), p.text, steps=1).fit(p.shots, p.labels)
    clf.save(home / "out" / "prolip.safetensors")


def support_set(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    sb.SupportSet(p.queries, p.targets, 5, weights=p.queries[:, 0].abs() + 1).save(
        home / "out" / "s.safetensors"
    )


def gallery(home: Path, seed: int = 0) -> None:
    sb.Gallery(problem(seed).queries).save(home / "out" / "g.safetensors")


def spectral_filter(home: Path, seed: int = 0) -> None:
    p = problem(seed)
    sb.SpectralFilter(temperature=0.5).fit(p.queries, p.text).save(home / "out" / "filter.safetensors")


def category_discovery(home: Path) -> None:
    data = discovery.images(40, dtype=torch.float32)
    discovery.fit(data, epochs=4, checkpoint_every=1, checkpoint=home / "out" / "run.safetensors")


def categories(home: Path, seed: int = 0) -> None:
    data = discovery.images(40, seed=seed, dtype=torch.float32)
    discovery.fit(data, epochs=1).save(home / "out" / "gcd.safetensors")


def findings(home: Path) -> None:
    """Two tasks, each with a checkpoint of its own."""
    data, out = incremental.findings(dtype=torch.float32), home / "out"
    model = incremental.fit(data, [0, 1], checkpoint_every=1, checkpoint=out / "first.safetensors")
    model.partial_fit(
        data.x, data.y[:, 2:3], data.prompts[2:3], findings=["mass"], checkpoint=out / "second.safetensors"
    )


def re_tuned(home: Path, seed: int = 0) -> None:
    data = incremental.findings(seed=seed, dtype=torch.float32)
    incremental.fit(data, [0, 1], epochs=1).save(home / "out" / "re_tune.safetensors")


def prompts(home: Path, seed: int = 0) -> None:
    prompt_learning.small_coop(home / "out" / "run.safetensors", seed, epochs=3)


def distilled(home: Path, seed: int = 0) -> None:
    prompt_learning.small_kdpl(home / "out" / "run.safetensors", seed, epochs=3)


def coop(home: Path, seed: int = 0) -> None:
    prompt_learning.small_coop(seed=seed, epochs=1).save(home / "out" / "coop.safetensors")


def kdpl(home: Path, seed: int = 0) -> None:
    found = prompt_learning.small_kdpl(seed=seed, epochs=1, known=True)
    found.save(home / "out" / "kdpl.safetensors")


def block_inputs(home: Path, seed: int = 0) -> None:
    images = torch.full((1, 2, 3, 32, 32), float(seed))
    model = towers.VISION_MODELS["open_clip"]()
    sb.discovery.cache_block_inputs(model, images, out=home / "out" / "inputs.safetensors")


def choices(home: Path, device: str = "B") -> None:
    thresholds._WAIT = 2.0  # seconds, for another run that stands still
    steps = [(1, "eager"), (4096, "native")]
    thresholds.write(
        home / "out" / "here" / "thresholds.json", device, sb.__version__, {"topk float32": steps}
    )


def pretrained(home: Path, revision: str = "main") -> None:
    """The cache alone: what would come over the network stands here."""
    matrix = problem().projection
    plain, checkpoints._read = checkpoints._read, lambda *given: {
        "text": Affine(matrix, None), "image": Affine(matrix[:5], matrix[5])
    }  # fmt: skip
    try:
        found = checkpoints.read_projections(
            "Bridge.from_pretrained", "someone/model", ("text", "image"), revision=revision,
            cache_dir=home / "out" / "cache", timeout=60,
        )  # fmt: skip
    finally:
        checkpoints._read = plain
    assert torch.equal(found["text"].matrix, matrix) and found["text"].bias is None
    assert torch.equal(found["image"].rows, matrix[:6])


JOBS: dict[str, Job] = {
    "extract": Job(two_folders, extract, from_cli=True, slow=True, other=lambda h: extract(h, "others")),
    "map": Job(shards, mapped, from_cli=True),
    "map, parquet": Job(shards, mapped_table, from_cli=True),
    "fewshot": Job(studied, fewshot, from_cli=True, other=lambda h: fewshot(h, "others")),
    "invert": Job(rows, invert, from_cli=True, slow=True, other=lambda h: invert(h, "others")),
    "retrieve": Job(
        shards, retrieve, from_cli=True, older=lambda h: retrieve(h, "shards", "shards/../shards")
    ),
    "search": Job(shards, search, from_cli=True, older=lambda h: search(h, "a red flag")),
    "discover": Job(
        partly_labelled, discover, from_cli=True, slow=True, other=lambda h: discover(h, "class_01")
    ),
    "reproduce": Job(published, reproduce, from_cli=True, slow=True),
    "oti": Job(nothing, oti, other=lambda h: oti(h, 12)),
    "InversionMap.fit": Job(nothing, inversion_map),
    "fit": Job(nothing, trained, other=lambda h: trained(h, 1)),
    "APET.fit": Job(nothing, trained_cache, other=lambda h: trained_cache(h, 1)),
    "APET.save": Job(nothing, cache, lambda h: cache(h, 1)),
    "Bridge.save": Job(nothing, bridge, lambda h: bridge(h, 1)),
    "LinearMap.save": Job(nothing, linear_map, lambda h: linear_map(h, 1)),
    "RoleCentering.save": Job(nothing, role_centering, lambda h: role_centering(h, 1)),
    "estimator.save": Job(nothing, estimator, lambda h: estimator(h, 1)),
    "NearestClassMean.save": Job(nothing, class_means, lambda h: class_means(h, 1)),
    "ProLIP.save": Job(nothing, projection_classifier, lambda h: projection_classifier(h, 1)),
    "SupportSet.save": Job(nothing, support_set, lambda h: support_set(h, 1)),
    "Gallery.save": Job(nothing, gallery, lambda h: gallery(h, 1)),
    "thresholds": Job(nothing, choices, lambda h: choices(h, "A"), other=lambda h: choices(h, "C")),
    "SpectralFilter.save": Job(nothing, spectral_filter, lambda h: spectral_filter(h, 1)),
    "SpectralGCD.fit": Job(nothing, category_discovery),
    "cache_block_inputs(out=)": Job(nothing, block_inputs, lambda h: block_inputs(h, 1)),
    "SpectralGCD.save": Job(nothing, categories, lambda h: categories(h, 1)),
    "RETune.partial_fit": Job(nothing, findings),
    "RETune.save": Job(nothing, re_tuned, lambda h: re_tuned(h, 1)),
    "CoOp.fit": Job(nothing, prompts, other=lambda h: prompts(h, 1)),
    "KDPL.fit": Job(nothing, distilled, other=lambda h: distilled(h, 1)),
    "CoOp.save": Job(nothing, coop, lambda h: coop(h, 1)),
    "KDPL.save": Job(nothing, kdpl, lambda h: kdpl(h, 1)),
    "from_pretrained": Job(nothing, pretrained),
}
