"""A checkpoint of a task: whatever differs is refused by name; what is the same goes on, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import semobridge_ext as sb
from semobridge_ext import _locks
from semobridge_ext.incremental.training import Trainer
from tests.support import incremental
from tests.support.assertions import assert_same_bits
from tests.support.checksums import reseal
from tests.support.incremental import NAMES

DATA = incremental.findings(dtype=torch.float32)
FIRST, SECOND = [0, 1, 2], [3, 4]
SETTINGS: dict[str, Any] = {"adaptor": "bottleneck", "width": 4, "batch_size": 16, "epochs": 7}


def second(path: Path | None, **changed: Any) -> sb.RETune:
    """The second task, after a first one that is always the same unless it is changed."""
    given: dict[str, Any] = {
        "x": DATA.x, "y": DATA.y[:, SECOND], "prompts": DATA.prompts[SECOND], "known": None, "first": DATA,
        **changed,
    }  # fmt: skip
    x, y, prompts, known, first = (given.pop(name) for name in ("x", "y", "prompts", "known", "first"))
    form = {name: value for name, value in given.items() if name in ("adaptor", "residual", "logit_scale")}
    width = {"width": given["width"]} if "width" in given else {}
    model = incremental.fit(first, FIRST, **SETTINGS | form | width).set_params(**given)
    names = [NAMES[c] for c in SECOND]
    return model.partial_fit(x, y, prompts, findings=names, known=known, checkpoint=path)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a second task that was interrupted in its sixth epoch, after four were written."""
    path, run_epoch = tmp_path / "task.safetensors", Trainer.run_epoch

    def dies(self):
        if self.data.number == 1 and self.epoch == 5:
            raise KeyboardInterrupt
        return run_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            second(path)
    assert [p.name for p in tmp_path.iterdir()] == ["task.safetensors"]
    return path


def assert_same(got: sb.RETune, want: sb.RETune) -> None:
    assert_same_bits(got.losses_, want.losses_)
    assert_same_bits(got.decision_function(DATA.x), want.decision_function(DATA.x))


@pytest.mark.parametrize("changed", [{}, {"checkpoint_every": 3}, {"progress": False}])
def test_a_resumed_task_has_the_bits_of_an_unbroken_one(broken: Path, changed: dict[str, Any], monkeypatch):
    run_epoch, epochs = Trainer.run_epoch, []

    def noting(self):
        epochs.append((self.data.number, self.epoch))
        return run_epoch(self)

    want = second(None)
    monkeypatch.setattr(Trainer, "run_epoch", noting)
    assert_same(second(broken, **changed), want)
    assert [epoch for number, epoch in epochs if number == 1] == [4, 5, 6]
    epochs.clear()
    assert_same(second(broken), want)  # a finished task is read, not repeated
    assert all(number == 0 for number, _ in epochs)


def nudged(x: torch.Tensor) -> torch.Tensor:
    other = x.clone()
    other.view(-1)[-1] += 1e-3
    return other


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "X": ({"x": nudged(DATA.x)}, "X"),
    "dtype": ({"x": DATA.x.double()}, "X"),
    "Y": ({"y": 1 - DATA.y[:, SECOND]}, "Y"),
    "mask": ({"known": torch.arange(40)[:, None].expand(40, 2) > 0}, "Y"),
    "prompts": ({"prompts": nudged(DATA.prompts[SECOND])}, "prompt_features"),
    "first task": ({"first": DATA._replace(x=nudged(DATA.x))}, "adaptors"),
    "adaptor": ({"adaptor": "linear"}, 'adaptor "bottleneck" (now "linear")'),
    **{
        name: ({name: value}, name)
        for name, value in (
            ("width", 5), ("residual", 0.5), ("logit_scale", 20.0), ("epochs", 8), ("batch_size", None),
            ("lr", 0.02), ("weight_decay", 0.1), ("seed", 1),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_other_data_and_settings_are_refused_by_name(broken: Path, case: str):
    changed, told = CHANGES[case]
    before = broken.read_bytes()
    with pytest.raises(ValueError) as raised:
        second(broken, **changed)
    text = str(raised.value)
    assert text.startswith("RETune.partial_fit: checkpoint must come from the same task and settings, got ")
    assert told in text.partition("with other ")[2] and "remove it" in text
    assert broken.read_bytes() == before


def test_another_task_is_refused(broken: Path):
    model = second(None)
    with pytest.raises(ValueError, match=r"of another run, with other .*task 1 \(now 2\)"):
        model.partial_fit(DATA.x, DATA.y[:, SECOND], findings=NAMES[3:], checkpoint=broken)
    with pytest.raises(ValueError, match=r"^RETune.fit: checkpoint must come .*task 1 \(now 0\)"):
        incremental.fit(DATA, SECOND, checkpoint=broken, **SETTINGS)


def test_every_setting_is_among_the_facts():
    free = {"checkpoint_every", "progress"}
    assert set(sb.RETune().get_params()) - free <= set(CHANGES)


@pytest.mark.parametrize("damage", ["content", "stamp"])
def test_a_damaged_file_is_refused(broken: Path, damage: str):
    with safe_open(broken, "pt") as file:
        meta = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if damage == "content":
        tensors["text_up.first"][0, 0] += 1
    else:
        meta["stamp"] = "[]"
    save_file(tensors, broken, meta)
    with pytest.raises(ValueError, match=r"task\.safetensors must hold what was written, got other bytes"):
        second(broken)
    reseal(broken)  # the checksum is right, the content is not
    with pytest.raises(ValueError, match=r"checkpoint must hold what was written, got .*task\.safetensors"):
        second(broken)


def test_one_run_holds_the_file(tmp_path: Path):
    path = tmp_path / "task.safetensors"
    with (
        _locks.held("test", "checkpoint", path, f"{path}.lock"),
        pytest.raises((OSError, RuntimeError, ValueError), match=r"RETune\.partial_fit: checkpoint"),
    ):
        second(path)
    assert not path.exists()
