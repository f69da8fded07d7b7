"""`discover`: labels by folder or file, what is written, resuming after a kill, errors."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli import discovery_output
from semobridge_ext.discovery.training import Trainer
from tests.support.images import command, write

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
WORDS = ["--workers", 0, "--quiet", "--classes", 4, "--epochs", 20]
OLD = ["--old", "class_00", "class_01"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of six drawings, a dictionary, and the features of the images."""
    home = tmp_path_factory.mktemp("discover")
    write(home / "images", 4, 6)
    names = sb.load_picto("icons").class_names[:12]
    (home / "words.txt").write_text("\n".join(names))
    assert command("extract", home / "images", home / "feats", "--quiet", "--workers", 0) == 0
    return home


def discover(home: Path, out: Path, *words: object, given: str = "feats") -> int:
    return command("discover", home / given, "--out", out, "--concepts", home / "words.txt", *WORDS, *words)


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """The results from folder names, of features that are there."""
    assert discover(home, home / "made", *OLD) == 0
    return home / "made"


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "assignments.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_images_go_to_old_and_new_classes(home: Path, tmp_path: Path, capsys):
    from PIL import Image

    assert discover(home, tmp_path / "out", *OLD, given="images") == 0
    out, rows = tmp_path / "out", table(tmp_path / "out")
    assert len(rows) == len({row["image"] for row in rows}) == 24
    for row in rows:
        name = Path(row["image"]).parent.name
        assert row["label"] == (name if name in OLD else "")
        assert row["kind"] == ("old" if int(row["cluster"]) < 2 else "new")
        assert (row["name"] in OLD) == (row["kind"] == "old") and 0.25 <= float(row["probability"]) <= 1
    labelled = [row for row in rows if row["label"]]
    assert sum(row["name"] == row["label"] for row in labelled) > 9  # of 12
    told, report = capsys.readouterr().out, (out / "report.md").read_text()
    assert "24 images, 12 of them labelled, of 2 old classes" in told and "## New classes" in report
    clusters = {row["cluster"] for row in rows if row["kind"] == "new"}
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height == len(clusters) * 146 + 8
    concepts = (out / "concepts.txt").read_text().splitlines()
    assert 2 < len(concepts) <= 14 and "class 00" in concepts
    gcd = sb.SpectralGCD.load(out / "model.safetensors")
    assert gcd.old_classes_.tolist() == ["class_00", "class_01"] and gcd.num_classes == 4
    assert {p.name for p in out.iterdir()} == {
        "features", "assignments.csv", "sheet.png", "report.md", "concepts.txt", "model.safetensors",
        "training.safetensors",
    }  # fmt: skip


def test_labels_of_a_file_are_those_of_folders(home: Path, made: Path, tmp_path: Path):
    lines = io.StringIO()
    csv.writer(lines).writerows(
        [["image", "label", "note"]]
        + [[f"images/{name}/{i:03d}.png", name, ""] for name in OLD[1:] for i in range(6)]
        + [["images/class_02/000.png", "", "not labelled"], ["images/elsewhere.png", "class_00", ""]]
    )
    (home / "labels.csv").write_text(lines.getvalue())
    assert discover(home, tmp_path / "file", "--labels", home / "labels.csv", "--html") == 0
    assert table(tmp_path / "file") == table(made)
    assert b"<h2>new " in (tmp_path / "file" / "sheet.html").read_bytes()


def test_the_count_is_estimated(home: Path, tmp_path: Path, capsys):
    """The estimate is that of the function on the same features, and is told with its curve."""
    from semobridge_ext.cli.shards import Folder

    out, old = tmp_path / "out", ["--old", *(f"class_{i:02d}" for i in range(3))]
    assert discover(home, out, *old, "--classes", "auto", "--max-classes", 9, "--epochs", 1) == 0
    folder = Folder("discover", home / "feats")
    labels = [name if name in old else None for name in folder.column("label")]
    found = sb.estimate_num_classes(folder.load(), labels, max_classes=9)
    assert sb.SpectralGCD.load(out / "model.safetensors").num_classes == found.num_classes
    tried = len(found.candidates)
    told = f"- {found.num_classes} classes is an estimate, the best of {tried} counts from 3 to 9"
    report = (out / "report.md").read_text()
    assert told in capsys.readouterr().out and told in report
    lines = report.split("| classes | held-out accuracy, % |\n|---:|---:|\n")[1].splitlines()
    assert lines == [
        f"| {k}{' (taken)' * (k == found.num_classes)} | {100 * a:.1f} |"
        for k, a in zip(*found[1:], strict=True)
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_epoch, epochs = Trainer.run_epoch, []

    def dies(self):
        if self.epoch == 12:
            raise KeyboardInterrupt
        epochs.append(self.epoch)
        run_epoch(self)

    long = [*OLD, "--epochs", 14]
    assert discover(home, tmp_path / "whole", *long) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", dies)
        assert discover(home, tmp_path / "out", *long) == 130
    assert [p.name for p in (tmp_path / "out").glob("*.csv")] == []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", lambda self: (epochs.append(self.epoch), run_epoch(self)))
        assert discover(home, tmp_path / "out", *long) == 0
    assert epochs == [*range(12), *range(10, 14)]
    assert table(tmp_path / "out") == table(tmp_path / "whole")


def test_other_settings_are_refused(home: Path, made: Path, capsys):
    before = (made / "assignments.csv").read_bytes()
    assert discover(home, made, *OLD, "--seed", 1) == 2
    assert "seed 0 (now 1)" in capsys.readouterr().err
    assert (made / "assignments.csv").read_bytes() == before


@pytest.mark.slow
def test_a_teacher_of_the_same_images(home: Path, made: Path, tmp_path: Path, capsys):
    assert discover(home, tmp_path / "taught", *OLD, "--teacher", home / "feats") == 0
    assert table(tmp_path / "taught") == table(made)
    write(tmp_path / "fewer", 3, 6)
    assert command("extract", tmp_path / "fewer", tmp_path / "other", "--quiet", "--workers", 0) == 0
    assert discover(home, tmp_path / "no", *OLD, "--teacher", tmp_path / "other") == 2
    assert "--teacher must hold every image of INPUT" in capsys.readouterr().err


@pytest.mark.slow
def test_an_embedded_set_has_its_accuracy_told(tmp_path: Path, capsys):
    words = ["--out", tmp_path / "out", "--workers", 0, "--quiet", "--classes", 23]
    assert command("discover", "picto:arrows", *words) == 0
    told = capsys.readouterr().out
    all_, old, new = map(float, told.split("unlabelled images: ")[1].split(" %")[0].split(" / "))
    assert min(all_, old, new) > 45
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 457
    assert sum(bool(row["label"]) for row in table(tmp_path / "out")) == 136


def test_concepts_that_stand_out_name_a_class():
    shown = torch.tensor(
        [[0.7, 0.2, 0.1, 0.0], [0.6, 0.3, 0.1, 0.0], [0.1, 0.1, 0.1, 0.7], [0.1, 0.0, 0.0, 0.9]]
    )
    assert discovery_output.strongest(shown, torch.tensor([0, 0, 2, 2]), 3)[0] == [0, 1]
    assert discovery_output.strongest(shown, torch.tensor([0, 0, 2, 2]), 3)[2] == [3]


BAD: dict[str, tuple[list[object], str]] = {
    "no labels": ([], "discover: --labels or --old must be given, got neither; .* class_00, class_01"),
    "unknown folder": (["--old", "class_0"], "--old must be one of 4 known names, got 'class_0'; did you"),
    "few classes": ([*OLD, "--classes", 2, "--old", "class_00", "class_01", "class_02"], "got 3 old ones"),
    "no file": (["--labels", "none.csv"], "--labels must be an existing file, got none.csv"),
    "no dictionary": ([*OLD, "--concepts", "none.txt"], "path must be an existing file, got none.txt"),
    "template": ([*OLD, "--template", "a photo"], r"--template must contain \{\}"),
    "a bound without auto": (
        [*OLD, "--max-classes", 9],
        "must stand beside --classes auto, got 9",
    ),
    "auto, one class": (
        ["--old", "class_00", "--classes", "auto"],
        "must meet two labelled classes, got 1",
    ),
    "auto, a low bound": (
        ["--old", "class_00", "class_01", "class_02", "--classes", "auto", "--max-classes", 2],
        "auto must have --max-classes from 3 up, got 2",
    ),
    "one class": ([*OLD, "--classes", 1], "must be a whole number from 2 up, got '1'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_to_do(home: Path, tmp_path: Path, capsys, case: str):
    import re

    words, told = BAD[case]
    assert discover(home, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("\n") == 1, error


FILES = {
    "columns": ("a,b\nx,y\n", "--labels must have the columns image and label, got ['a', 'b']"),
    "foreign": ("image,label\nx.png,cat\n", "--labels must name images of INPUT, got none of 24"),
    "fields": ("image,label\nx.png\n", "--labels must have 2 fields a line, got 1 in line 2"),
    "twice": (
        "image,label\nimages/class_00/000.png,a\nimages/class_00/000.png,b\n",
        "--labels must give an image one label, got 'a' and 'b'",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_labels_are_checked(home: Path, tmp_path: Path, capsys, case: str):
    text, told = FILES[case]
    (home / "bad.csv").write_text(text)
    assert discover(home, tmp_path / "out", "--labels", home / "bad.csv") == 2
    assert told in capsys.readouterr().err


def test_out_below_the_images_is_refused(home: Path, capsys):
    assert discover(home, home / "images" / "out", *OLD, given="images") == 2
    assert "--out must lie outside of INPUT" in capsys.readouterr().err
    (home / "images" / "out" / ".lock").unlink(missing_ok=True)
    (home / "images" / "out").rmdir()
