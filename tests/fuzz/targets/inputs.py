"""What users hand to a command: lists, splits, prompts, data sets, feature files; its results; thresholds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.cli import fewshot_problems, fewshot_store
from semobridge_ext.cli.inversion_input import read_features
from semobridge_ext.cli.listing import first_difference
from semobridge_ext.cli.named.prompt_file import read_prompts
from semobridge_ext.cli.named.split_file import read_split
from semobridge_ext.cli.named.torchvision_set import Place
from semobridge_ext.cli.sources import open_source
from semobridge_ext.runtime import thresholds
from tests.fuzz.runner import Target
from tests.fuzz.targets.common import P, rows

INVERT, FEWSHOT = ("invert",), ("fewshot",)


# -- lists and data sets -----------------------------------------------------------------------------


def lists(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def use_list(path: Path) -> Sequence[Tensor]:
    listing, old = path.parent / "inputs.jsonl", path.parent / "old.jsonl"
    source = open_source("extract", str(path), listing, label="parent", column=None)
    if not old.exists():
        shutil.copy(listing, old)
    first_difference(old, listing)
    found = sum(1 for _ in source.items(0))
    return [torch.tensor(bool(found >= 0))]


def make_split(folder: Path) -> Path:
    lines = {"train": [["a/1.jpg", 0, "a"], ["b/1.jpg", 1, "b"]], "val": [], "test": [["a/2.jpg", 0, "a"]]}
    (folder / "split.json").write_text(json.dumps(lines))
    return folder / "split.json"


def use_split(path: Path) -> Sequence[Tensor]:
    found = read_split("extract", path)
    assert all(one.path and one.name and one.part for one in found)
    return [torch.tensor(bool(found))]


def make_pets(folder: Path) -> Path:
    """A data set in torchvision's folders; its images are not opened."""
    base = folder / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (base / name).mkdir(parents=True)
    for part, numbers in (("trainval", (1, 2)), ("test", (3, 4))):
        lines = [f"{name}_{i} {label} 1 1" for label, name in ((1, "a"), (2, "b")) for i in numbers]
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            (base / "images" / f"{line.split()[0]}.jpg").touch()
    return base / "annotations" / "trainval.txt"


def use_pets(path: Path) -> Sequence[Tensor]:
    root = path.parents[2]
    place = Place(root)
    given = "torchvision:OxfordIIITPet"
    source = open_source("extract", given, root / "list", label="parent", column=None, place=place)
    found = [(item.path, item.fields()["label"]) for item in source.items(0)]
    assert all(name.startswith(str(root)) and label for name, label in found)
    return [torch.tensor(bool(found))]


def make_prompts(folder: Path) -> Path:
    (folder / "prompts.json").write_text(json.dumps({"a": ["An a.", "One a."], "B_b": ["A b."]}))
    return folder / "prompts.json"


def use_prompts(path: Path) -> Sequence[Tensor]:
    found = read_prompts("fewshot", path, ["a", "b b"])
    assert all(sentence.encode() for sentences in found.values() for sentence in sentences)
    return [torch.tensor(len(found) == 2)]


# -- feature files -----------------------------------------------------------------------------------


def features_file(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        values = {
            "features": P.shots,
            "labels": P.labels,
            "text": P.text,
            "hidden": P.hidden,
            "text_projection": P.projection,
        }
        path = folder / f"train{suffix}"
        if suffix == ".npz":
            np.savez(path, **{k: v.numpy() for k, v in values.items()})
        else:
            from safetensors.torch import save_file

            save_file(values, path, {"format": "semobridge no format"})
        np.savez(folder / "test.npz", features=P.queries.numpy(), labels=P.targets.numpy())
        return path

    return make


def use_problem(path: Path) -> Sequence[Tensor]:
    found = fewshot_problems.of_files(path, None, path.parent / "test.npz")
    return [found.train[0].isfinite(), found.val[1], found.test[1]]


def make_npy(folder: Path) -> Path:
    np.save(folder / "file.npy", rows(4).numpy(), allow_pickle=False)
    return folder / "file.npy"


def make_pt(folder: Path) -> Path:
    torch.save(rows(4), folder / "file.pt")
    return folder / "file.pt"


def make_features(folder: Path) -> Path:
    path = folder / "file.safetensors"
    save_file({"features": rows(4)}, path, {"format": "semobridge no format"})
    return path


def use_features(path: Path) -> Sequence[Tensor]:
    return [read_features(str(path), "features").float()]


# -- results and thresholds --------------------------------------------------------------------------


def make_results(folder: Path) -> Path:
    problem = fewshot_problems.of_files(features_file(".npz")(folder), None, folder / "test.npz")
    store = fewshot_store.Store(folder / "results.jsonl")
    store.open(problem, {"a": 1})
    store.add(problem, 1, 0, [{"set": "train", "shots": 1, "seed": 0, "method": "m", "accuracy": 0.5}])
    return folder / "results.jsonl"


def use_results(path: Path) -> Sequence[Tensor]:
    problem = fewshot_problems.of_files(path.parent / "train.npz", None, path.parent / "test.npz")
    found = fewshot_store.Store(path).open(problem, {"a": 1})
    for records in found.values():
        for record in records:
            assert 0 <= record["accuracy"] <= 1 and isinstance(record["method"], str)
    return [torch.tensor(len(found) >= 0)]


def make_thresholds(folder: Path) -> Path:
    path = folder / "thresholds.json"
    thresholds.write(path, "card", sb.__version__, {"topk float32": [(0, "eager"), (1000, "native")]})
    return path


def use_thresholds(path: Path) -> Sequence[Tensor]:
    thresholds._name = lambda device: "card"  # type: ignore[assignment]
    os.environ[thresholds.VARIABLE] = str(path)
    thresholds.measured.cache_clear()
    for size in (1, 10**6):
        backend = thresholds.choose("topk", torch.device("cuda"), torch.float32, size)
        assert backend in ("eager", "native", "triton", None), backend
    thresholds.write(path, "other", sb.__version__, {})
    return [torch.tensor(len(thresholds.read(path)) > 0)]


TARGETS = [
    Target("extract, a list", "bytes", ("extract",), lists("list.txt", "a.png\nü.png\n"), use_list),
    Target(
        "extract, a .csv",
        "bytes",
        ("extract",),
        lists("list.csv", 'path,label\na.png,x\n"b, c.png","y\nz"\n'),
        use_list,
    ),
    Target("extract, a split file", "json", ("extract",), make_split, use_split),
    Target("extract, trainval.txt", "bytes", ("extract",), make_pets, use_pets, depth=2),
    Target("fewshot, prompts", "json", FEWSHOT, make_prompts, use_prompts),
    Target(
        "invert, .safetensors",
        "safetensors",
        INVERT,
        make_features,
        use_features,
        nan=True,
        free=("shape",),
    ),
    Target("invert, .npy", "npy", INVERT, make_npy, use_features, nan=True, free=("shape",)),
    Target("invert, .pt", "bytes", INVERT, make_pt, use_features, free=("flip",)),
    Target("fewshot, .npz", "bytes", FEWSHOT, features_file(".npz"), use_problem),
    Target(
        "fewshot, .safetensors",
        "safetensors",
        FEWSHOT,
        features_file(".safetensors"),
        use_problem,
        free=("labels",),
    ),
    Target("fewshot, results.jsonl", "lines", FEWSHOT, make_results, use_results),
    Target("thresholds", "json", ("calibrate",), make_thresholds, use_thresholds),
]
