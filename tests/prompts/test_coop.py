"""CoOp: the authors' numbers, 50 steps against plain autograd, classes, views, images, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import semobridge_ext as sb
from semobridge_ext._ops.symmetric_kl.op import symmetric_kl
from semobridge_ext.prompts.prompt_features import PromptEncoder
from semobridge_ext.prompts.reference import learn, prompt_features
from semobridge_ext.prompts.schedule import epoch_batches, rate
from semobridge_ext.prompts.settings import settings_of
from semobridge_ext.prompts.training import Step, Trainer
from tests.support import towers
from tests.support.assertions import assert_figures, assert_same_bits
from tests.support.prompt_learning import F64, NAMES, authors_model, coop, images, tiny_model
from tests.support.prompts import TOKENIZER
from tests.support.vectors import rows, vector

WANT = vector("coop_tiny_tower")["outputs"]
LAYOUTS = {
    "end": ("end", False, None), "front": ("front", False, None), "end_csc": ("end", True, None),
    "end_init": ("end", False, "a photo of a"),
}  # fmt: skip


class Fixed:
    """The same step again and again."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def steps(self, epoch: int):
        yield self.step

    def facts(self) -> dict[str, Any]:
        return {}


# -- the authors' numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_authors_numbers(name: str):
    position, specific, init = LAYOUTS[name]
    model, tokenizer, given = authors_model()
    want = WANT[name]
    encoder = PromptEncoder("test", model, tokenizer)
    encoder.check("cat", 4)
    names = given["class_names"]
    words = encoder.words(names)
    assert [len(n.tokens) for n in words.names] == want["name_lengths"]
    ids, ends = encoder.ids(names, words, 4, position, specific)
    assert ends.tolist() == want["eot"]
    context = rows(want["ctx"]).flatten(0, -2)
    if init is not None:
        assert_same_bits(encoder.word_rows(init), context)
    prompts = encoder.prompts(ids, ends, None)
    labels, teacher = torch.tensor(given["labels"]), rows(given["teacher_logits"])
    x = normalize(rows(given["image_features"]), dim=1)
    losses = {"ce": lambda z: cross_entropy(z, labels), "kdpl": lambda z: symmetric_kl(teacher, z)}
    settings = settings_of({**sb.CoOp(None, []).get_params(), "epochs": 5, "first_lr": 2e-3}, 4)
    for kind, loss in losses.items():
        trainer = Trainer(
            "test", Fixed(Step(prompts, x, loss)), settings, context.clone(), encoder.logit_scale, {}
        )
        with torch.no_grad():
            got, grad = trainer.gradient(trainer.task.step)
            features = prompts.forward(context, keep=False)
        assert_figures(got, want[kind], "prompt_authors")
        assert_figures(grad, rows(want[f"grad_{kind}"]).flatten(0, -2), "prompt_authors")
    assert_figures(features, rows(want["text_features"]), "prompt_authors")
    logits = encoder.logit_scale * x @ normalize(features, dim=1).T
    assert_figures(logits, rows(want["logits"]), "prompt_authors")
    # Five steps at one rate, where a training's cosine would lower it.
    trainer = Trainer(
        "test", Fixed(Step(prompts, x, losses["ce"])), settings, context.clone(), encoder.logit_scale, {}
    )
    with torch.no_grad():
        got = [float(trainer._step(trainer.task.step, 2e-3)) for _ in range(5)]
    assert_figures(got, want["ce_of_5_sgd_steps"], "prompt_authors")
    assert_figures(trainer.vectors, rows(want["ctx_after_5_steps"]).flatten(0, -2), "prompt_authors")


def test_authors_rates():
    want = vector("dassl_schedules")["outputs"]["coop_50_epochs"]
    assert_figures([rate(epoch, 50, 2e-3, 1e-5) for epoch in range(50)], want, "prompt_authors", scale=2e-3)


# -- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_fifty_steps_are_those_of_autograd(dtype: torch.dtype):
    """Through the model's own forward pass over all positions, torch.optim.SGD and the same draws."""
    model, names = tiny_model(dtype), sorted(NAMES)
    x, y = images(20).to(dtype), [NAMES[i % 6] for i in range(20)]
    fitted = sb.CoOp(model, NAMES, n_ctx=3, epochs=10, batch_size=4, lr=0.02, tokenizer=TOKENIZER).fit(x, y)
    ids = TOKENIZER([f"a a a {name}." for name in names])
    source = torch.full_like(ids, -1)
    source[:, 1:4] = torch.arange(3)
    labels = torch.tensor([names.index(name) for name in y])
    first = 0.02 * torch.randn(3, towers.TEXT, generator=torch.Generator().manual_seed(0))
    batches = []
    for epoch in range(10):
        for drawn in epoch_batches(20, 4, 1, 0, epoch):
            chosen = labels[drawn[:, 0]]
            batches.append(
                (x[drawn[:, 0]], lambda z, c=chosen: cross_entropy(z, c), rate(epoch, 10, 0.02, 1e-5))
            )
    losses, context = learn(
        lambda v: prompt_features(model.encode_text, model.token_embedding, ids, source, v),
        first.to(dtype), batches, float(model.logit_scale.exp()),
    )  # fmt: skip
    assert len(losses) == 50
    want = torch.tensor(losses, dtype=F64).reshape(10, 5).mean(1)
    assert_figures(fitted.losses_, want, "prompt_loss", dtype=dtype)
    assert_figures(fitted.context_, context, "prompt_loss", dtype=dtype)
    assert float(want[-1]) < 0.9 * float(want[0])


def test_class_specific_contexts_learn_their_own():
    fitted = coop(class_specific=True, epochs=4)
    assert fitted.context_.shape == (3, 3, towers.TEXT)
    assert not torch.equal(fitted.context_[0], fitted.context_[1])
    with pytest.raises(ValueError, match=r"CoOp\.features_for: context_ must be shared"):
        fitted.features_for(["oak"])


def test_draws_cover_every_image_once():
    drawn = epoch_batches(10, 4, 3, 0, 2)
    assert [len(batch) for batch in drawn] == [4, 4]  # the last two are dropped
    assert len({int(i) for batch in drawn for i in batch[:, 0]}) == 8
    assert [len(batch) for batch in epoch_batches(3, 4, 1, 0, 0)] == [3]  # all there is
    views = torch.cat([batch[:, 1] for e in range(20) for batch in epoch_batches(10, 4, 3, 0, e)])
    assert sorted(set(views.tolist())) == [0, 1, 2]


def test_views_are_drawn_from():
    x, y = torch.stack([images(10, s) for s in (0, 1)]), [NAMES[i % 3] for i in range(10)]
    given = {"n_ctx": 2, "epochs": 2, "batch_size": 10, "tokenizer": TOKENIZER}
    both = sb.CoOp(tiny_model(), NAMES[:3], **given).fit(x, y)
    alone = [sb.CoOp(tiny_model(), NAMES[:3], **given).fit(view, y).losses_ for view in x]
    assert not any(torch.equal(both.losses_, other) for other in alone)
    twice = sb.CoOp(tiny_model(), NAMES[:3], **given).fit(torch.stack([x[0], x[0]]), y)
    assert_same_bits(twice.losses_, alone[0])


# -- images --------------------------------------------------------------------------------------------


def test_images_are_encoded_in_every_step():
    """A fixed transform gives what cached features give; a random one is drawn anew, and repeatably."""
    model = tiny_model()
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    y = [NAMES[i % 3] for i in range(8)]
    learner = sb.CoOp(model, NAMES[:3], n_ctx=2, epochs=2, batch_size=4)
    cached = learner.fit(sb.clip.encode_image(model, pixels, batch_size=4), y).losses_
    plain = learner.fit_images(list(pixels), y, lambda image: image).losses_
    assert_figures(plain, cached, "prompt_loss", dtype=torch.float32)
    state = torch.random.get_rng_state()

    def noisy(image: Tensor) -> Tensor:
        return image + torch.randn(image.shape)

    first, again = (learner.fit_images(list(pixels), y, noisy).losses_ for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same_bits(first, again)
    assert not torch.equal(first, plain)


# -- classes and predictions ---------------------------------------------------------------------------


def test_classes_are_sorted_and_rows_follow():
    fitted = coop()
    assert fitted.classes_.tolist() == sorted(NAMES[:3])
    assert_same_bits(fitted.features_for(sorted(NAMES[:3])), fitted.text_features_)
    new = fitted.features_for(["old oak", "cat"])
    want = fitted.text_features_[fitted.classes_.tolist().index("cat")]
    assert_figures(new[1], want, "prompt_tower", dtype=torch.float32)
    x = images(6, 3)
    logits = fitted.logit_scale_ * normalize(x, dim=1) @ fitted.text_features_.T
    assert_figures(fitted.logits(x), logits, "prompt_tower", dtype=torch.float32)
    assert fitted.predict(x).tolist() == fitted.classes_[logits.argmax(1).numpy()].tolist()
    assert_figures(fitted.predict_proba(x), torch.softmax(logits, 1), "prompt_loss", dtype=torch.float32)
    assert 0 <= fitted.score(x, ["cat"] * 6) <= 1
    assert isinstance(fitted.predict_proba(x.numpy()), np.ndarray)


def test_new_classes_by_zero_shot():
    fitted = coop()
    features = fitted.features_for(NAMES[3:])
    found = sb.ZeroShot(features, class_names=NAMES[3:], logit_scale=fitted.logit_scale_).fit()
    assert set(found.predict(features).tolist()) == set(NAMES[3:])


def test_a_longer_list_keeps_its_order():
    """Names in any order, underscores read as blanks."""
    y = ["sea_lion", "cat"] * 4
    fitted = sb.CoOp(tiny_model(), ["sea_lion", "cat"], n_ctx=2, epochs=1, batch_size=8).fit(images(8), y)
    assert_same_bits(fitted.features_for(["sea lion"])[0], fitted.features_for(["sea_lion"])[0])


# -- bad input -----------------------------------------------------------------------------------------

LONG = "an extraordinarily long name of a class that nobody would ever type in full"
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a bare string": ({"class_names": "cat"}, TypeError, r"class_names must be a sequence"),
    "a number": ({"class_names": ["cat", 3]}, TypeError, r"class_names must hold words"),
    "no names": ({"class_names": []}, ValueError, r"class_names must hold a name"),
    "one name twice": ({"class_names": ["cat", "cat"]}, ValueError, r"class_names must be distinct"),
    "a long name": (
        {"class_names": [LONG, "cat"], "y": ["cat"] * 10},
        ValueError,
        r"class_names must leave room for 3 vectors",
    ),
    "too many vectors": ({"n_ctx": 12}, ValueError, r"class_names must leave room for 12 vectors"),
    "no vectors": ({"n_ctx": 0}, ValueError, r"n_ctx must be ≥ 1"),
    "half a vector": ({"n_ctx": 2.5}, TypeError, r"n_ctx must be a whole number"),
    "no such place": ({"class_token_position": "behind"}, ValueError, r"class_token_position must be one of"),
    "no words to begin from": ({"ctx_init": " "}, TypeError, r"ctx_init must be words"),
    "a negative rate": ({"lr": -1.0}, ValueError, r"lr must be above 0"),
    "a scale of nothing": ({"logit_scale": 0}, ValueError, r"logit_scale must be above 0"),
    "no rows at once": ({"batch_rows": 0}, ValueError, r"batch_rows must be ≥ 1"),
    "a word for a flag": ({"class_specific": "yes"}, TypeError, r"class_specific must be True or False"),
    "another label": ({"y": ["dog"] * 10}, ValueError, r"y must hold names of the classes"),
    "fewer labels": ({"y": ["cat"]}, ValueError, r"y must have 10 labels"),
    "another width": ({"X": torch.ones(10, 5)}, ValueError, r"X must have width 24"),
    "NaN": ({"X": torch.full((10, 24), torch.nan)}, ValueError, r"X must be finite"),
    "no model": ({"model": 3}, TypeError, r"model must be a CLIP model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case: str):
    changed, kind, told = BAD[case]
    given = {"model": tiny_model(), "class_names": NAMES[:3], "n_ctx": 3, "tokenizer": TOKENIZER, **changed}
    x, y = given.pop("X", images(10)), given.pop("y", [NAMES[i % 3] for i in range(10)])
    learner = sb.CoOp(given.pop("model"), given.pop("class_names"), **given)
    with pytest.raises(kind, match=rf"CoOp\.fit: {told}.*; "):
        learner.fit(x, y)
    assert not hasattr(learner, "context_")


def test_a_loss_that_diverges_is_refused():
    with pytest.raises(ValueError, match=r"CoOp\.fit: the (loss|context) must stay finite, got .*; lower lr"):
        coop(lr=1e38, epochs=6)


def test_verbs_before_fit_are_refused():
    learner = sb.CoOp(tiny_model(), NAMES)
    for verb in (learner.predict, learner.features_for):
        with pytest.raises(ValueError, match="CoOp: must be fitted first"):
            verb(images(2) if verb == learner.predict else ["cat"])


def test_bad_transforms_are_refused():
    learner = sb.CoOp(tiny_model(), NAMES[:3], n_ctx=2)
    with pytest.raises(TypeError, match=r"CoOp\.fit_images: transform must be callable"):
        learner.fit_images([1], ["cat"], None)
    with pytest.raises(ValueError, match=r"CoOp\.fit_images: images must hold an image"):
        learner.fit_images([], [], nn.Identity())


def test_parameters_are_scikit_learns():
    learner = sb.CoOp(tiny_model(), NAMES, n_ctx=5)
    copy = sb.CoOp(**learner.get_params())
    assert copy.get_params() == learner.get_params() and "n_ctx=5" in repr(copy)
    assert learner.set_params(lr=0.1).lr == 0.1
    first, second = coop().fit_seeds(
        images(12), ["cat", "sea lion", "big red bus"] * 4, shots=2, seeds=(0, 1)
    )
    assert first.context_.shape == second.context_.shape
