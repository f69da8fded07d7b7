"""A checkpoint of Tip-Adapter-F or APE-T: the steps of an unbroken run, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.fewshot.cache_training import CacheTraining, cosine_rates
from tests.support.problems import make

P = make(6, 3, 12)
RUN = {"epochs": 7, "batch_size": 5, "lr": 1e-2, "checkpoint_every": 2}
MODELS = [sb.TipAdapterF, sb.APET]
both = pytest.mark.parametrize("model", MODELS)


def fit(model: Any, path: Path | None, **changed: Any) -> Any:
    given = {"X": P.shots, "y": P.labels, "text_features": P.text, **RUN, **changed}
    x, y, text = (given.pop(name) for name in ("X", "y", "text_features"))
    return model(text, **given).fit(x, y, checkpoint=path)


def broken(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a run that was interrupted in its sixth epoch of seven."""
    path, epoch = folder / "run.safetensors", CacheTraining._epoch

    def dies(self: CacheTraining, order: torch.Tensor) -> None:
        if self.epoch == 5:
            raise KeyboardInterrupt
        epoch(self, order)

    with monkeypatch.context() as patch:
        patch.setattr(CacheTraining, "_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(model, path)
    assert [p.name for p in folder.iterdir()] == ["run.safetensors"]
    return path


@both
def test_a_killed_run_continues_where_it_was(model, tmp_path, monkeypatch):
    whole = fit(model, None)
    path = broken(model, tmp_path, monkeypatch)
    epoch, taken = CacheTraining._epoch, []
    monkeypatch.setattr(CacheTraining, "_epoch", lambda self, order: (taken.append(1), epoch(self, order))[1])
    again = fit(model, path, checkpoint_every=3, progress=True)
    assert len(taken) == 3  # four epochs were kept
    assert torch.equal(again.losses_, whole.losses_) and torch.equal(again.keys_, whole.keys_)
    assert torch.equal(again.logits(P.queries), whole.logits(P.queries))


CHANGED: dict[str, dict[str, Any]] = {
    "X": {"X": P.shots * 0.5 + 0.1}, "y": {"y": P.labels.roll(1)},
    "text_features": {"text_features": -P.text},
    "lr": {"lr": 2e-2}, "epochs": {"epochs": 8}, "batch_size": {"batch_size": 4}, "seed": {"seed": 1},
    "alpha": {"alpha": 2.0}, "beta": {"beta": 2.0}, "logit_scale": {"logit_scale": 90.0},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
@both
def test_a_changed_run_is_refused(model, name, tmp_path, monkeypatch):
    path = broken(model, tmp_path, monkeypatch)
    told = rf"{model.__name__}\.fit: checkpoint must come from the same shots and settings, .*\b{name}\b"
    with pytest.raises(ValueError, match=told):
        fit(model, path, **CHANGED[name])


def test_a_run_of_the_other_model_is_refused(tmp_path, monkeypatch):
    path = broken(sb.TipAdapterF, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="must be a 'semobridge-ext APET checkpoint 1' file"):
        fit(sb.APET, path)


@both
def test_errors_leave_the_estimator(model):
    clf = fit(model, None)
    want = clf.logits(P.queries)
    for options, told in (
        ({"logit_scale": 3e38}, "the loss must stay finite"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up, got int 0"),
        ({"epochs": -1}, "epochs must be a whole number from 0 up"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
    ):
        with pytest.raises(ValueError, match=rf"{model.__name__}\.fit: {told}"):
            clf.set_params(**options).fit(-P.shots, P.labels)
        clf.set_params(logit_scale=100.0, **RUN)
        assert torch.equal(clf.logits(P.queries), want)


def test_the_rates_are_torchs():
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 11)
    want = []
    for _ in range(11):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert cosine_rates(0.3, 11) == want and cosine_rates(0.3, 0) == []
