"""A checkpoint of SpectralGCD: whatever differs is refused by name; what is the same goes on, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import semobridge_ext as sb
from semobridge_ext import _locks
from semobridge_ext.discovery.training import Trainer
from tests.support import discovery
from tests.support.assertions import assert_same_bits
from tests.support.checksums import reseal
from tests.support.source_tree import ROOT, environment

DATA = discovery.images(40, dtype=torch.float32)
X, Y, CONCEPTS = DATA.x, DATA.y, DATA.concepts
FACES, NAMES = DATA.teacher
SETTINGS: dict[str, Any] = {
    "width": 8, "hidden": 8, "projection": 4, "epochs": 7, "batch_size": 8, "warmup": 3,
    "checkpoint_every": 2,
}  # fmt: skip


def fit(path: Path | None, **changed: Any) -> sb.SpectralGCD:
    return discovery.fit(DATA, checkpoint=path, **SETTINGS | changed)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that was interrupted in the fourth of seven epochs, after two were written."""
    path, run_epoch = tmp_path / "run.safetensors", Trainer.run_epoch

    def dies(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return run_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    return path


def assert_same(got: sb.SpectralGCD, want: sb.SpectralGCD) -> None:
    assert_same_bits(got.losses_, want.losses_)
    for name, value in want._folded.items():
        if name != "bias" or bool(value.any()):
            assert_same_bits(got._folded[name], value, name)


@pytest.mark.parametrize("changed", [{}, {"checkpoint_every": 3}, {"lr": 0.1, "momentum": 0.9}])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(broken: Path, changed: dict[str, Any], monkeypatch):
    run_epoch, epochs = Trainer.run_epoch, []
    monkeypatch.setattr(Trainer, "run_epoch", lambda self: (epochs.append(self.epoch), run_epoch(self)))
    assert_same(fit(broken, **changed), (taken := list(epochs), fit(None))[1])
    assert taken == [2, 3, 4, 5, 6]
    epochs.clear()
    assert_same(fit(broken), fit(None))  # a finished run is read, not repeated
    assert epochs == [0, 1, 2, 3, 4, 5, 6]


def nudged(x: torch.Tensor) -> torch.Tensor:
    other = x.clone()
    other.view(-1)[-1] += 1e-6
    return other


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "X": ({"X": nudged(X)}, "X"),
    "views": ({"X": X.flip(0)}, "X"),
    "y": ({"y": [*Y[1:], None]}, "y"),
    "concepts": ({"concept_features": CONCEPTS.flip(0)}, "concept_features"),
    "teacher's images": ({"teacher": (nudged(FACES), NAMES)}, "teacher"),
    "teacher's concepts": ({"teacher": (FACES, nudged(NAMES))}, "teacher"),
    "no teacher": ({"teacher": None, "forward_kl": 0, "reverse_kl": 0}, "forward_kl 1.0 (now 0.0)"),
    "classes": ({"num_classes": 6}, "num_classes 5 (now 6)"),
    "adapter": ({"adapter": False}, "adapter true (now false)"),
    "dtype": ({"X": X.double()}, "X"),
    **{
        name: ({name: value}, name)
        for name, value in (
            ("temperature", 0.3), ("width", 9), ("hidden", 9), ("projection", 5), ("epochs", 8),
            ("batch_size", 9), ("lr", 0.2), ("adapter_lr", 0.1), ("momentum", 0.8), ("weight_decay", 0.1),
            ("supervised_weight", 0.5), ("entropy_weight", 2.0), ("forward_kl", 2.0), ("reverse_kl", 2.0),
            ("first_temperature", 0.1), ("last_temperature", 0.05), ("warmup", 4), ("seed", 1),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_other_data_and_settings_are_refused_by_name(broken: Path, case: str):
    changed, told = CHANGES[case]
    before = broken.read_bytes()
    with pytest.raises(ValueError) as raised:
        fit(broken, **changed)
    text = str(raised.value)
    assert text.startswith("SpectralGCD.fit: checkpoint must come from the same images and settings, got ")
    assert told in text.partition("with other ")[2] and "remove it" in text
    assert broken.read_bytes() == before


def test_every_setting_is_among_the_facts():
    free = {"checkpoint_every", "progress", "model"}  # the model: test_vision_block.py
    assert {name for name in sb.SpectralGCD().get_params() if name not in free} <= {
        name.replace("classes", "num_classes").replace("concepts", "concept_features") for name in CHANGES
    }


@pytest.mark.parametrize("damage", ["content", "stamp", "progress"])
def test_a_damaged_file_is_refused(broken: Path, damage: str):
    with safe_open(broken, "pt") as file:
        meta = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if damage == "content":
        tensors["prototypes"][0, 0] += 1
    else:
        meta[damage] = {"stamp": "[]", "progress": json.dumps(5)}[damage]
    save_file(tensors, broken, meta)
    with pytest.raises(ValueError, match=r"run\.safetensors must hold what was written, got other bytes"):
        fit(broken)
    reseal(broken)  # the checksum is right, the stamp is not
    with pytest.raises(ValueError, match=r"checkpoint must hold what was written, got .*run\.safetensors"):
        fit(broken)


def test_another_format_says_what_to_do(tmp_path: Path):
    save_file(
        {"losses": torch.zeros(1)}, tmp_path / "x", {"format": "semobridge-ext SpectralGCD checkpoint 0"}
    )
    with pytest.raises(ValueError, match=r"checkpoint 1' file, .* remove it and train again"):
        fit(tmp_path / "x")


def test_one_run_holds_the_file(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    with (
        _locks.held("test", "checkpoint", path, f"{path}.lock"),
        pytest.raises((OSError, RuntimeError, ValueError), match=r"SpectralGCD\.fit: checkpoint"),
    ):
        fit(path)
    assert not path.exists()
    fit(path)


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_another_process(broken: Path, tmp_path: Path):
    code = f"""
import sys
import torch
from tests.support import discovery

data = discovery.images(40, dtype=torch.float32)
discovery.fit(data, checkpoint=sys.argv[1], **{SETTINGS}).save(sys.argv[2])
"""
    out = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(broken), str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_bits(sb.SpectralGCD.load(out).losses_, fit(None).losses_)
