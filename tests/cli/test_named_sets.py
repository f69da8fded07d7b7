"""Data sets by name: torchvision's formats against torchvision's own classes, prompts, parts, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from semobridge_ext.cli.named import catalogue, split_file
from semobridge_ext.cli.named.parts import parts_of
from semobridge_ext.cli.named.prompt_file import read_prompts
from semobridge_ext.cli.named.torchvision_set import Place
from semobridge_ext.cli.sources import Source, open_source
from tests.support.data_sets import CLASSES, SPLITS, own, put, write


def source(given: str, home: Path, **place: object) -> Source:
    return open_source(
        "extract", given, home / "inputs.jsonl", label="parent", column=None, place=Place(**place)
    )


def listed(given: str, home: Path, **place: object) -> list[tuple[str, dict[str, str | None]]]:
    return [(item.path, item.fields()) for item in source(given, home, **place).items(0)]


# -- formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SPLITS))
def test_every_format_is_read_as_torchvision_reads_it(name: str, tmp_path: Path, monkeypatch) -> None:
    """Paths and classes of every part, with another number of images in each."""
    from torchvision import datasets

    # The two small files of Flowers102 are compared with digests that these cannot have.
    bare = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", bare)
    root = write(tmp_path / "data", name, train=3, val=2, test=1)
    found = listed(f"torchvision:{name}", tmp_path, root=root)
    assert [f["split"] for _, f in found] == sorted(
        (f["split"] for _, f in found), key=lambda s: ("train", "val", "test", None).index(s)
    )
    for part in SPLITS[name] or ("",):
        want, classes = own(name, root, part)
        mine = [(path, int(f["class_index"] or 0)) for path, f in found if f["split"] == (part or None)]
        assert sorted(mine) == sorted((os.path.abspath(path), label) for path, label in want) and mine
        assert len(classes) in (4, 102)
        if part:
            assert [path for path, _ in listed(f"torchvision:{name}[{part}]", tmp_path, root=root)] == [
                path for path, _ in mine
            ]
    assert len(found) == 4 * {0: 6, 2: 4, 3: 6}[len(SPLITS[name])]


NAMES = {
    "OxfordIIITPet": ["Camera", "Heart", "Shopping Cart", "Sun"],
    "StanfordCars": ["2000 camera", "2001 heart", "2002 shopping_cart", "2003 sun"],
    "SUN397": ["camera", "outdoor heart", "shopping cart", "sun"],
    "ImageNet": ["camera (n00000000)", "camera (n00000001)", "shopping cart", "sun"],
    "Food101": ["camera", "heart", "shopping cart", "sun"],
}


@pytest.mark.parametrize("name", list(NAMES))
def test_class_names_are_words(name: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", name, train=1, val=1, test=1)
    found = {
        int(f["class_index"] or 0): f["label"] for _, f in listed(f"torchvision:{name}", tmp_path, root=root)
    }
    assert [found[i] for i in range(4)] == NAMES[name]


def test_what_classes_are_called_in_prompts() -> None:
    assert catalogue.in_prompt("crane (n02012849)") == "crane" and catalogue.in_prompt("a_b (c)") == "a b (c)"
    assert catalogue.ENTRIES["EuroSAT"].readable("SeaLake") == "sea or lake"
    assert catalogue.ENTRIES["DTD"].templates == ("{} texture.",)
    assert all("{}" in t for e in catalogue.ENTRIES.values() for t in e.templates)


def test_names_are_completed_or_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "DTD")
    assert listed("torchvision:dtd", tmp_path, root=root)
    with pytest.raises(
        ValueError, match="--dataset must be one of 10 known names, got 'DTT'; did you mean DTD"
    ):
        source("torchvision:DTT", tmp_path, root=root)
    with pytest.raises(ValueError, match=r"must name parts of DTD, got 'valid'; it has train, val, test"):
        source("torchvision:DTD[valid]", tmp_path, root=root)
    with pytest.raises(ValueError, match=r"must be torchvision:NAME or torchvision:NAME\[PART\], got"):
        source("torchvision:DTD[", tmp_path, root=root)
    with pytest.raises(ValueError, match="--root must say where data sets lie, got none for torchvision:DTD"):
        source("torchvision:DTD", tmp_path)


# -- what is missing or damaged --------------------------------------------------------------------------


def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    told = r"--root must hold EuroSAT, got .* without eurosat/2750 \(1 of 1 are missing\); pass --download"
    with pytest.raises(FileNotFoundError, match=told):
        source("torchvision:EuroSAT", tmp_path, root=tmp_path)
    with pytest.raises(
        NotImplementedError, match="must meet a data set that can be fetched, got StanfordCars"
    ):
        source("torchvision:StanfordCars", tmp_path, root=tmp_path, download=True)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "OxfordIIITPet")
    for name in ("heart_0", "sun_3"):
        (root / "oxford-iiit-pet" / "images" / f"{name}.jpg").unlink()
    told = (
        r"--root must hold every image of OxfordIIITPet, got none at \S*heart_0.jpg \(2 of 16 are missing\)"
    )
    with pytest.raises(FileNotFoundError, match=told):
        source("torchvision:OxfordIIITPet", tmp_path, root=root)


DAMAGES = [
    ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", b"heart_1 2 1\n", "'heart_1 2 1' in line 1"),
    ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", b"heart_1 9 1 1\n", "class 9 of 4"),
    (
        "OxfordIIITPet",
        "oxford-iiit-pet/annotations/trainval.txt",
        b"a_1 1 1 1\nb_1 1 1 1\n",
        "class 1 of A and B",
    ),
    ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", b"\xff\xfe", "UnicodeDecodeError"),
    ("OxfordIIITPet", "oxford-iiit-pet/annotations/test.txt", b"../../x_1 1 1 1\n", "x_1.jpg, outside of it"),
    ("DTD", "dtd/dtd/labels/val1.txt", b"heart.jpg\n", "'heart.jpg' in line 1"),
    ("DTD", "dtd/dtd/labels/val1.txt", b"tree/tree_1.jpg\n", "the unknown class 'tree' in line 1"),
    ("Food101", "food-101/meta/test.json", b"{", "no JSON"),
    ("Food101", "food-101/meta/test.json", b'{"heart": [3]}', "3, where the name of an image belongs"),
    ("FGVCAircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", b"0000001 kite\n", "class 'kite'"),
    ("Flowers102", "flowers-102/setid.mat", b"MATLAB 5.0 but not really", "setid.mat"),
    ("StanfordCars", "stanford_cars/devkit/cars_meta.mat", b"", "cars_meta.mat"),
    ("SUN397", "SUN397/ClassName.txt", b"/a/../../etc\n", "'/a/../../etc' in line 1"),
    ("ImageNet", "meta.bin", b"\x80\x04K\x01.", "meta.bin"),
]


@pytest.mark.parametrize(("name", "file", "data", "told"), DAMAGES)
def test_damaged_files_are_named(name: str, file: str, data: bytes, told: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", name)
    (root / file).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        source(f"torchvision:{name}", tmp_path, root=root)
    assert re.match(
        rf"extract: .* must be as {name} comes, got .*; unpack the archive again", str(error.value)
    )


# -- CoOp's split files ----------------------------------------------------------------------------------


def test_a_split_file_names_parts_and_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "Caltech101", train=2, val=1, test=1)
    lines = {
        part: [[f"{name}/image_{i:04d}.jpg", label, f"a {name}"] for label, name in enumerate(CLASSES)]
        for i, part in enumerate(("train", "val", "test"), 1)
    }
    put(tmp_path / "split.json", json.dumps(lines))
    found = listed("torchvision:Caltech101", tmp_path, root=root, split=tmp_path / "split.json")
    assert [f["split"] for _, f in found] == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    home = root / "caltech101" / "101_ObjectCategories"
    assert found[6] == (
        str(home / "shopping_cart" / "image_0002.jpg"),
        {"label": "a shopping_cart", "class_index": "2", "split": "val"},
    )
    assert (
        listed(str(home), tmp_path, split=tmp_path / "split.json") == found
    )  # a plain folder takes one, too
    told = r"must hold every image of Caltech101, got none at \S*/sun/image_0003.jpg \(1 of 12"
    (home / "sun" / "image_0003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=told):
        source("torchvision:Caltech101", tmp_path, root=root, split=tmp_path / "split.json")


GOOD = {"train": [["a.jpg", 0, "x"]], "val": [], "test": [["b.jpg", 1, "y"]]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ([], "be an object of train, val and test, got list"),
        ({"train": []}, "be an object of train, val and test, got train"),
        ({**GOOD, "val": {}}, "hold a list as val, got dict"),
        ({**GOOD, "val": [["a.jpg", 0]]}, r"\[path, label from 0, class name\], got another line 0 of val"),
        ({**GOOD, "val": [["a.jpg", -1, "x"]]}, "another line 0 of val"),
        ({**GOOD, "val": [["a.jpg", True, "x"]]}, "another line 0 of val"),
        ({**GOOD, "val": [["a.jpg", 0, " "]]}, "another line 0 of val"),
        ({**GOOD, "val": [["/etc/passwd", 0, "x"]]}, "name images below the data set's folder"),
        ({**GOOD, "val": [["a/../../b.jpg", 0, "x"]]}, "name images below the data set's folder"),
        ({**GOOD, "val": [["a\\..\\b.jpg", 0, "x"]]}, "name images below the data set's folder"),
        ({**GOOD, "val": [["a.jpg", 0, "z"]]}, "one name, got 'x' and 'z' for 0 in line 0 of val"),
        ({**GOOD, "val": [["a.jpg", 2, "x"]]}, "give every label a name of its own"),
        ({"train": [], "val": [], "test": []}, "name images, got none"),
    ],
)  # fmt: skip
def test_crafted_split_files_are_refused(changed: object, told: str, tmp_path: Path) -> None:
    put(tmp_path / "split.json", json.dumps(GOOD))
    assert len(split_file.read_split("extract", tmp_path / "split.json")) == 2
    put(tmp_path / "split.json", json.dumps(changed))
    with pytest.raises(ValueError, match=rf"^extract: --split \S*split.json must .*{told}.*; take a file of"):
        split_file.read_split("extract", tmp_path / "split.json")


# -- prompts ---------------------------------------------------------------------------------------------


def test_prompts_by_class(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    put(file, json.dumps({"Shopping_Cart": ["It has wheels."], "sun": ["It shines.", "A star."], "x": ["y"]}))
    assert read_prompts("fewshot", file, ["shopping cart", "sun"]) == {
        "shopping cart": ["It has wheels."], "sun": ["It shines.", "A star."],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"must hold every class, got none for 1 of 2: moon; add"):
        read_prompts("fewshot", file, ["sun", "moon"])
    bad = {"[1]": "an object, got list", "{": "JSON", '{"sun": []}': "list of sentences"}
    for text, told in {**bad, '{"sun": ["\\ud800"]}': "half a character"}.items():
        put(file, text)
        with pytest.raises(ValueError, match=f"--prompts .* must .*{told}"):
            read_prompts("fewshot", file, ["sun"])


# -- parts -----------------------------------------------------------------------------------------------


def check(labels: torch.Tensor, splits: list[str | None] | None, shares: dict[str, list[int]]) -> str:
    """Parts that share no row and cover what they should, with so many rows of each class."""
    found = parts_of(labels, splits)
    rows = torch.cat(found[:3])
    assert len(rows.unique()) == len(rows)
    for name, chosen in zip(("train", "val", "test"), found[:3], strict=True):
        assert torch.equal(chosen, chosen.sort().values)
        assert torch.bincount(labels[chosen], minlength=2).tolist() == shares[name], name
    again = parts_of(labels, splits)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))
    return found.told


def test_official_parts_are_kept() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    splits = ["train", "train", "validation", "val", "test", "test", None]
    told = check(labels, splits, {"train": [1, 1], "val": [1, 1], "test": [1, 1]})
    assert told == "train, val and test as given"


def test_validation_is_drawn_from_training() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [0, 1, 1])
    splits = ["train"] * 12 + ["test"] * 3
    told = check(labels, splits, {"train": [8, 1], "val": [2, 1], "test": [1, 2]})
    assert "20% of each class's training images, drawn with seed 0" in told
    splits = ["train"] * 12 + ["validation"] * 3
    told = check(labels, splits, {"train": [8, 1], "val": [2, 1], "test": [1, 2]})
    assert "the given validation part is the test part" in told


def test_parts_are_drawn_where_there_are_none() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10)
    for splits in (None, [None] * 30, ["train"] * 30):
        told = check(labels, splits, {"train": [10, 5], "val": [4, 2], "test": [6, 3]})
        assert "50, 20 and 30 %" in told


# -- WebDataset ------------------------------------------------------------------------------------------


def test_wildcards_name_tars(tmp_path: Path) -> None:
    import tarfile

    for part in ("b", "a"):
        put(tmp_path / "x.png", b"image")
        with tarfile.open(tmp_path / f"part-{part}.tar", "w") as tar:
            tar.add(tmp_path / "x.png", f"{part}.png")
    shutil.copy(tmp_path / "part-a.tar", tmp_path / "odd[1].tar")
    found = [path for path, _ in listed(f"{tmp_path}/part-*.tar", tmp_path)]
    assert [Path(path).name for path in found] == ["a.png", "b.png"]
    assert len(listed(f"{tmp_path}/odd[1].tar", tmp_path)) == 1  # a file of that very name
    with pytest.raises(FileNotFoundError, match=r"must be existing tars, got none at \S*/none-\*.tar"):
        source(f"{tmp_path}/none-*.tar", tmp_path)
