"""What is known of the data sets that torchvision has: prompts, readable class names, where splits come from.

The templates are those of CLIP's and CoOp's programs. Class names are torchvision's, read as words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

PREFIX = "torchvision:"
PARTS = ("train", "val", "test")
TEMPLATE = "a photo of a {}."


def _words(name: str) -> str:
    return name.replace("_", " ")


def _lower(name: str) -> str:
    return _words(name).lower()


_EUROSAT = {
    "AnnualCrop": "annual crop land", "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation land", "Highway": "highway or road",
    "Industrial": "industrial buildings", "Pasture": "pasture land", "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings", "River": "river", "SeaLake": "sea or lake",
}  # fmt: skip


def _eurosat(name: str) -> str:
    return _EUROSAT.get(name, _words(name))


def _car(name: str) -> str:
    """The year before the model, as one says it."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model and re.fullmatch(r"\d{4}", year) else name


def _scene(name: str) -> str:
    """ "apartment_building/outdoor" is an outdoor apartment building."""
    return _words(" ".join(reversed(name.split("/"))))


class Entry(NamedTuple):
    """One data set.

    Args:
        base: its folder below the root. images: where its image files lie, below the base; CoOp's split files
            are relative to it.
        parts: the official splits. readable: a class name in words. templates: prompts around it.
        published: its name in `fewshot.published`, "" where the authors have none.
        splits: where the parts come from, for people.
    """

    base: str
    images: str
    parts: tuple[str, ...]
    readable: Callable[[str], str]
    templates: tuple[str, ...]
    published: str
    splits: str


_NO_SPLIT = "no official split"
ENTRIES: dict[str, Entry] = {
    "ImageNet": Entry("", "", ("train", "test"), _words, (TEMPLATE,), "imagenet",
                      "official train; the official validation images are the test part"),
    "Caltech101": Entry("caltech101", "101_ObjectCategories", (), _lower, (TEMPLATE,), "caltech101",
                        _NO_SPLIT),
    "OxfordIIITPet": Entry("oxford-iiit-pet", "images", ("train", "test"), _words,
                           ("a photo of a {}, a type of pet.",), "oxford_pets", "official trainval and test"),
    "StanfordCars": Entry("stanford_cars", "", ("train", "test"), _car, (TEMPLATE,), "stanford_cars",
                          "official train and test"),
    "Flowers102": Entry("flowers-102", "jpg", PARTS, _words, ("a photo of a {}, a type of flower.",),
                        "oxford_flowers", "official train, val and test"),
    "Food101": Entry("food-101", "images", ("train", "test"), _words, ("a photo of {}, a type of food.",),
                     "food101", "official train and test"),
    "FGVCAircraft": Entry("fgvc-aircraft-2013b", "data/images", PARTS, _words,
                          ("a photo of a {}, a type of aircraft.",), "fgvc",
                          "official train, val and test of the variants"),
    "SUN397": Entry("SUN397", "", (), _scene, (TEMPLATE,), "sun397", _NO_SPLIT),
    "DTD": Entry("dtd/dtd", "images", PARTS, _words, ("{} texture.",), "dtd",
                 "official train, val and test, partition 1"),
    "EuroSAT": Entry("eurosat/2750", "", (), _eurosat, ("a centered satellite photo of {}.",), "eurosat",
                     _NO_SPLIT),
}  # fmt: skip
UNFETCHED = {
    "ImageNet": "its archives are given on request: https://image-net.org",
    "StanfordCars": "the address that torchvision knew is gone",
}


class Asked(NamedTuple):
    """A data set as the user named it: ``name[part,part]``."""

    name: str
    parts: tuple[str, ...]  # empty: all


def asked(function: str, given: str, prefix: str) -> Asked:
    """The name and the parts of ``prefix:name[parts]``."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", given.removeprefix(prefix))
    if match is None:
        raise ValueError(
            f"{function}: --dataset must be {prefix}NAME or {prefix}NAME[PART], got '{given}'; write for "
            f"example {prefix}{'DTD[test]' if prefix == PREFIX else 'owner/name[test]'}"
        )
    parts = tuple(word.strip() for word in (match[2] or "").split(",") if word.strip())
    return Asked(match[1], parts)


def unique_names(raw: list[str], readable: Callable[[str], str]) -> list[str]:
    """Class names in words; where two are the same, each also carries what the files call it."""
    names = [readable(name) for name in raw]
    return [
        f"{name} ({raw[i]})" if names.count(name) > 1 and name != raw[i] else name
        for i, name in enumerate(names)
    ]


def in_prompt(label: str) -> str:
    """A class label as prompts have it: without underscores and the WordNet id that tells two apart."""
    return re.sub(r" \(n\d{8}\)$", "", label).replace("_", " ")
