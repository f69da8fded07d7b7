"""Resuming `extract`: a changed input, setting, version or shard is refused by name; nothing else is."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from semobridge_ext import _digest
from semobridge_ext.cli import models
from semobridge_ext.cli.commands import extract as command_module
from tests.support.assertions import assert_row_relative
from tests.support.images import command, write

pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")
INPUTS = ("images", "list.txt", "table.csv", "all.tar")
WORDS = ["--quiet", "--workers", 0, "--shard-size", 4]


def extract(*words: object) -> int:
    return command("extract", *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """10 images in 3 shards, of a folder, a list, a CSV and a tar: where they were made, and a copy."""
    home = tmp_path_factory.mktemp("made") / "home"
    paths = write(home / "images", 2, 5)
    names = [str(p.relative_to(home)) for p in paths]
    (home / "list.txt").write_text("\n".join(names))
    lines = [f"{name},{i}" for i, name in enumerate(names)]
    (home / "table.csv").write_text("\n".join(["path,number", *lines]) + "\n")
    with tarfile.open(home / "all.tar", "w") as tar:
        for path in paths:
            tar.add(path, f"{path.parent.name}_{path.name}")
    for name in INPUTS:
        assert extract(home / name, home / f"out-{name}", *WORDS) == 0
    shutil.copytree(home, home.with_name("copy"))  # modification times too
    return home, home.with_name("copy")


@pytest.fixture
def finished(made: tuple[Path, Path]) -> Path:
    """The folder in which they were made, as it was."""
    home, copy = made
    shutil.rmtree(home)
    shutil.copytree(copy, home)
    return home


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """As a kill after the second shard leaves it."""
    for name in INPUTS:
        (finished / f"out-{name}" / "summary.json").unlink()
        (finished / f"out-{name}" / "metadata" / "metadata_2.parquet").unlink()
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kept_time(path: Path, data: bytes) -> None:
    """Other bytes under the same modification time."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    """Another file of the same size, later."""
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def in_csv(home: Path) -> None:
    path = home / "table.csv"
    path.write_text(path.read_text().replace(",3\n", ",33\n"))


def in_list(home: Path) -> None:
    lines = (home / "list.txt").read_text().split("\n")
    (home / "list.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]))


IMAGE = "images/class_00/003.png"
CHANGED: dict[str, tuple[str, Callable[[Path], object], list[object], str]] = {
    "another image, later": (
        "images", lambda h: touched(h / IMAGE), [], rf"inputs_digest; the first input that diff.*{IMAGE}",
    ),
    "another image of the same time": (
        "images", lambda h: kept_time(h / IMAGE, b"other"), [], f"inputs_digest; .*{IMAGE}",
    ),
    "one image more": (
        "images", lambda h: shutil.copy(h / IMAGE, h / "images/class_00/a.png"), [], r"inputs 10 \(now 11\)"
    ),
    "one image less": ("images", lambda h: (h / IMAGE).unlink(), [], r"inputs 10 \(now 9\)"),
    "a renamed class": (
        "images", lambda h: (h / "images/class_01").rename(h / "images/class_02"), [],
        r"differs is .*class_01/000.png \(now .*class_02/000.png\)",
    ),
    "an image of the list": ("list.txt", lambda h: touched(h / IMAGE), [], rf"inputs_digest; .*{IMAGE}"),
    "the order of the list": ("list.txt", in_list, [], "inputs_digest; .*000.png .now .*001.png"),
    "an image of the CSV": ("table.csv", lambda h: touched(h / IMAGE), [], rf"inputs_digest; .*{IMAGE}"),
    "a column of the CSV": ("table.csv", in_csv, [], "inputs_digest; .*33"),
    "the tar": ("all.tar", lambda h: touched(h / "all.tar"), [], "inputs_digest"),
    "--dtype": ("images", lambda h: None, ["--dtype", "float32"], r'dtype "float16" \(now "float32"\)'),
    "--shard-size": ("images", lambda h: None, ["--shard-size", 5], r"shard_size 4 \(now 5\)"),
    "--normalize": ("images", lambda h: None, ["--normalize"], r"normalized false \(now true\)"),
    "--label": ("images", lambda h: None, ["--label", "none"], r'label "parent" \(now "none"\)'),
    "--before-projection": ("images", lambda h: None, ["--before-projection"], r'features "projected" \(now'),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_run_is_refused(case: str, finished: Path, capsys: pytest.CaptureFixture) -> None:
    name, change, words, told = CHANGED[case]
    out = finished / f"out-{name}"
    change(finished)
    before = contents(out)
    assert extract(finished / name, out, *WORDS, *words) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"OUT must hold a run of the same settings and inputs, got .* with other .*{told}", error
    ), error
    assert contents(out) == before


def test_another_input_is_refused(unfinished: Path, capsys: pytest.CaptureFixture) -> None:
    (unfinished / "images").rename(unfinished / "pictures")
    before = contents(unfinished / "out-images")
    assert extract(unfinished / "pictures", unfinished / "out-images", *WORDS) == 2
    assert re.search(r'input ".*images" \(now ".*pictures"\)', capsys.readouterr().err)
    assert contents(unfinished / "out-images") == before


def test_another_model_is_refused(unfinished: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    """Other weights and another preprocessing under the same name."""
    plain = models.load

    def changed_weights(*given):
        encoder = plain(*given)
        encoder.model.logit_scale.data += 1
        return encoder

    monkeypatch.setattr(models, "load", changed_weights)
    assert extract(unfinished / "images", unfinished / "out-images", *WORDS) == 2
    assert "with other weights;" in capsys.readouterr().err
    monkeypatch.setattr(models, "load", lambda *given: plain(*given)._replace(preprocess=lambda image: image))
    assert extract(unfinished / "images", unfinished / "out-images", *WORDS) == 2
    assert "with other preprocess " in capsys.readouterr().err


def test_another_version_is_refused(unfinished: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(_digest, "__version__", "9.9")
    assert extract(unfinished / "images", unfinished / "out-images", *WORDS) == 2
    assert re.search(r'with other version ".*" \(now "9\.9"\)', capsys.readouterr().err)


@pytest.mark.parametrize("name", INPUTS)
def test_an_unchanged_run_goes_on(
    name: str, unfinished: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    out = unfinished / f"out-{name}"
    words = [unfinished / name, out, *WORDS, "--batch-size", 3]  # another one than before
    assert extract(*words) == 0 and "8 inputs are done" in capsys.readouterr().err
    for i in range(3):
        rows = [np.load(f / "img_emb" / f"img_emb_{i}.npy") for f in (out, made[1] / f"out-{name}")]
        got, want = (torch.from_numpy(r) for r in rows)
        assert_row_relative(got, want.double(), "features")
    assert not list(out.glob(".*")) and not (out / "inputs.jsonl.new").exists()
    assert extract(*words, "--workers", 1) == 0 and "finished already, 10" in capsys.readouterr().out


def test_a_folder_of_an_older_version_says_what_to_do(
    unfinished: Path, capsys: pytest.CaptureFixture
) -> None:
    path = unfinished / "out-images" / "settings.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("format", "version")}))
    assert extract(unfinished / "images", unfinished / "out-images", *WORDS) == 2
    assert "of an older one; choose another folder, or delete this one" in capsys.readouterr().err


# -- damaged shards ------------------------------------------------------------------------------------


def zeroed_rows(path: Path) -> None:
    """As a file system leaves blocks that were never written: the header stands, the rows do not."""
    data = path.read_bytes()
    kept_time(path, data[:200] + bytes(len(data) - 200))


def other_rows(path: Path) -> None:
    rows = np.load(path)
    np.save(path, rows[::-1])


def fewer_rows(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-100]), "emptied": lambda p: p.write_bytes(b""),
    "zeroed": lambda p: p.write_bytes(bytes(p.stat().st_size)), "rows zeroed": zeroed_rows,
}  # fmt: skip
CASES = {
    **{f"features {name}": ("img_emb/img_emb_1.npy", damage) for name, damage in DAMAGE.items()},
    **{f"metadata {name}": ("metadata/metadata_1.parquet", damage) for name, damage in DAMAGE.items()},
    "other features": ("img_emb/img_emb_1.npy", other_rows),
    "fewer features": ("img_emb/img_emb_0.npy", fewer_rows),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_shard_is_refused_and_made_again(
    case: str, finished: Path, capsys: pytest.CaptureFixture
) -> None:
    name, damage = CASES[case]
    out, words = finished / "out-images", [finished / "images", finished / "out-images", *WORDS]
    whole = contents(out / "img_emb")
    if case.endswith("ed"):
        (out / "summary.json").unlink()  # as in an unfinished run
    damage(out / name)
    assert extract(*words) == 2
    error = capsys.readouterr().err
    assert f"{out / name} must hold what was written, got other bytes; delete it, and the same" in error
    (out / name).unlink()
    assert extract(*words) == 0
    assert contents(out / "img_emb") == whole
    assert json.loads((out / "summary.json").read_text())["inputs"] == 10
    assert sum(pq.read_metadata(p).num_rows for p in (out / "metadata").iterdir()) == 10


def test_a_shard_counts_once_its_line_stands(unfinished: Path, capsys: pytest.CaptureFixture) -> None:
    """A line that a kill cut short is no line."""
    out = unfinished / "out-images"
    (out / "summary.json").unlink(missing_ok=True)
    lines = (out / "shards.jsonl").read_text().splitlines()
    (out / "shards.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
    assert extract(unfinished / "images", out, *WORDS) == 0
    assert "4 inputs are done, going on" in capsys.readouterr().err


# -- two runs at once ----------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Path:
    write(tmp_path / "images", 2, 5)
    write(tmp_path / "others", 3, 4)
    return tmp_path


def test_a_second_run_changes_nothing(two: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    """It comes while the first one encodes: refused with the other's name, before it writes its list."""
    plain, told = models.rows_of, []

    def encode(*given):
        if not told:
            listing = (two / "out" / "inputs.jsonl").read_bytes()
            assert extract(two / "others", two / "out", *WORDS) == 2
            told.append(capsys.readouterr().err)
            assert (two / "out" / "inputs.jsonl").read_bytes() == listing
        return plain(*given)

    monkeypatch.setattr(models, "rows_of", encode)
    assert extract(two / "images", two / "out", *WORDS, "--batch-size", 2) == 0
    assert re.search(
        rf"OUT must belong to one run, got .*out, which process {os.getpid()} on \S+ has been writing since "
        r"\d{4}-.* UTC; wait for it", told[0],
    )  # fmt: skip
    tables = [
        pq.read_table(p)["image_path"].to_pylist() for p in sorted((two / "out" / "metadata").iterdir())
    ]
    assert [path for table in tables for path in table] == [
        str(p) for p in sorted((two / "images").rglob("*.png"))
    ]


def test_the_count_is_checked_before_the_summary(two: Path, monkeypatch, capsys) -> None:
    """A list that something else shortened gives no finished folder."""
    plain = command_module.keep

    def shortened(source, staged, listing):
        kept = plain(source, staged, listing)
        lines = listing.read_bytes().splitlines(keepends=True)
        listing.write_bytes(b"".join(lines[:7]))
        return kept

    monkeypatch.setattr(command_module, "keep", shortened)
    assert extract(two / "images", two / "out", *WORDS) == 2
    assert "must hold the 10 inputs that were listed, got 7 in the shards" in capsys.readouterr().err
    assert not (two / "out" / "summary.json").exists()


# -- names ---------------------------------------------------------------------------------------------


def test_odd_names_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = write(tmp_path / "images", 1, 2)
    names = ["line\nbreak.png", "tab\there.png", "back\\slash.png", "next\x85line.png", "par\u2029agraph.png"]
    for name in names:
        (paths[0].parent / name).write_bytes(b"no image")
    assert extract(tmp_path / "images", tmp_path / "out", *WORDS) == 0
    assert "2 features of 7 images, 5 corrupt" in capsys.readouterr().out
    lines = (tmp_path / "out" / "corrupt.tsv").read_bytes().decode().split("\n")
    assert lines.pop() == "" and len(lines) == 5
    found = [line.split("\t") for line in lines]
    assert all(len(fields) == 2 and fields[1].startswith("UnidentifiedImageError") for fields in found)
    read_back = {fields[0].encode("latin-1", "backslashreplace").decode("unicode_escape") for fields in found}
    assert read_back == {str(paths[0].parent / name) for name in names}


def test_what_would_wait_for_ever_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = write(tmp_path / "images", 1, 2)
    os.mkfifo(tmp_path / "images" / "pipe.png")
    (tmp_path / "images" / "list").mkdir()
    os.mkfifo(tmp_path / "pipe")
    listed = [str(paths[0]), "pipe", "/dev/zero", "images", str(paths[1])]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    assert extract(tmp_path / "list.txt", tmp_path / "out", *WORDS) == 0
    assert extract(tmp_path / "images", tmp_path / "out2", *WORDS) == 0
    told = capsys.readouterr().out
    assert "2 features of 5 images, 3 corrupt" in told and "2 features of 3 images, 1 corrupt" in told
    reasons = [line.split("\t")[1] for line in (tmp_path / "out" / "corrupt.tsv").read_text().splitlines()]
    assert reasons == [f"ValueError: it is a {k} and no regular file" for k in ("FIFO", "device", "folder")]


def test_circles_of_links_are_one_entry_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = tmp_path / "images"
    paths = write(images, 2, 2)
    (images / "class_00" / "up").symlink_to("..")
    (images / "class_00" / "here").symlink_to(".")
    (images / "itself").symlink_to("itself")
    (images / "twin").symlink_to("class_01")  # no circle: its images count again
    assert extract(images, tmp_path / "out", *WORDS) == 0
    assert "6 features of 9 images, 3 corrupt" in capsys.readouterr().out
    lines = [line.split("\t") for line in (tmp_path / "out" / "corrupt.tsv").read_text().splitlines()]
    assert [line[0] for line in lines] == [
        str(images / name) for name in ("class_00/here", "class_00/up", "itself")
    ]
    assert "leads back to a folder that it lies in" in lines[0][1] and "symbolic links" in lines[2][1]
    table = [
        pq.read_table(p)["image_path"].to_pylist() for p in sorted((tmp_path / "out/metadata").iterdir())
    ]
    twins = [str(images / "twin" / p.name) for p in paths if p.parent.name == "class_01"]
    assert [path for part in table for path in part] == [*(str(p) for p in paths), *twins]


def test_names_that_leave_the_tar_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The metadata would name a file elsewhere, which a contact sheet would then show."""
    image = write(tmp_path / "images", 1, 1)[0].read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("good.png", "../up.png", "/etc/root.png", "in/../../out.png", "sub/dots..png"):
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    assert extract(tmp_path / "a.tar", tmp_path / "out", *WORDS) == 0
    assert "2 features of 5 images, 3 corrupt" in capsys.readouterr().out
    assert (tmp_path / "out" / "corrupt.tsv").read_text().count("its name leaves the tar") == 3


def test_a_last_shard_without_rows_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    """A run that goes on with corrupt images alone has met no row: their shard is as wide all the same."""
    write(tmp_path / "images", 1, 4)
    (tmp_path / "images" / "class_00" / "zz.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert extract(tmp_path / "images", out, *WORDS) == 0
    whole = contents(out / "img_emb")
    assert np.load(out / "img_emb" / "img_emb_1.npy").shape == (0, 192)
    (out / "summary.json").unlink()
    (out / "metadata" / "metadata_1.parquet").unlink()
    assert extract(tmp_path / "images", out, *WORDS) == 0
    assert contents(out / "img_emb") == whole
