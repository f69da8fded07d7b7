"""torchvision's folder formats, read from the files themselves: classes, and (image, class) of each part.

Nothing is decoded or kept: a reader yields paths in a fixed order, from the files that torchvision's own
classes read. What it finds must be there: the caller checks every image.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext import _files

Row = tuple[Path, int]  # image, class from 0
_JPEGS = (".jpg", ".jpeg")


class Odd(ValueError):
    """A file of a data set that says something else than its format has."""

    def __init__(self, path: Path, got: str) -> None:
        super().__init__(f"{path}: {got}")
        self.path, self.got = path, got


class Format(NamedTuple):
    """How one data set lies on disk."""

    needs: tuple[str, ...]  # files and folders that must be there, below the base
    classes: Callable[[Path], list[str]]  # as the files have them
    rows: Callable[[Path, str], Iterator[Row]]  # of a part; "": of all


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def _jpegs(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _JPEGS)


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def _code(path: Path, number: int, codes: dict[str, int], name: str) -> int:
    if name not in codes:
        raise Odd(path, f"the unknown class '{name}' in line {number}")
    return codes[name]


def _codes(names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # SciPy's reader raises every kind at damaged bytes
        raise Odd(path, f"{type(error).__name__}: {error}") from error


# -- one a data set ------------------------------------------------------------------------------------


def _pet_lines(base: Path, part: str) -> Iterator[tuple[str, int]]:
    path = base / "annotations" / f"{'trainval' if part == 'train' else part}.txt"
    for number, line in _lines(path):
        words = line.split()
        if len(words) != 4 or not words[1].isdecimal() or int(words[1]) < 1:
            raise Odd(path, f"'{line}' in line {number}, where an image, a class from 1, and two more belong")
        yield words[0], int(words[1]) - 1


def _pet_classes(base: Path) -> list[str]:
    path, found = base / "annotations" / "trainval.txt", {}  # type: Path, dict[int, str]
    for image, label in _pet_lines(base, "train"):
        name = " ".join(word.title() for word in image.rpartition("_")[0].split("_"))
        if found.setdefault(label, name) != name:
            raise Odd(path, f"class {label + 1} of {found[label]} and {name}")
    if sorted(found) != list(range(len(found))):
        raise Odd(path, f"{len(found)} classes up to {max(found) + 1}")
    return [found[i] for i in range(len(found))]


def _pet_rows(base: Path, part: str) -> Iterator[Row]:
    count = len(_pet_classes(base))
    for image, label in _pet_lines(base, part):
        if label >= count:
            raise Odd(base / "annotations" / f"{part}.txt", f"class {label + 1} of {count}")
        yield base / "images" / f"{image}.jpg", label


def _dtd_rows(base: Path, part: str) -> Iterator[Row]:
    path, codes = base / "labels" / f"{part}1.txt", _codes(_dtd_classes(base))
    for number, line in _lines(path):
        folder, slash, name = line.partition("/")
        if not slash:
            raise Odd(path, f"'{line}' in line {number}, where class/image belongs")
        yield base / "images" / folder / name, _code(path, number, codes, folder)


def _dtd_classes(base: Path) -> list[str]:
    return sorted({line.partition("/")[0] for _, line in _lines(base / "labels" / "train1.txt")})


def _folder_rows(base: Path, part: str) -> Iterator[Row]:
    for label, name in enumerate(_folders(base)):
        for path in _jpegs(base / name):
            yield path, label


def _caltech_classes(base: Path) -> list[str]:
    return [n for n in _folders(base / "101_ObjectCategories") if n != "BACKGROUND_Google"]


def _caltech_rows(base: Path, part: str) -> Iterator[Row]:
    for label, name in enumerate(_caltech_classes(base)):
        for path in _jpegs(base / "101_ObjectCategories" / name):
            yield path, label


def _flower_classes(base: Path) -> list[str]:
    from torchvision.datasets import Flowers102

    names = getattr(Flowers102, "classes", None)
    if names is None:
        raise ImportError(
            "Flowers102: torchvision must know the names of its classes, got an older one; "
            "pip install --upgrade torchvision"
        )
    return list(names)


def _flower_rows(base: Path, part: str) -> Iterator[Row]:
    key = {"train": "trnid", "val": "valid", "test": "tstid"}[part]
    labels, sets = _mat(base / "imagelabels.mat"), _mat(base / "setid.mat")
    if "labels" not in labels or key not in sets:
        raise Odd(base / "setid.mat", f"no '{key}', or no 'labels' in imagelabels.mat")
    count, known = len(_flower_classes(base)), labels["labels"].reshape(-1).tolist()
    for image in sets[key].reshape(-1).tolist():
        if not 1 <= image <= len(known) or not 1 <= known[image - 1] <= count:
            raise Odd(base / "setid.mat", f"image {image} of {len(known)}, or its class beyond {count}")
        yield base / "jpg" / f"image_{image:05d}.jpg", known[image - 1] - 1


def _food_file(base: Path, part: str) -> dict[str, list[str]]:
    path = base / "meta" / f"{part}.json"
    try:
        found = _files.parse_json(path.read_bytes())
    except ValueError as error:
        raise Odd(path, f"no JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise Odd(path, "no object of lists")
    return found


def _food_classes(base: Path) -> list[str]:
    return sorted(_food_file(base, "train"))


def _food_rows(base: Path, part: str) -> Iterator[Row]:
    path, codes = base / "meta" / f"{part}.json", _codes(_food_classes(base))
    for name, images in _food_file(base, part).items():
        for image in images:
            if not isinstance(image, str):
                raise Odd(path, f"{json.dumps(image)[:40]}, where the name of an image belongs")
            yield base / "images" / f"{image}.jpg", _code(path, 1, codes, name)


def _aircraft_classes(base: Path) -> list[str]:
    return [line for _, line in _lines(base / "data" / "variants.txt")]


def _aircraft_rows(base: Path, part: str) -> Iterator[Row]:
    path, codes = base / "data" / f"images_variant_{part}.txt", _codes(_aircraft_classes(base))
    for number, line in _lines(path):
        image, _, name = line.partition(" ")
        yield base / "data" / "images" / f"{image}.jpg", _code(path, number, codes, name)


def _car_classes(base: Path) -> list[str]:
    path = base / "devkit" / "cars_meta.mat"
    found = _mat(path)
    if "class_names" not in found:
        raise Odd(path, "no 'class_names'")
    return [str(name) for name in found["class_names"].tolist()]


def _car_rows(base: Path, part: str) -> Iterator[Row]:
    test = part == "test"
    path = base / ("cars_test_annos_withlabels.mat" if test else "devkit/cars_train_annos.mat")
    found, count = _mat(path), len(_car_classes(base))
    if "annotations" not in found:
        raise Odd(path, "no 'annotations'")
    for one in found["annotations"].reshape(-1):
        try:
            image, label = str(one["fname"]), int(one["class"])
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise Odd(path, "an annotation without 'fname' and 'class'") from error
        if not 1 <= label <= count:
            raise Odd(path, f"class {label} of {count}")
        yield base / ("cars_test" if test else "cars_train") / image, label - 1


def _scene_classes(base: Path) -> list[str]:
    path = base / "ClassName.txt"
    for number, line in _lines(path):
        if line[:1] != "/" or line[2:3] != "/" or ".." in line.split("/"):
            raise Odd(path, f"'{line}' in line {number}, where /letter/class belongs")
    return [line[3:] for _, line in _lines(path)]


def _scene_rows(base: Path, part: str) -> Iterator[Row]:
    _scene_classes(base)
    for label, (_, line) in enumerate(_lines(base / "ClassName.txt")):
        for path in _jpegs(base / line[1:]):
            yield path, label


def _imagenet_names(base: Path) -> dict[str, tuple[str, ...]]:
    """What torchvision makes of the devkit: the synonyms of every WordNet id."""
    import torch

    path = base / "meta.bin"
    try:
        with warnings.catch_warnings():
            # About the pickle protocol of a file that another program wrote: it is refused below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            names, _ = torch.load(path, weights_only=True)
        return {str(key): tuple(str(v) for v in value) for key, value in names.items()}
    except Exception as error:  # torch's restricted loader raises several kinds at other bytes
        raise Odd(path, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error


def _imagenet_classes(base: Path) -> list[str]:
    """The ids: `imagenet_words` has their names."""
    return _folders(base / "train")


def imagenet_words(base: Path) -> Callable[[str], str]:
    names = _imagenet_names(base)

    def words(wnid: str) -> str:
        if not names.get(wnid):
            raise Odd(base / "meta.bin", f"no name of {wnid}")
        return names[wnid][0]

    return words


def _imagenet_rows(base: Path, part: str) -> Iterator[Row]:
    codes = _codes(_imagenet_classes(base))
    home = base / ("train" if part == "train" else "val")
    for name in _folders(home):
        for path in _jpegs(home / name):
            yield path, _code(home, 1, codes, name)


FORMATS: dict[str, Format] = {
    "ImageNet": Format(("meta.bin", "train", "val"), _imagenet_classes, _imagenet_rows),
    "Caltech101": Format(("101_ObjectCategories",), _caltech_classes, _caltech_rows),
    "OxfordIIITPet": Format(
        ("images", "annotations/trainval.txt", "annotations/test.txt"), _pet_classes, _pet_rows
    ),
    "StanfordCars": Format(
        ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat",
         "cars_train", "cars_test"), _car_classes, _car_rows,
    ),
    "Flowers102": Format(("jpg", "imagelabels.mat", "setid.mat"), _flower_classes, _flower_rows),
    "Food101": Format(("images", "meta/train.json", "meta/test.json"), _food_classes, _food_rows),
    "FGVCAircraft": Format(
        ("data/images", "data/variants.txt", "data/images_variant_train.txt", "data/images_variant_val.txt",
         "data/images_variant_test.txt"),
        _aircraft_classes, _aircraft_rows,
    ),
    "SUN397": Format(("ClassName.txt",), _scene_classes, _scene_rows),
    "DTD": Format(
        ("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"), _dtd_classes, _dtd_rows
    ),
    "EuroSAT": Format((".",), _folders, _folder_rows),
}  # fmt: skip
