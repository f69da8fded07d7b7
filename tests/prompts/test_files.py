"""Files of prompt learners: of another tower refused; unfinished trainings go on, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.prompts.training import Trainer
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.prompt_learning import NAMES, coop, images, kdpl, tiny_model
from tests.support.prompts import TOKENIZER

MADE: dict[str, tuple[type, Callable[..., Any]]] = {
    "CoOp": (sb.CoOp, coop),
    "CoOp, specific": (sb.CoOp, lambda *a, **k: coop(*a, class_specific=True, **k)),
    "KDPL, classes": (sb.KDPL, lambda *a, **k: kdpl(*a, class_names=NAMES, dictionary=None, **k)),
    "KDPL, dictionary": (sb.KDPL, kdpl),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_saved_is_read(kind: str, tmp_path: Path):
    cls, make = MADE[kind]
    fitted, path = make(), tmp_path / "it.safetensors"
    fitted.save(path)
    found = cls.load(path, tiny_model(), tokenizer=TOKENIZER)
    assert_same_bits(found.context_, fitted.context_)
    assert_same_bits(found.losses_, fitted.losses_)
    assert found.logit_scale_ == fitted.logit_scale_ and found.n_ctx == fitted.n_ctx
    if hasattr(fitted, "classes_"):
        assert found.predict(images(5)).tolist() == fitted.predict(images(5)).tolist()
    if kind != "CoOp, specific":
        assert_same_bits(found.features_for(["oak"]), fitted.features_for(["oak"]))
    again = tmp_path / "again.safetensors"
    found.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_another_tower_is_refused(tmp_path: Path):
    path, model = tmp_path / "it.safetensors", towers.open_clip_model()
    coop().save(path)
    with torch.no_grad():
        model.transformer.resblocks[1].mlp.c_fc.bias[3] += 1e-3
    with pytest.raises(
        ValueError, match=r"CoOp\.load: model must be the one .*it\.safetensors.*other weights"
    ):
        sb.CoOp.load(path, model)
    with pytest.raises(ValueError, match=r"KDPL\.load: .*it\.safetensors"):
        sb.KDPL.load(path, tiny_model())


def test_what_is_not_fitted_is_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match="CoOp: must be fitted first"):
        sb.CoOp(tiny_model(), NAMES).save(tmp_path / "it")
    assert not list(tmp_path.iterdir())


# -- checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture(params=["CoOp", "KDPL, dictionary"])
def broken(request, tmp_path: Path, monkeypatch) -> tuple[Path, Callable[..., Any]]:
    """The checkpoint of a run that Ctrl-C ended in the fourth of six epochs, after two were written."""
    path, run_epoch, make = tmp_path / "run.safetensors", Trainer.run_epoch, MADE[request.param][1]

    def dies(self: Trainer) -> None:
        if self.epoch == 3:
            raise KeyboardInterrupt
        run_epoch(self)

    def again(checkpoint: Any, **changed: Any) -> Any:
        return make(checkpoint, **{"epochs": 6, "checkpoint_every": 2, **changed})

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            again(path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    return path, again


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(broken, monkeypatch):
    path, again = broken
    run_epoch, epochs = Trainer.run_epoch, []
    monkeypatch.setattr(Trainer, "run_epoch", lambda self: (epochs.append(self.epoch), run_epoch(self)))
    got, taken = again(path), list(epochs)
    want = again(None)
    assert taken == [2, 3, 4, 5]
    assert_same_bits(got.context_, want.context_)
    assert_same_bits(got.losses_, want.losses_)
    epochs.clear()
    assert_same_bits(again(path).context_, want.context_)  # a finished run is read, not repeated
    assert not epochs


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "the images": ({"seed": 3}, "X"),
    "a rate": ({"lr": 0.1}, "lr"),
    "the scale": ({"logit_scale": 7.0}, "logit_scale"),
    "the model": ({"model": "another"}, "model"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_runs_file_is_refused(broken, case: str):
    path, again = broken
    changed, told = CHANGES[case]
    if changed.get("model"):
        changed = {"model": towers.open_clip_model(quick_gelu=True)}
    with pytest.raises(ValueError, match=rf"checkpoint must come from the same images.* {told}"):
        again(path, **changed)


def test_the_names_count():
    """A checkpoint of other classes is refused by their argument's name."""
    import tempfile

    y = [NAMES[i % 2] for i in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        sb.CoOp(tiny_model(), NAMES[:3], n_ctx=2, epochs=1, batch_size=5).fit(images(10), y, checkpoint=path)
        with pytest.raises(ValueError, match="other class_names"):
            sb.CoOp(tiny_model(), NAMES[:4], n_ctx=2, epochs=1, batch_size=5).fit(
                images(10), y, checkpoint=path
            )
