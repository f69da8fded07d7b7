"""SeMoBridge-T: hand-written gradients against autograd, trajectories, checkpoints, options."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.reference import bias_loss
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext.fewshot.training_schedule import PRESETS
from tests.support.assertions import assert_close, assert_figures, assert_row_relative
from tests.support.problems import make, reference_logits
from tests.support.training import (
    LOSSES,
    SHAPES,
    autograd_trajectory,
    check_gradients,
    classifier,
    trainer_of,
)
from tests.support.vectors import vector


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("class_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_in_double(loss, shape, class_bias, backend):
    if loss == "bias" and not class_bias:
        return  # nothing depends on a parameter
    classes, shots, width, text_width = SHAPES[shape]
    p = make(classes, shots, 2, width, text_width, dtype=torch.float64)
    with sb.backend(backend):
        trainer = trainer_of(p, LOSSES[loss], class_bias)
        if class_bias:
            trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
        got = trainer.loss_and_gradients()
    check_gradients(p, trainer, got)


def test_gradients_in_float32_on_every_instruction_set(isa):
    p = make(19, 3, 2, 70, 61)
    trainer = trainer_of(p, LossWeights())
    trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    check_gradients(p, trainer, trainer.loss_and_gradients())


def test_several_chunks_give_the_same(monkeypatch):
    p = make(30, 3, 2, dtype=torch.float64)
    whole = trainer_of(p, LossWeights())
    monkeypatch.setattr("semobridge_ext._engines.bridge_training.torch.CHUNK_VALUES", 1)
    cut = trainer_of(p, LossWeights())
    assert len(whole._chunks) == 1 and len(cut._chunks) > 1
    for trainer in (whole, cut):
        check_gradients(p, trainer, trainer.loss_and_gradients())


def test_bias_gradient_at_zero_is_zero():
    tau = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(bias_loss(tau), tau)
    assert torch.isfinite(grad).all() and not grad[0].any() and grad[1].any()
    p = make(4, 2, 2, dtype=torch.float64)
    trainer = trainer_of(p, LOSSES["bias"])
    trainer.loss_and_gradients()
    assert not trainer.gradients["tau"].any()


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_trajectory_of_200_steps(backend):
    """Against eager autograd with torch's AdamW, both in float32."""
    p = make(12, 4, 2, 48, 40)
    schedule = PRESETS["paper"]._replace(warmup=50)
    with sb.backend(backend):
        trainer = trainer_of(p, LossWeights(), scale=100.0)
        trainer.plan([schedule.rate(i) for i in range(200)], 0.01)
        got = [float(trainer.step()) for _ in range(200)]
    assert trainer.losses.tolist() == got
    with pytest.raises(ValueError, match=r"BridgeTrainer.step: plan must hold step 200"):
        trainer.step()
    want, (inverse, _) = autograd_trajectory(p, schedule, 200)
    ratios = [a / b for a, b in zip(got, want, strict=True)]
    assert_figures(ratios, [1.0] * 200, "trajectory", dtype=torch.float32)
    found = trainer.parameters["inverse"].flatten()
    assert_row_relative(found, inverse.flatten().double(), "trajectory_end")


def test_the_rates_are_those_of_the_authors_scheduler():
    want = vector("dassl_schedules")["outputs"]["semobridge_t_first_510_steps"]
    paper = PRESETS["paper"]
    assert_figures([paper.rate(k) for k in range(len(want))], want, "figure", scale=paper.lr)
    assert paper.rate(0) == 1e-5 and paper.rate(1) < paper.rate(0) and paper.rate(4999) == paper.lr
    fast = PRESETS["fast"]
    assert fast.rate(0) == 1e-5 and fast.rate(fast.warmup) == fast.lr > fast.rate(fast.steps)
    assert paper._replace(warmup=0).rate(0) == paper.lr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_torchs(isa, dtype):
    p = make(5, 2, 2, 31, 29, dtype=dtype)
    trainer = trainer_of(p, LossWeights())
    leaf = trainer.parameters["inverse"].double().clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=3e-3, weight_decay=0.1)
    trainer.plan([3e-3] * 5, 0.1)
    for _ in range(5):
        trainer.step()
        leaf.grad = trainer.gradients["inverse"].double().clone()
        optimizer.step()
    assert_close(trainer.parameters["inverse"], leaf, "adamw")


def test_prototypes_carry_the_bias_and_queries_do_not():
    p = make(6, 3, 20)
    clf = classifier(p).fit(p.shots, p.labels)
    w, inverse, tau = p.projection.double(), clf.bridge_.inverse.double(), clf.tau_.double()
    e = normalize(p.shots.double() @ inverse + tau[p.labels], dim=1) @ w
    hat = normalize(torch.zeros(6, 24, dtype=torch.float64).index_add(0, p.labels, e), dim=1)
    raw = normalize(torch.zeros(6, 24, dtype=torch.float64).index_add(0, p.labels, p.shots.double()), dim=1)
    z = clf.similarities(p.queries)
    query = p.queries.double()
    assert float(tau.norm()) > 0
    assert_close(z.bridged_support, normalize(query, dim=1) @ hat.T, "logits")
    assert_close(z.bridged_query, normalize(query @ inverse @ w, dim=1) @ raw.T, "logits")


def test_training_does_not_touch_its_inputs_and_is_deterministic():
    p = make(6, 3, 20)
    bridge = p.bridge()
    before = bridge.inverse.clone()
    runs = [sb.SeMoBridgeT(bridge, p.text, p.hidden, steps=30).fit(p.shots, p.labels) for _ in range(2)]
    assert torch.equal(bridge.inverse, before) and not torch.equal(runs[0].bridge_.inverse, before)
    assert torch.equal(runs[0].losses_, runs[1].losses_) and len(runs[0].losses_) == 30
    assert torch.equal(runs[0].logits(p.queries), runs[1].logits(p.queries))
    # The order of the shots is no part of the problem.
    order = torch.argsort(p.labels, stable=True)
    other = sb.SeMoBridgeT(bridge, p.text, p.hidden, steps=30).fit(p.shots[order], p.labels[order])
    assert torch.equal(other.losses_, runs[0].losses_)


def test_no_steps_is_the_closed_form():
    p = make(6, 3, 20)
    closed = sb.SeMoBridgeClassifier(p.bridge(), p.text).fit(p.shots, p.labels)
    trained = classifier(p, steps=0).fit(p.shots, p.labels)
    for clf in (closed, trained):
        assert_close(clf.logits(p.queries), reference_logits(p, {}), "logits")


def test_validation_chooses_the_step():
    p = make(20, 1, 120, noise=1.2)
    clf = classifier(p, eval_every=10, lr=3e-2).fit(p.shots, p.labels, validation=(p.queries, p.targets))
    steps, accuracies = zip(*clf.validation_, strict=True)
    assert steps == (10, 20, 30, 40, 50, 60) and len(set(accuracies)) > 1
    assert clf.best_step_ == steps[accuracies.index(max(accuracies))]
    assert clf.score(p.queries, p.targets) == max(accuracies)
    short = classifier(p, steps=clf.best_step_, lr=3e-2).fit(p.shots, p.labels)
    assert torch.equal(short.bridge_.inverse, clf.bridge_.inverse)


def test_patience_stops_early():
    p = make(4, 3, 40, noise=0.1)
    clf = classifier(p, eval_every=5, patience=2).fit(p.shots, p.labels, validation=(p.queries, p.targets))
    assert clf.best_step_ == 5 and len(clf.losses_) == 15


def test_a_killed_run_continues_where_it_was(tmp_path, monkeypatch):
    p = make(8, 2, 60, noise=1.2)
    held, path = (p.queries, p.targets), tmp_path / "run.safetensors"
    whole = classifier(p, eval_every=10).fit(p.shots, p.labels, validation=held)
    step, calls = BridgeTrainer.step, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 47:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(BridgeTrainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        classifier(p, eval_every=10, checkpoint_every=20).fit(
            p.shots, p.labels, validation=held, checkpoint=path
        )
    again = classifier(p, eval_every=10, checkpoint_every=20)
    again.fit(p.shots, p.labels, validation=held, checkpoint=path)
    assert len(calls) == 47 + 20  # 40 steps were kept
    assert torch.equal(again.losses_, whole.losses_) and again.validation_ == whole.validation_
    assert torch.equal(again.bridge_.inverse, whole.bridge_.inverse) and torch.equal(again.tau_, whole.tau_)
    with pytest.raises(ValueError, match="same shots and settings"):
        classifier(p, eval_every=10, lr=2e-3).fit(p.shots, p.labels, checkpoint=path)


def test_save_load_and_growth(tmp_path):
    p = make(6, 3, 20)
    clf = classifier(p).fit(p.shots, p.labels)
    clf.save(tmp_path / "t.safetensors")
    again = sb.SeMoBridgeT.load(tmp_path / "t.safetensors")
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    assert torch.equal(again.losses_, clf.losses_) and again.best_step_ == 60
    for c in (clf, again):
        c.add_shots(p.queries[:3], p.targets[:3]).add_classes([6], p.text[:1] + 1, p.queries[4:5], [6])
    assert torch.equal(again.logits(p.queries), clf.logits(p.queries))
    with pytest.raises(ValueError, match="SeMoBridgeClassifier 1"):
        sb.SeMoBridgeClassifier.load(tmp_path / "t.safetensors")


def test_options_leave_losses_out():
    p = make(6, 3, 20)
    bare = sb.SeMoBridgeT(p.bridge(), p.text, losses={"text_embedded": 0}, class_bias=False, steps=3)
    assert bare.fit(p.shots, p.labels).tau_ is None
    with pytest.raises(ValueError, match=r"text_hidden must be given.*losses=\{'text_embedded': 0\}"):
        sb.SeMoBridgeT(p.bridge(), p.text, steps=3).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="losses must map"):
        classifier(p, losses={"txt": 1.0}).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="preset"):
        classifier(p, preset="slow").fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="text_hidden must have width 20"):
        sb.SeMoBridgeT(p.bridge(), p.text, p.text, steps=3).fit(p.shots, p.labels)


def test_seeds_in_one_call():
    p = make(6, 5, 20)
    runs = classifier(p, steps=4).fit_seeds(p.shots, p.labels, shots=2, seeds=(0, 1, 2))
    assert [c.counts_.tolist() for c in runs] == [[2] * 6] * 3
    assert not torch.equal(runs[0].losses_, runs[1].losses_)


def test_without_a_bar_no_tqdm_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    p = make(classes=3, shots=2)
    assert len(classifier(p, steps=2).fit(p.shots, p.labels).losses_) == 2
    with pytest.raises(ImportError, match="tqdm"):
        classifier(p, steps=2, progress=True).fit(p.shots, p.labels)


def test_progress_shows_the_loss(capsys):
    p = make(4, 2, 2)
    clf = classifier(p, steps=50, progress=True).fit(p.shots, p.labels)
    told = capsys.readouterr().err
    assert "train" in told and f"loss={float(clf.losses_[-1]):.4f}" in told


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_one_class(backend):
    """Nothing can be told apart: no loss, no gradient, and no NaN."""
    p = make(1, 3, 2)
    with sb.backend(backend):
        trainer = trainer_of(p, LossWeights())
    rate = 1e-3
    trainer.plan([rate] * 3, 0.0)
    start = trainer.parameters["inverse"].clone()
    losses = [float(trainer.step()) for _ in range(3)]
    assert_figures(losses, [0.0] * 3, "training_loss", dtype=torch.float32, scale=1.0)
    assert all(torch.isfinite(v).all() for v in trainer._flat)
    # AdamW moves by the rate at most, whatever the size of what rounding leaves of a gradient.
    assert float((trainer.parameters["inverse"] - start).abs().max()) < 3.5 * rate
