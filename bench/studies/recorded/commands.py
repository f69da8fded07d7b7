"""The commands, run in an empty folder: numbers of what they write, without times and versions."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import semobridge_ext as sb
from recorded.problems import case, draw, problem
from semobridge_ext import cli

# Times, what names the installation, and digests over names and times of files in a temporary folder.
_LEFT_OUT = re.compile(r"second|time|ratio|version|environment|description|inputs_digest|source_digest")


@contextlib.contextmanager
def _empty_folder() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def _run(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main([str(word) for word in words])
    if code != 0:
        raise RuntimeError(f"recorded_results: '{words[0]}' must return 0, got {code}")


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _kept(v) for k, v in value.items() if not _LEFT_OUT.search(str(k))}
    if isinstance(value, list):
        return [_kept(v) for v in value]
    # The folder has another name in every run.
    return value.replace(str(Path.cwd()), "") if isinstance(value, str) else value


def _table(path: Path) -> Any:
    with open(path, encoding="utf-8", newline="") as file:
        return [_kept(row) for row in csv.DictReader(file)]


def _contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold, by name."""
    import pyarrow.parquet as parquet
    from safetensors.torch import load_file

    readers = {
        ".npy": np.load, ".safetensors": load_file, ".csv": _table,
        ".json": lambda p: _kept(json.loads(p.read_text(encoding="utf-8"))),
        ".parquet": lambda p: _kept(parquet.read_table(p).to_pydict()),
        ".tsv": lambda p: _kept(p.read_text(encoding="utf-8")),
    }  # fmt: skip
    files = sorted(p for p in folder.rglob("*") if p.suffix in readers)
    return {str(p.relative_to(folder)): readers[p.suffix](p) for p in files}


def _write_images(folder: Path, classes: int, each: int) -> None:
    from PIL import Image

    data = sb.load_picto("icons")
    for label in range(classes):
        home = folder / f"class_{label:02d}"
        home.mkdir(parents=True)
        for i, row in enumerate((data.labels == label).nonzero().squeeze(1)[:each].tolist()):
            Image.fromarray(data.images[row].numpy()).save(home / f"{i:03d}.png")


@case
def shards() -> Any:
    """extract, map, search, retrieve and report, one after another."""
    with _empty_folder() as here:
        _write_images(here / "images", 8, 6)
        common = ["--quiet", "--workers", 0]
        _run("extract", "images", "out/feats", *common, "--shard-size", 20, "--dtype", "float32")
        _run("extract", "images", "out/half", *common, "--normalize", "--batch-size", 7)
        _run("extract", "images", "out/hidden", *common, "--before-projection")
        _run("map", "out/feats", "out/bridge", "--mapping", "bridge", "--quiet", "--dtype", "float32")
        _run("map", "out/feats", "out/pca", "--mapping", "pca", "--components", 5, "--quiet")
        _run("map", "out/hidden", "out/iso", "--mapping", "isoclip", "--k-top", 9, "--k-bottom", 4, "--quiet")
        _run("map", "out/hidden", "out/narrow", "--mapping", "isoclip", "--k-top", 9, "--k-bottom", 4,
             "--compress", "--quiet")  # fmt: skip
        _run("map", "out/half", "out/file", "--mapping", "out/bridge/mapping.safetensors", "--quiet")
        sb.LinearMap.whitening(draw(1, 400, 192)).save("white.safetensors")
        _run("map", "out/feats", "out/white", "--mapping", "white.safetensors", "--quiet")
        image = "images/class_01/000.png"
        for folder in ("feats", "bridge", "pca"):
            _run("search", f"out/{folder}", "--text", "alarm clock", "a star", "-k", 4,
                 "--json", f"out/text_{folder}.json")  # fmt: skip
        for folder in ("feats", "iso", "white"):
            _run("search", f"out/{folder}", "--image", image, "-k", 4, "--json", f"out/image_{folder}.json")
        folders = [f"out/{name}" for name in ("feats", "bridge", "pca", "iso", "white")]
        _run("retrieve", *folders, "--csv", "out/retrieve.csv", "--json", "out/retrieve.json")
        _run("retrieve", "out/feats", "--queries", "out/half", "--recall-at", 1, 3, "--json", "out/two.json")
        found = _contents(here / "out")
        (here / "report").mkdir()
        _run("report", *folders[:3], "--shots", 1, 2, "--seeds", 2, "--out", "report/report.html")
        tables = {p.name: _table(p) for p in sorted((here / "report").glob("*.csv"))}
        tables = {n: t for n, t in tables.items() if not re.search("timing|backend", n)}
        return {**found, "report": tables}


@case
def invert() -> Any:
    with _empty_folder() as here:
        np.save("texts.npy", draw(1, 5, 192).numpy())
        torch.save(draw(2, 5, 192), "images.pt")
        few = ["--quiet", "--seed", 4]
        _run("invert", "picto:flags", "out/flags.safetensors", "--limit", 6, "--steps", 8,
             "--record-steps", 0, 4, *few)  # fmt: skip
        _run("invert", "images.pt", "out/images.safetensors", "--steps", 5, "--tokens", 2, "--template",
             "a photo of {} in the wild", "--batch-size", 2, *few)  # fmt: skip
        _run("invert", "texts.npy", "out/ovi.safetensors", "--kind", "ovi", "--tokens", 4, "--steps", 4, *few)
        _run("invert", "images.pt", "out/bf16.safetensors", "--steps", 4, "--weights", "bfloat16", *few)
        return _contents(here / "out")


@case
def fewshot() -> Any:
    p = problem(9, 6, 80, 40, 48)
    with _empty_folder() as here:
        text = {"text": p.text, "hidden": p.hidden, "text_projection": p.projection}
        extra = {name: value.numpy() for name, value in text.items()}
        np.savez("train.npz", features=p.shots.numpy(), labels=p.labels.numpy(), **extra)
        np.savez("bare.npz", features=p.shots.numpy(), labels=p.labels.numpy())
        np.savez("val.npz", features=p.validation.numpy(), labels=p.wanted.numpy())
        np.savez("test.npz", features=p.queries.numpy(), labels=p.targets.numpy())
        quick = ["--trials", 9, "--steps", 4, "--preset", "fast", "--no-plot", "--test", "test.npz"]
        twice, once = ["--shots", 1, 2, "--seeds", 2, *quick], ["--shots", 2, "--seeds", 1, *quick]
        _run("fewshot", "--train", "train.npz", *twice, "--out", "out/own")
        _run("fewshot", "--train", "train.npz", "--val", "val.npz", "--sampler", "optuna", *once,
             "--out", "out/val")  # fmt: skip
        _run("fewshot", "--train", "bare.npz", *once, "--out", "out/bare")
        _run("fewshot", "--set", "arrows", *once[:-2], "--out", "out/arrows")
        return _contents(here / "out")


@case
def demo() -> Any:
    with _empty_folder() as here:
        (here / "out").mkdir()
        _run("demo", "--set", "flags", "--shots", 1, 2, "--seeds", 2, "--no-plot", "--json", "out/demo.json")
        return _contents(here / "out")
