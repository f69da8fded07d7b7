"""`semobridge-ext fewshot` on feature files: tables, picture, continuing, refusals."""

from __future__ import annotations

import argparse
import csv
import json

import numpy as np
import pytest
import torch

from semobridge_ext.cli import fewshot_problems
from semobridge_ext.cli.commands import fewshot
from semobridge_ext.cli.fewshot_output import BASELINE, MEAN, as_markdown, collect, summary
from semobridge_ext.fewshot import study
from semobridge_ext.fewshot.study_estimators import DEFAULT, METHODS
from tests.support.problems import make

QUICK = ["--shots", "1", "2", "64", "--seeds", "2", "--trials", "20", "--preset", "fast", "--steps", "5"]


@pytest.fixture
def files(tmp_path):
    p = make(5, 6, 80, noise=1.2)
    matrix = torch.eye(p.shots.shape[1])
    extra = {"text": p.text, "hidden": p.hidden, "text_projection": p.projection}
    extra |= {"image_projection": matrix, "before": p.shots}
    extra = {name: value.numpy() for name, value in extra.items()}
    np.savez(tmp_path / "train.npz", features=p.shots.numpy(), labels=p.labels.numpy(), **extra)
    np.savez(tmp_path / "bare.npz", features=p.shots.numpy(), labels=p.labels.numpy())
    queries = p.queries.numpy()
    np.savez(tmp_path / "test.npz", features=queries, before=queries, labels=p.targets.numpy())
    return tmp_path


def run(files, *words, train="train.npz") -> int:
    parser = argparse.ArgumentParser()
    fewshot.add_parser(parser.add_subparsers())
    paths = ["--train", str(files / train), "--test", str(files / "test.npz"), "--out", str(files / "out")]
    args = parser.parse_args(["fewshot", *paths, *QUICK, *words])
    return fewshot.run(args)


@pytest.mark.filterwarnings("default")
def test_tables_and_picture(files, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert run(files) == 0
    with open(files / "out" / "fewshot.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["method"] for r in rows} == set(DEFAULT)
    assert {r["shots"] for r in rows} == {"1", "2"}  # no class reaches 64
    for r in rows:
        assert 0 < float(r["accuracy"]) <= 1 and float(r["std"]) >= 0 and r["seeds"] == "2"
    text = (files / "out" / "fewshot.md").read_text(encoding="utf-8")
    assert "| SeMoBridge-T |" in text and "Findings" in text and "SeMoBridge-T" in capsys.readouterr().out
    assert (files / "out" / "fewshot.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_study_continues(files, monkeypatch):
    calls, plain = [], study.run_episode

    def dies(problem, methods, shots, seed):
        calls.append((shots, seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(problem, methods, shots, seed)

    monkeypatch.setattr(fewshot, "run_episode", dies)
    with pytest.raises(KeyboardInterrupt):
        run(files, "--no-plot")
    store = files / "out" / "results.jsonl"
    with open(store, "a", encoding="utf-8") as file:
        file.write('["cut sho')
    before = store.read_text(encoding="utf-8").splitlines()[:3]
    assert run(files, "--no-plot") == 0
    assert calls == [(1, 0), (1, 1), (2, 0), (2, 0), (2, 1)]
    assert store.read_text(encoding="utf-8").splitlines()[:3] == before and all(map(json.loads, before))
    assert run(files, "--no-plot") == 0 and len(calls) == 5


def test_without_text_and_projection_the_rest_is_compared(files):
    assert run(files, "--no-plot", train="bare.npz") == 0
    with open(files / "out" / "fewshot.csv", encoding="utf-8") as file:
        methods = {r["method"] for r in csv.DictReader(file)}
    assert methods == {"nearest class mean", "LDA", "blend without bridge"}


def test_names_of_methods(files, capsys):
    assert set(METHODS) - set(DEFAULT) == {"LP++", "ProLIP"}
    words = ["--no-plot", "--methods", "GDA,SeMoBridge, no blend,LP++", "zero-shot", "ProLIP"]
    assert run(files, *words) == 0
    with open(files / "out" / "fewshot.csv", encoding="utf-8") as file:
        methods = [r["method"] for r in csv.DictReader(file)]
    assert set(methods) == {"zero-shot", "LP++", "ProLIP", "GDA", "SeMoBridge, no blend"}
    with pytest.raises(SystemExit):
        run(files, "--methods", "GDA,LDDA")
    assert "invalid choice: 'LDDA'; did you mean 'LDA'?" in capsys.readouterr().err


def test_features_before_the_projection(files):
    paths = files / "train.npz", None, files / "test.npz"
    problem = fewshot_problems.of_files(*paths)
    for rows, (features, _) in zip(problem.before, (problem.train, problem.val, problem.test), strict=True):
        assert torch.equal(rows, features) and len(rows)
    given = dict(np.load(files / "train.npz"))
    np.savez(files / "train.npz", **{**given, "image_projection": np.eye(3, dtype=np.float32)})
    with pytest.raises(ValueError, match=r"image_projection \[24, 24\], from 'before' of .*, got \[3, 3\]"):
        fewshot_problems.of_files(*paths)
    np.savez(files / "train.npz", **{**given, "before": given["before"][1:]})
    with pytest.raises(ValueError, match=r"train.npz must hold before \[30, V\].*; align them"):
        fewshot_problems.of_files(*paths)
    del given["before"]
    np.savez(files / "train.npz", **given)
    assert fewshot_problems.of_files(*paths).before is None


def test_validation_rows_are_no_shots(files):
    problem = fewshot_problems.of_files(files / "train.npz", None, files / "test.npz")
    train, val = ({tuple(row) for row in part[0].tolist()} for part in (problem.train, problem.val))
    assert not train & val and len(train | val) == 30
    assert torch.bincount(problem.val[1]).tolist() == [2] * 5


def test_a_table_without_the_baseline_has_no_gains():
    """--methods may leave it out; a heading over an empty table stood there."""
    row = {"set": "a", "shots": 1, "accuracy": 0.5, "std": 0.1, "seconds_fit": 0.0, "seconds_tune": 0.0}
    alone = as_markdown([{**row, "method": "GDA"}])
    assert "GDA" in alone and "Paired difference" not in alone
    both = as_markdown([{**row, "method": BASELINE}, {**row, "method": "GDA", "gain": 0.1, "gain_std": 0.02}])
    assert "Paired difference from nearest class mean" in both and "+10.0 ± 2.0" in both


def test_summary_figures():
    accuracies = {("a", "SeMoBridge"): (0.5, 0.7), ("a", "nearest class mean"): (0.4, 0.5),
                  ("b", "SeMoBridge"): (0.9, 0.9), ("b", "nearest class mean"): (0.8, 1.0)}  # fmt: skip
    seconds = {"seconds_fit": 1.0, "seconds_tune": 2.0}
    records = [
        {"set": s, "shots": 1, "seed": seed, "method": m, "accuracy": a, **seconds}
        for (s, m), values in accuracies.items() for seed, a in enumerate(values)
    ]  # fmt: skip
    rows = {(r["set"], r["method"]): r for r in summary(records)}
    assert rows["a", "SeMoBridge"]["accuracy"] == pytest.approx(0.6)
    assert rows["a", "SeMoBridge"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert rows["a", "SeMoBridge"]["gain"] == pytest.approx(0.15)
    assert rows["a", "SeMoBridge"]["gain_std"] == pytest.approx(0.1 / 2**0.5)
    assert rows[MEAN, "SeMoBridge"]["accuracy"] == pytest.approx(0.75)
    assert rows[MEAN, "SeMoBridge"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert MEAN not in collect(r for r in records if r["set"] == "a")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.npz", None, "must exist"), ("cut.npz", b"PK\x03\x04cut", "whole"),
        ("cut.safetensors", b"\x00" * 20, "whole"), ("pickle.npz", b"\x80\x04K\x01.", "whole"),
    ],
)  # fmt: skip
def test_bad_files(files, name, content, words):
    if content is not None:
        (files / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(files, train=name)


def test_missing_arrays_are_named(files):
    np.savez(files / "odd.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="must hold 'features'"):
        run(files, train="odd.npz")
    np.savez(files / "odd.npz", features=np.ones((3, 2), np.float32), labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="align them"):
        run(files, train="odd.npz")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("bare", [False, True], ids=["text", "bare"])
@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (-1, np.int64, "-1"), (2**33, np.int64, "8589934592"), (0.5, np.float64, "0.5"), (5, np.int32, "5"),
        (np.nan, np.float32, "nan"), (np.inf, np.float64, "inf"), (2**63, np.uint64, "9223372036854775808"),
    ],
)  # fmt: skip
def test_bad_labels_are_named_with_their_row(files, kind, part, bare, value, dtype, told):
    from safetensors.numpy import save_file

    source = {"train": "bare.npz" if bare else "train.npz", "val": "test.npz", "test": "test.npz"}[part]
    with np.load(files / source) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["labels"] = arrays["labels"].astype(dtype)
    arrays["labels"][3] = value
    path = files / f"odd.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    paths = {"train": files / ("bare.npz" if bare else "train.npz"), "val": files / "test.npz",
             "test": files / "test.npz", part: path}  # fmt: skip
    if part == "train" and bare and value == 5:  # a sixth class, where no text says that there are five
        assert fewshot_problems.of_files(*paths.values()).train[1].max() == 5
        return
    with pytest.raises(ValueError, match=rf"^fewshot: .*odd.{kind} must hold whole .* got {told} in row 3;"):
        fewshot_problems.of_files(*paths.values())


def test_whole_labels_of_any_dtype_are_taken(files):
    want = fewshot_problems.of_files(files / "train.npz", None, files / "test.npz")
    with np.load(files / "train.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for dtype in (np.float64, np.float16, np.uint8, np.uint16, np.uint64, np.int8):
        np.savez(files / "odd.npz", **{**arrays, "labels": arrays["labels"].astype(dtype)})
        found = fewshot_problems.of_files(files / "odd.npz", None, files / "test.npz")
        assert torch.equal(found.train[1], want.train[1]) and found.train[1].dtype == torch.int64


def test_files_that_do_not_go_together(files):
    def of(**arrays):
        np.savez(files / "odd.npz", **arrays)
        return fewshot_problems.of_files(files / "train.npz", None, files / "odd.npz")

    with pytest.raises(ValueError, match=r"odd\.npz must hold features of width 24, as .*train\.npz, got 3;"):
        of(features=np.ones((2, 3), np.float32), labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"odd\.npz must hold rows of real numbers, got 0 rows of float32"):
        of(features=np.ones((0, 24), np.float32), labels=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"odd\.npz must hold rows of real numbers, got 2 rows of complex64"):
        of(features=np.ones((2, 24), np.complex64), labels=np.zeros(2, np.int64))
    for text in (np.float32(1), np.ones(24, np.float32), np.ones((5, 23), np.float32)):
        with pytest.raises(ValueError, match=r"odd\.npz must hold text \[C, 24\], as wide as .*, got \["):
            of(features=np.ones((2, 24), np.float32), labels=np.zeros(2, np.int64), text=text)
