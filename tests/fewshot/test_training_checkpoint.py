"""A checkpoint of SeMoBridge-T: whatever differs is refused by name; what is the same goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import semobridge_ext as sb
from semobridge_ext import _digest, _locks
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from tests.support.checksums import reseal, save_resealed
from tests.support.problems import make
from tests.support.source_tree import ROOT

P = make(8, 2, 60, noise=1.2)
STEPS = {"steps": 30, "warmup": 5, "lr": 1e-3, "eval_every": 10, "checkpoint_every": 10}


def fit(path: Path | None, **changed: Any) -> sb.SeMoBridgeT:
    """One training on the problem, with what is changed by the names of the arguments."""
    given = {
        "X": P.shots, "y": P.labels, "bridge": P.bridge(), "text_features": P.text,
        "text_hidden": P.hidden, "validation": (P.queries, P.targets), **STEPS, **changed,
    }  # fmt: skip
    x, y, validation = given.pop("X"), given.pop("y"), given.pop("validation")
    clf = sb.SeMoBridgeT(given.pop("bridge"), given.pop("text_features"), given.pop("text_hidden"), **given)
    return clf.fit(x, y, validation=validation, checkpoint=path)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that was interrupted after 25 of 30 steps."""
    path, step, taken = tmp_path / "run.safetensors", BridgeTrainer.step, []

    def dies(self, *arguments):
        taken.append(1)
        if len(taken) > 25:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BridgeTrainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    return path


def swapped() -> torch.Tensor:
    """The shots with one of class 0 and one of class 1 exchanged: their sum is the same."""
    rows = P.shots.clone()
    a, b = int((P.labels == 0).nonzero()[0]), int((P.labels == 1).nonzero()[0])
    rows[[a, b]] = rows[[b, a]]
    return rows


COLUMNS = torch.arange(P.shots.shape[1]).roll(1)
OTHER_BRIDGE = make(8, 2, 60, noise=1.2, seed=5).bridge()
nudged = P.bridge()
with torch.no_grad():
    nudged.inverse[0, 0] += 1e-3

CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "one shot": ("X", {"X": P.shots.index_put((torch.tensor(3),), P.shots[3] * 1.001)}),
    "shots swapped between classes": ("X", {"X": swapped()}),
    "columns permuted": ("X", {"X": P.shots[:, COLUMNS]}),
    "float64 for float32": ("X", {"X": P.shots.double()}),
    "labels": ("X", {"y": P.labels.flip(0)}),  # as many of each class: other rows in class order
    "one label": ("y", {"y": P.labels.index_put((torch.tensor(0),), (P.labels[0] + 1) % 8)}),
    "another bridge": ("bridge", {"bridge": OTHER_BRIDGE}),
    "a nudged bridge": ("bridge", {"bridge": nudged}),
    "other text": ("text_features", {"text_features": P.text.flip(0)}),
    "other hidden text": ("text_hidden", {"text_hidden": P.hidden.flip(0)}),
    "validation features": ("validation", {"validation": (P.queries.flip(0), P.targets)}),
    "validation labels": ("validation", {"validation": (P.queries, P.targets.flip(0))}),
    "no validation": ("validation", {"validation": None}),
    "the blend that validates": ("blend", {"lambda1": 0.5}),
    "steps": ("steps", {"steps": 40}),
    "lr": ("lr", {"lr": 2e-3}),
    "warmup": ("warmup", {"warmup": 6}),
    "preset": ("floor", {"preset": "fast"}),
    "losses": ("losses", {"losses": {"consistency": 0.2}}),
    "class_bias": ("class_bias", {"class_bias": False}),
    "weight_decay": ("weight_decay", {"weight_decay": 0.02}),
    "logit_scale": ("logit_scale", {"logit_scale": 90.0}),
    "eval_every": ("eval_every", {"eval_every": 5}),
    "patience": ("patience", {"patience": 3}),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_run_is_refused(case: str, broken: Path):
    name, changed = CHANGED[case]
    before = broken.read_bytes()
    with pytest.raises(ValueError, match=rf"same shots and settings, got .* with other .*\b{name}\b"):
        fit(broken, **changed)
    assert broken.read_bytes() == before and len(list(broken.parent.iterdir())) == 1


def test_another_version_is_refused(broken: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_digest, "__version__", "9.9")
    with pytest.raises(ValueError, match=r'with other version ".*" \(now "9\.9"\); choose another name'):
        fit(broken)


UNCHANGED: dict[str, dict[str, Any]] = {
    "nothing": {}, "how often it writes": {"checkpoint_every": 7}, "a bar": {"progress": True},
    "names of classes": {
        "y": [f"class {c}" for c in P.labels.tolist()], "class_names": [f"class {c}" for c in range(8)],
        "validation": (P.queries, [f"class {c}" for c in P.targets.tolist()]),
    },
    "strides": {"X": P.shots.T.contiguous().T}, "probability_scale": {"probability_scale": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("case", UNCHANGED)
def test_an_unchanged_run_goes_on(case: str, broken: Path, monkeypatch: pytest.MonkeyPatch):
    whole = fit(None)
    step, taken = BridgeTrainer.step, []
    monkeypatch.setattr(BridgeTrainer, "step", lambda self: (taken.append(1), step(self))[1])
    again = fit(broken, **UNCHANGED[case])
    assert len(taken) == 10  # 20 of 30 were kept
    assert torch.equal(again.losses_, whole.losses_) and again.validation_ == whole.validation_
    assert torch.equal(again.bridge_.inverse, whole.bridge_.inverse) and again.best_step_ == whole.best_step_


def test_a_run_that_stopped_early_stops_there_again(tmp_path: Path):
    """A file written at the step that patience ends at would let the next run go past it."""
    p, path = make(4, 3, 40, noise=0.1), tmp_path / "run.safetensors"
    options = {"steps": 60, "warmup": 5, "lr": 1e-3, "eval_every": 5, "patience": 2, "checkpoint_every": 5}

    def run() -> sb.SeMoBridgeT:
        clf = sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, **options)
        return clf.fit(p.shots, p.labels, validation=(p.queries, p.targets), checkpoint=path)

    first, again = run(), run()
    assert len(first.losses_) == 15 and torch.equal(first.losses_, again.losses_)
    assert first.validation_ == again.validation_


def rewritten(path: Path, **meta: str) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        old = dict(file.metadata())
    save_resealed(tensors, path, {**old, **meta})
    return tensors


@pytest.mark.parametrize("version", [1, 2])  # 2: its steps warmed up along another line
def test_an_older_format_says_what_to_do(broken: Path, version: int):
    changed = {"stamp": json.dumps([[30, 1e-3, 5], [0.5], 0.01])} if version == 1 else {}
    rewritten(broken, format=f"semobridge-ext SeMoBridgeT checkpoint {version}", **changed)
    told = f"got format 'semobridge-ext SeMoBridgeT checkpoint {version}'; remove it and train again, or"
    with pytest.raises(ValueError, match=told):
        fit(broken)


@pytest.mark.parametrize("damage", ["zeros", "zeros under a right checksum", "progress", "cut"])
def test_a_damaged_file_is_refused(broken: Path, damage: str):
    if damage == "progress":
        rewritten(broken, progress=json.dumps([10, 10, 0.5, False, []]))
    else:
        data = broken.read_bytes()
        broken.write_bytes(data[:-400] + (b"" if damage == "cut" else b"\0" * 400))
    if damage == "zeros under a right checksum":
        reseal(broken)
    told = {
        "cut": "must be a whole safetensors file",
        "zeros": "hold what was written, got other bytes in 'tau.second'; remove it and train again",
    }.get(damage, "hold what was written, got .* with other bytes")
    with pytest.raises(ValueError, match=told):
        fit(broken)


def test_two_runs_do_not_share_a_file(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    lock = tmp_path / "run.safetensors.lock"
    told = rf"checkpoint must belong to one run, .* process {os.getpid()} on"
    with _locks.held("SeMoBridgeT.fit", "checkpoint", path, lock), pytest.raises(ValueError, match=told):
        fit(path)
    assert not list(tmp_path.iterdir())


def test_the_stamp_is_the_same_in_another_process(broken: Path):
    """Nothing of it depends on the process: hashes of strings, addresses, the order of sets."""
    program = (
        "import sys, torch\nfrom tests.support.problems import make\nimport semobridge_ext as sb\n"
        "p = make(8, 2, 60, noise=1.2)\n"
        f"clf = sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, **{STEPS!r})\n"
        "clf.fit(p.shots, p.labels, validation=(p.queries, p.targets), checkpoint=sys.argv[1])\n"
        "print(float(clf.losses_[-1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    words = [sys.executable, "-c", program, str(broken)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
