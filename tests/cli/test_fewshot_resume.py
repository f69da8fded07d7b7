"""Resuming `fewshot --out`: a changed input, setting or version is refused by name; nothing else is."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from semobridge_ext import _digest, _locks
from semobridge_ext.cli.commands import fewshot
from tests.support.images import command
from tests.support.problems import make

METHODS = ["--methods", "nearest class mean", "SeMoBridge", "blend without bridge"]
QUICK = ["--shots", 1, 2, "--seeds", 2, "--trials", 20, "--preset", "fast", "--steps", 5, "--no-plot"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Feature files, and a finished study of them."""
    p = make(5, 6, 80, noise=1.2)
    text = {"text": p.text, "hidden": p.hidden, "text_projection": p.projection}
    save(tmp_path / "train.npz", features=p.shots, labels=p.labels, **text)
    save(tmp_path / "val.npz", features=p.queries[:30], labels=p.targets[:30])
    save(tmp_path / "test.npz", features=p.queries[30:], labels=p.targets[30:])
    assert study(tmp_path) == 0
    return tmp_path


def save(path: Path, **arrays: torch.Tensor) -> None:
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})


def study(home: Path, *words: object, val: bool = True) -> int:
    files = [f"--{part}={home / part}.npz" for part in ("train", "test", *(["val"] if val else []))]
    return command("fewshot", *files, "--out", home / "out", *QUICK, *METHODS, *words)


def edit(home: Path, part: str, **changes: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """The file with some arrays changed; None leaves one out."""
    with np.load(home / f"{part}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name: change(arrays[name]) for name, change in changes.items()}
    np.savez(home / f"{part}.npz", **{name: value for name, value in arrays.items() if value is not None})


def accuracies(home: Path) -> dict[tuple[str, str], float]:
    with open(home / "out" / "fewshot.csv", encoding="utf-8") as file:
        return {(r["method"], r["shots"]): float(r["accuracy"]) for r in csv.DictReader(file)}


def swapped(rows: np.ndarray) -> np.ndarray:
    """Two rows exchanged: sum, count and every row stay."""
    return rows[[1, 0, *range(2, len(rows))]]


def columns(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, 1, axis=1)


def other_label(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(labels)) == 0, (labels + 1) % 5, labels)


CHANGED: dict[str, tuple[str, Callable[[Path], object], list[object]]] = {
    "another test file": ("test features", lambda h: edit(h, "test", features=lambda x: x[::-1]), []),
    "one test label": ("test labels", lambda h: edit(h, "test", labels=other_label), []),
    "columns of the test file": ("test features", lambda h: edit(h, "test", features=columns), []),
    "fewer test rows": (
        "test features", lambda h: edit(h, "test", features=lambda x: x[1:], labels=lambda y: y[1:]), [],
    ),
    "training rows exchanged": ("train features", lambda h: edit(h, "train", features=swapped), []),
    "one training label": ("train labels", lambda h: edit(h, "train", labels=other_label), []),
    "columns of the training file": ("train features", lambda h: edit(h, "train", features=columns), []),
    "validation features": ("validation features", lambda h: edit(h, "val", features=swapped), []),
    "validation labels": ("validation labels", lambda h: edit(h, "val", labels=other_label), []),
    "the text": ("text", lambda h: edit(h, "train", text=swapped), []),
    "no text": (r"text given \(now null\)", lambda h: edit(h, "train", text=lambda x: None), []),
    "the hidden text": ("hidden", lambda h: edit(h, "train", hidden=swapped), []),
    "the projection": ("text_projection", lambda h: edit(h, "train", text_projection=columns), []),
    "--trials": (r"trials 20 \(now 21\)", lambda h: None, ["--trials", 21]),
    "--sampler": (r'sampler "random" \(now "optuna"\)', lambda h: None, ["--sampler", "optuna"]),
    "--preset": (r'preset "fast" \(now "paper"\)', lambda h: None, ["--preset", "paper"]),
    "--steps": (r"steps 5 \(now 6\)", lambda h: None, ["--steps", 6]),
    "--methods": (r"methods \[.*\] \(now \[.*\]\)", lambda h: None, ["--methods", "LDA"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_study_is_refused(case: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    told, change, words = CHANGED[case]
    change(home)
    before = {p.name: p.read_bytes() for p in (home / "out").iterdir()}
    assert study(home, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    words_of_it = "--out must hold results of the same inputs and settings, got .*'train' was run with other "
    assert re.search(rf"{words_of_it}(.*, )?{told}(, .*)?; choose another folder", error), error
    assert {p.name: p.read_bytes() for p in (home / "out").iterdir()} == before


def test_without_the_validation_file_it_is_another_study(home: Path, capsys) -> None:
    assert study(home, val=False) == 2
    assert "train features, train labels, validation features" in capsys.readouterr().err


def test_another_version_is_refused(home: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(_digest, "__version__", "9.9")
    assert study(home) == 2
    assert re.search(
        r'with other version ".*" \(now "9\.9"\); choose another folder', capsys.readouterr().err
    )


@pytest.fixture
def episodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shots and seeds that are really run."""
    ran, plain = [], fewshot.run_episode

    def run_episode(problem, methods, shots, seed):
        ran.append((shots, seed))
        return plain(problem, methods, shots, seed)

    monkeypatch.setattr(fewshot, "run_episode", run_episode)
    return ran


def test_an_unchanged_study_runs_nothing_again(home: Path, episodes: list[tuple[int, int]]) -> None:
    before = (home / "out" / "results.jsonl").read_bytes(), accuracies(home)
    for part in ("train", "val", "test"):  # the bytes count, not the place or the time
        edit(home, part)
        (home / f"{part}.npz").touch()
    assert study(home) == 0 and study(home, "--methods", *reversed(METHODS[1:])) == 0
    assert not episodes
    assert ((home / "out" / "results.jsonl").read_bytes(), accuracies(home)) == before


def test_more_shots_and_seeds_join(home: Path, episodes: list[tuple[int, int]]) -> None:
    before = accuracies(home)
    assert study(home, "--shots", 1, 2, 4, "--seeds", 3) == 0
    assert episodes == [(1, 2), (2, 2), (4, 0), (4, 1), (4, 2)]
    assert study(home) == 0 and accuracies(home) == before and len(episodes) == 5


def test_an_episode_without_its_inputs_is_run_again(home: Path, episodes: list[tuple[int, int]]) -> None:
    """Lines whose problem's line is damaged cannot be trusted; nor can a line cut short."""
    path, want = home / "out" / "results.jsonl", accuracies(home)
    lines = path.read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["problem", *["episode"] * 4]
    other = lines[2].replace('"of": "', '"of": "0')
    path.write_text("\n".join([lines[0], lines[1], other, lines[3], lines[4][:-9]]))
    assert study(home) == 0
    assert episodes == [(1, 1), (2, 1)] and accuracies(home) == want
    assert study(home) == 0 and len(episodes) == 2


def test_an_older_file_says_what_to_do(home: Path, capsys: pytest.CaptureFixture) -> None:
    key = json.dumps(["train", 1, 0, [[20, "random", "fast", 5], ["LDA"], 1.5, 50]])
    path = home / "out" / "results.jsonl"
    path.write_text(json.dumps([key, [{"set": "train", "accuracy": 0.5}]]) + "\n")
    before = path.read_bytes()
    assert study(home) == 2
    assert "of an older one, which does not tell its inputs; choose another" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_two_studies_do_not_share_a_folder(home: Path, capsys: pytest.CaptureFixture) -> None:
    with _locks.held("fewshot", "--out", home / "out", home / "out" / ".lock"):
        assert study(home) == 2
    told = (
        rf"--out must belong to one run, got .*out, which process {os.getpid()} on \S+ has been writing since"
    )
    assert re.search(told, capsys.readouterr().err)
