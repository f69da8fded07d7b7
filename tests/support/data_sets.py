"""Tiny data sets in the folders and files that torchvision's classes read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import semobridge_ext as sb

CLASSES = ("camera", "heart", "shopping_cart", "sun")  # icons that the embedded CLIP knows
SPLITS: dict[str, tuple[str, ...]] = {
    "OxfordIIITPet": ("train", "test"), "DTD": ("train", "val", "test"), "EuroSAT": (),
    "Flowers102": ("train", "val", "test"), "Food101": ("train", "test"), "Caltech101": (),
    "FGVCAircraft": ("train", "val", "test"), "StanfordCars": ("train", "test"), "SUN397": (),
    "ImageNet": ("train", "test"),
}  # fmt: skip


@cache
def _icons() -> sb.data.PictoDataset:
    return sb.load_picto("icons")


@cache
def _drawings(name: str) -> list[bytes]:
    """The drawings of an icon as JPEGs."""
    from PIL import Image

    data, found = _icons(), []
    label = data.class_names.index(name.replace("_", " "))
    for row in (data.labels == label).nonzero().flatten().tolist():
        file = io.BytesIO()
        Image.fromarray(data.images[row].numpy()).save(file, "JPEG", quality=95)
        found.append(file.getvalue())
    return found


def drawing(name: str, number: int) -> bytes:
    """A JPEG of a class; numbers beyond its drawings begin anew."""
    found = _drawings(name)
    return found[number % len(found)]


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


class Images:
    """Counts the images of each class, so that every part has its own."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self._next = list(classes), dict.fromkeys(classes, 0)

    def take(self, name: str, count: int) -> list[tuple[int, bytes]]:
        first = self._next[name]
        self._next[name] += count
        return [(i, drawing(name, i)) for i in range(first, first + count)]


def _pets(root: Path, images: Images, each: dict[str, int]) -> None:
    base = root / "oxford-iiit-pet"
    for part, count in each.items():
        lines = []
        for label, name in enumerate(images.classes, 1):
            for i, data in images.take(name, count):
                put(base / "images" / f"{name}_{i}.jpg", data)
                lines.append(f"{name}_{i} {label} 1 1")
        put(base / "annotations" / f"{'trainval' if part == 'train' else part}.txt", "\n".join(lines) + "\n")


def _dtd(root: Path, images: Images, each: dict[str, int]) -> None:
    base = root / "dtd" / "dtd"
    for part, count in each.items():
        lines = []
        for name in images.classes:
            for i, data in images.take(name, count):
                put(base / "images" / name / f"{name}_{i:04d}.jpg", data)
                lines.append(f"{name}/{name}_{i:04d}.jpg")
        put(base / "labels" / f"{part}1.txt", "\n".join(lines) + "\n")


def _folders(below: str, pattern: str) -> Callable[[Path, Images, dict[str, int]], None]:
    def write(root: Path, images: Images, each: dict[str, int]) -> None:
        for name in images.classes:
            for i, data in images.take(name, sum(each.values())):
                put(root / below / name / pattern.format(name, i + 1), data)

    return write


def _caltech(root: Path, images: Images, each: dict[str, int]) -> None:
    _folders("caltech101/101_ObjectCategories", "image_{1:04d}.jpg")(root, images, each)
    put(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg", drawing(CLASSES[0], 0))


def _flowers(root: Path, images: Images, each: dict[str, int]) -> None:
    from scipy.io import savemat

    base, labels, sets = root / "flowers-102", [], {}  # type: Path, list[int], dict[str, list[int]]
    for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for label, name in enumerate(images.classes, 1):
            for _, data in images.take(name, each[part]):
                labels.append(label)
                sets.setdefault(key, []).append(len(labels))
                put(base / "jpg" / f"image_{len(labels):05d}.jpg", data)
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(base / "setid.mat", {key: np.array([ids], np.uint16) for key, ids in sets.items()})


def _food(root: Path, images: Images, each: dict[str, int]) -> None:
    base = root / "food-101"
    for part, count in each.items():
        listed: dict[str, list[str]] = {}
        for name in reversed(images.classes):
            for i, data in images.take(name, count):
                put(base / "images" / name / f"{i}.jpg", data)
                listed.setdefault(name, []).append(f"{name}/{i}")
        put(base / "meta" / f"{part}.json", json.dumps(listed))


def _aircraft(root: Path, images: Images, each: dict[str, int]) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    put(base / "variants.txt", "\n".join(images.classes) + "\n")
    for part, count in each.items():
        lines = []
        for label, name in enumerate(images.classes):
            for i, data in images.take(name, count):
                put(base / "images" / f"{label:02d}{i:05d}.jpg", data)
                lines.append(f"{label:02d}{i:05d} {name}")
        put(base / f"images_variant_{part}.txt", "\n".join(lines) + "\n")


def _cars(root: Path, images: Images, each: dict[str, int]) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.empty((1, len(images.classes)), object)
    names[0] = [f"{name} 20{i:02d}" for i, name in enumerate(images.classes)]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    for part, count in each.items():
        rows: list[tuple[int, str]] = []
        for label, name in enumerate(images.classes, 1):
            for _, data in images.take(name, count):
                rows.append((label, f"{len(rows) + 1:05d}.jpg"))
                put(base / f"cars_{part}" / rows[-1][1], data)
        notes = np.array([rows], dtype=[("class", object), ("fname", object)])
        file = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        savemat(base / file, {"annotations": notes})


def _scenes(root: Path, images: Images, each: dict[str, int]) -> None:
    base, names = root / "SUN397", []
    for name in images.classes:
        names.append(f"/{name[0]}/{name}" + ("/outdoor" if name == "heart" else ""))
        for i, data in images.take(name, sum(each.values())):
            put(base / names[-1][1:] / f"sun_{name}{i:04d}.jpg", data)
    put(base / "ClassName.txt", "\n".join(names) + "\n")


def _imagenet(root: Path, images: Images, each: dict[str, int]) -> None:
    """Two of the classes have one name."""
    wnids = [f"n{i:08d}" for i in range(len(images.classes))]
    words = [name.replace("_", " ") for name in images.classes]
    words[1] = words[0]
    for part, count in each.items():
        for wnid, name in zip(wnids, images.classes, strict=True):
            for i, data in images.take(name, count):
                put(root / ("train" if part == "train" else "val") / wnid / f"{wnid}_{i}.JPEG", data)
    known = {wnid: (word, "another word") for wnid, word in zip(wnids, words, strict=True)}
    torch.save((known, []), root / "meta.bin")


_WRITERS: dict[str, Callable[[Path, Images, dict[str, int]], None]] = {
    "OxfordIIITPet": _pets, "DTD": _dtd, "EuroSAT": _folders("eurosat/2750", "{0}_{1}.jpg"),
    "Flowers102": _flowers, "Food101": _food, "Caltech101": _caltech, "FGVCAircraft": _aircraft,
    "StanfordCars": _cars, "SUN397": _scenes, "ImageNet": _imagenet,
}  # fmt: skip


def write(root: Path, name: str, classes: Sequence[str] = CLASSES, **each: int) -> Path:
    """A data set below the root: `each` images a class in every part that it has."""
    counts = {part: each.get(part, 2) for part in SPLITS[name] or ("train", "val", "test")}
    _WRITERS[name](root, Images(classes), counts)
    return root


def own(name: str, root: Path, part: str) -> tuple[list[tuple[str, int]], list[Any]]:
    """What torchvision's class makes of it: (path, class) of a part, and the classes."""
    from torchvision import datasets

    words = {"OxfordIIITPet": {"train": "trainval"}, "ImageNet": {"test": "val"}}
    given = {"split": words.get(name, {}).get(part, part)} if part else {}
    found = getattr(datasets, name)(str(root), **given)
    if name == "Caltech101":
        home = root / "caltech101" / "101_ObjectCategories"
        rows = [
            (str(home / found.categories[y] / f"image_{i:04d}.jpg"), y)
            for i, y in zip(found.index, found.y, strict=True)
        ]
        return rows, found.categories
    if name in ("EuroSAT", "ImageNet"):
        return list(found.samples), found.classes
    if name == "StanfordCars":
        return [(path, int(label)) for path, label in found._samples], found.classes
    files = found._images if name == "OxfordIIITPet" else found._image_files
    return [(str(f), int(y)) for f, y in zip(files, found._labels, strict=True)], found.classes
