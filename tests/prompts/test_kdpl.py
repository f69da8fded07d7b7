"""KDPL: the authors' numbers, the names of a step, what a teacher may be, no labels."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._ops.symmetric_kl.op import symmetric_kl
from semobridge_ext.prompts import kdpl as module
from semobridge_ext.prompts.image_rows import CachedRows
from semobridge_ext.prompts.prompt_features import Prompts
from semobridge_ext.prompts.reference import kdpl_loss, learn, prompt_features
from semobridge_ext.prompts.schedule import epoch_batches, rate
from tests.support import towers
from tests.support.assertions import assert_figures, assert_same_bits
from tests.support.prompt_learning import F64, NAMES, images, kdpl, tiny_model
from tests.support.prompts import TOKENIZER
from tests.support.vectors import rows, vector

WORDS: dict[str, Any] = {"n_ctx": 2, "ctx_init": None, "tokenizer": TOKENIZER}


def test_authors_loss_and_choice():
    found = vector("kdpl_loss")
    given, want = found["inputs"], found["outputs"]
    teacher, student = rows(given["teacher_logits"]), rows(given["student_logits"]).requires_grad_()
    loss = symmetric_kl(teacher, student)
    loss.backward()
    assert_figures(loss, want["loss"], "prompt_authors")
    assert_figures(student.grad, rows(want["grad_student_logits"]), "prompt_authors")
    assert_figures(kdpl_loss(teacher, student), want["loss"], "prompt_authors")
    # Logits as cosines of a teacher whose features are unit vectors: each row its own axis.
    scale = float(teacher.abs().max()) * 3
    cosines = teacher / scale
    shown, names = rotations(cosines)
    task = module._Taught(
        CachedRows("t", shown, shown.shape[1], shown.device, F64),
        CachedRows("t", shown, shown.shape[1], shown.device, F64), names, lambda ids: None, scale,
        given["k"], (4, 0), {},
    )  # fmt: skip
    batch = torch.stack([torch.arange(4), torch.zeros(4, dtype=torch.int64)], dim=1)
    chosen = task.chosen(batch)
    assert sorted(chosen.tolist()) == want["chosen_sorted"]
    logits = scale * shown @ names[chosen].T
    assert_figures(logits, teacher[:, chosen], "prompt_authors")
    got = symmetric_kl(logits, student.detach()[:, chosen].contiguous())
    assert_figures(got, want["loss_on_chosen"], "prompt_authors")


def rotations(cosines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows whose products are the given ones: axes, and names completed to unit length."""
    count, names = cosines.shape
    shown = torch.eye(count + names, dtype=F64)[:count]
    rest = (1 - cosines.square().sum(0)).sqrt()
    return shown, torch.cat([cosines.T, torch.diag(rest)], dim=1)


@pytest.mark.parametrize("keep", [3, 6], ids=["some names", "all names"])
def test_training_is_that_of_autograd(keep: int):
    """Through the model's own forward pass over every name's prompt, restricted by loops."""
    model, x, shown = tiny_model(F64), images(12).double(), images(12, 1, 5).double()
    teacher, names = images(6, 7, 5).double(), NAMES
    given: dict[str, Any] = {
        **WORDS,
        "epochs": 6,
        "batch_size": 4,
        "lr": 0.02,
    }
    fitted = sb.KDPL(model, teacher, dictionary=names, keep=keep, **given).fit(x, shown)
    ids = TOKENIZER([f"a a {name}." for name in names])
    source = torch.full_like(ids, -1)
    source[:, 1:3] = torch.arange(2)
    scale = float(model.logit_scale.exp())
    logits = scale * normalize(shown, dim=1) @ normalize(teacher, dim=1).T
    batches = []
    for epoch in range(6):
        for drawn in epoch_batches(12, 4, 1, 0, epoch):
            own = logits[drawn[:, 0]]
            means = torch.softmax(own, 1).mean(0).tolist()
            chosen = sorted(range(6), key=lambda i, m=means: -m[i])[:keep]
            batches.append((
                x[drawn[:, 0]], lambda z, o=own, c=chosen: kdpl_loss(o[:, c], z[:, c]),
                rate(epoch, 6, 0.02, 1e-5),
            ))  # fmt: skip
    first = 0.02 * torch.randn(2, towers.TEXT, generator=torch.Generator().manual_seed(0))
    losses, context = learn(
        lambda v: prompt_features(model.encode_text, model.token_embedding, ids, source, v),
        first.double(), batches, scale,
    )  # fmt: skip
    assert_figures(fitted.losses_, torch.tensor(losses, dtype=F64).reshape(6, 3).mean(1), "prompt_loss")
    assert_figures(fitted.context_, context, "prompt_loss")


def test_no_label_is_read():
    assert list(inspect.signature(sb.KDPL.fit).parameters) == ["self", "X", "X_teacher", "checkpoint"]
    with pytest.raises(NotImplementedError, match=r"KDPL\.fit_seeds: y must stay unread"):
        sb.KDPL(tiny_model(), images(2)).fit_seeds(images(2), [0, 1], shots=1)


@pytest.mark.parametrize("keep,copies", [(3, 1), (6, 0)], ids=["some names", "all names"])
def test_choices_cross_to_the_host_once_an_epoch(keep: int, copies: int, monkeypatch):
    found, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: found.append(self.shape) or cpu(self))

    def nothing(chosen: Any) -> Prompts:
        return Prompts.__new__(Prompts)

    task = module._Taught(
        CachedRows("t", images(12), towers.D, torch.device("cpu"), torch.float32),
        CachedRows("t", images(12), towers.D, torch.device("cpu"), torch.float32),
        images(6), nothing(6) if keep == 6 else nothing, 10.0, keep, (4, 0), {},
    )  # fmt: skip
    assert len(list(task.steps(0))) == 3
    assert len(found) == copies


def test_class_names_are_sorted_with_the_teachers_rows():
    """Names in another order, the teacher's rows with them: the same training."""
    order = [4, 2, 0, 5, 1, 3]
    teacher, given = (
        images(6, 7, 5),
        {**WORDS, "epochs": 2, "batch_size": 5},
    )
    found = [
        sb.KDPL(tiny_model(), teacher[o], [NAMES[i] for i in o], **given).fit(images(10), images(10, 1, 5))
        for o in (list(range(6)), order)
    ]
    assert found[0].classes_.tolist() == sorted(NAMES)
    assert_same_bits(found[0].losses_, found[1].losses_)
    assert_same_bits(found[0].text_features_, found[1].text_features_)
    assert found[0].predict(images(3)).tolist() == found[1].predict(images(3)).tolist()


def test_a_dictionary_has_no_classes():
    fitted = kdpl()
    assert not hasattr(fitted, "classes_")
    with pytest.raises(ValueError, match="KDPL: class_names must be known for a prediction"):
        fitted.predict(images(2))
    assert fitted.features_for(["a thing"]).shape == (1, towers.D)
    other = fitted.set_params(class_names=NAMES, dictionary=None, teacher=images(6, 7, 5))
    other.fit(images(10), images(10, 1, 5))
    assert other.classes_.tolist() == sorted(NAMES)


def test_a_teacher_may_be_a_model():
    model, teacher, names = tiny_model(), towers.open_clip_model(quick_gelu=True), ["sea_lion", "cat"]
    templates = ["a photo of a {}.", "{}"]
    text = sb.class_text_features(teacher, ["sea lion", "cat"], templates).projected
    given = {**WORDS, "epochs": 2, "batch_size": 5}
    own = sb.KDPL(model, teacher, names, teacher_templates=templates, **given)
    ready = sb.KDPL(model, text, names, **given)
    losses = [k.fit(images(10), images(10, 1)).losses_ for k in (own, ready)]
    assert_figures(losses[0], losses[1], "prompt_loss", dtype=torch.float32)


def test_one_view_of_the_teacher_serves_all():
    x, one = torch.stack([images(10), images(10, 1)]), images(10, 2, 5)
    given = {
        "dictionary": NAMES,
        **WORDS,
        "epochs": 2,
        "batch_size": 5,
    }
    found = [
        sb.KDPL(tiny_model(), images(6, 7, 5), **given).fit(x, shown).losses_
        for shown in (one, torch.stack([one, one]))
    ]
    assert_same_bits(*found)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither": ({"dictionary": None}, ValueError, "class_names must stand for dictionary, got neither"),
    "both": ({"class_names": NAMES}, ValueError, "class_names must stand for dictionary, got both"),
    "a bare string": ({"dictionary": "cat"}, TypeError, "dictionary must be a sequence"),
    "fewer rows": ({"teacher": images(4, 0, 5)}, ValueError, "teacher must have 6 rows"),
    "another width": ({"teacher": images(6, 0, 4)}, ValueError, "X_teacher must have width 4"),
    "other images": ({"X_teacher": images(9, 0, 5)}, ValueError, "X_teacher must have 10 rows"),
    "no names at all": ({"keep": 0}, ValueError, "keep must be ≥ 1"),
    "NaN": ({"teacher": torch.full((6, 5), torch.nan)}, ValueError, "teacher must be finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case: str):
    changed, kind, told = BAD[case]
    given = {
        "teacher": images(6, 7, 5),
        "dictionary": NAMES,
        **WORDS,
        **changed,
    }
    shown = given.pop("X_teacher", images(10, 1, 5))
    with pytest.raises(kind, match=rf"KDPL\.fit: {told}.*; "):
        sb.KDPL(tiny_model(), **given).fit(images(10), shown)
