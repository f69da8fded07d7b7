"""Every term of SpectralGCD's loss: the authors' numbers and gradients, and a loop over rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from semobridge_ext import reference
from semobridge_ext.discovery import losses, network
from semobridge_ext.discovery.losses import LossWeights, Terms
from semobridge_ext.discovery.schedule import epoch_batches, rate, teacher_temperature
from tests.support.assertions import assert_figures
from tests.support.vectors import rows, vector

STEP = vector("spectralgcd_losses")
GIVEN, WANT = STEP["inputs"], STEP["outputs"]
NAMES = {
    "concept_weight": "ln_t_weight", "concept_bias": "ln_t_bias", "first_weight": "mlp.0.weight",
    "first_bias": "mlp.0.bias", "second_weight": "mlp.2.weight", "second_bias": "mlp.2.bias",
    "last_weight": "mlp.4.weight", "last_bias": "mlp.4.bias", "prototypes": "last_layer.weight_v",
}  # fmt: skip


def all_terms(
    logits: Tensor, projections: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Terms:
    return Terms(
        losses.supervised(logits, labels),
        losses.self_distillation(logits, temperature),
        losses.mean_entropy(logits),
        losses.contrast(projections),
        losses.supervised_contrast(projections, labels),
        losses.concept_distillation(student, teacher.repeat(2, 1)),
    )


def test_authors_numbers_and_gradients():
    source = {**GIVEN, **GIVEN["head"]}
    p = {ours: rows(source[theirs]).requires_grad_() for ours, theirs in NAMES.items()}
    z = rows(GIVEN["student_rows"]).requires_grad_()
    labels = torch.tensor(GIVEN["labels"]).masked_fill(~torch.tensor(GIVEN["labelled"]), -1)
    u = linear(z, p["concept_weight"], p["concept_bias"])
    logits, projections = network.classify(p, u), network.project(p, u)
    assert_figures(logits, WANT["logits"], "gcd_loss")
    assert_figures(projections, WANT["projection"], "gcd_loss")
    target = teacher_temperature(GIVEN["epoch"], 30, 0.07, 0.04)
    assert_figures(target, WANT["teacher_temp_at_epoch"], "figure")
    terms = all_terms(logits, projections, z, rows(GIVEN["teacher_rows"]), labels, target)
    for ours, theirs in (
        ("supervised", "cls"), ("distillation", "distill"), ("entropy", "memax"), ("contrast", "infonce"),
        ("supervised_contrast", "supcon"),
    ):  # fmt: skip
        assert_figures(getattr(terms, ours), WANT[theirs], "gcd_loss", context=ours)
    both = WANT["kl_teacher_student"] + WANT["kl_student_teacher"]
    assert_figures(terms.concepts, both, "gcd_loss")
    total = LossWeights(GIVEN["sup_weight"], GIVEN["memax_weight"]).total(terms)
    assert_figures(total, WANT["total"], "gcd_loss")
    total.backward()
    want = {**WANT, **WANT["grad_head"]}
    for ours, theirs in NAMES.items():
        grad = want.get(f"grad_{theirs}", want.get(theirs))
        assert_figures(p[ours].grad, grad, "gcd_grad", context=ours)
    assert_figures(z.grad, WANT["grad_student_rows"], "gcd_grad")


def test_authors_schedule():
    want = vector("spectralgcd_schedule")["outputs"]
    for first, theirs in ((0.005, 0), (0.1, 1)):
        got = [rate(epoch, 200, first) for epoch in range(200)]
        assert_figures(got, [pair[theirs] for pair in want["lr"]], "figure")
    got = [teacher_temperature(epoch, 30, 0.07, 0.04) for epoch in range(200)]
    assert_figures(got, want["teacher_temp"], "figure")
    assert teacher_temperature(0, 1, 0.07, 0.04) == 0.04


@given(
    images=st.integers(1, 6), classes=st.integers(2, 5), width=st.integers(2, 5), concepts=st.integers(2, 6),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_terms_and_gradients_are_those_of_loops(images, classes, width, concepts, seed):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    labels = torch.randint(classes, (images,), generator=g)
    labelled = torch.rand(images, generator=g) < 0.6
    labelled[0] = True
    given = [0.3 * draw(2 * images, classes), draw(2 * images, width), 2 * draw(2 * images, concepts)]
    teacher = 2 * draw(images, concepts)
    sides = [[v.clone().requires_grad_() for v in given] for _ in range(2)]
    got = all_terms(*sides[0], teacher, labels.masked_fill(~labelled, -1), 0.06)
    want = reference.gcd_losses(*sides[1], teacher, labels, labelled, teacher_temperature=0.06)
    for name in ("supervised", "distillation", "entropy", "contrast", "supervised_contrast"):
        assert_figures(getattr(got, name), getattr(want, name), "gcd_loss", scale=1.0, context=name)
    assert_figures(got.concepts, want.forward_kl + want.reverse_kl, "gcd_loss", scale=1.0)
    sum(got).backward()
    sum(want).backward()
    for ours, theirs in zip(*sides, strict=True):
        assert_figures(ours.grad, theirs.grad, "gcd_grad", scale=10.0)


@pytest.mark.parametrize("forward,reverse", [(1, 1), (1, 0), (0, 1), (0.5, 2), (2, 0.5), (0, 0)])
def test_each_divergence_has_its_weight(forward: float, reverse: float):
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    got = losses.concept_distillation(student, teacher, forward, reverse)
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    want = (forward * p * (p / q).log() + reverse * q * (q / p).log()).sum(1).mean()
    assert_figures(got, want, "gcd_loss", scale=1.0)
    (got_grad,) = torch.autograd.grad(got, student)
    (want_grad,) = torch.autograd.grad(want, student)
    assert_figures(got_grad, want_grad, "gcd_grad", scale=1.0)


def test_targets_have_no_gradient_and_come_from_the_other_view():
    logits = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    losses.self_distillation(logits, 0.04).backward()
    target = torch.softmax(logits.detach().flip(0) / 0.04, 1)
    want = (torch.softmax(logits.detach() / 0.1, 1) - target) / 0.1 / 2
    assert_figures(logits.grad, want, "gcd_grad")


def test_a_batch_without_labels_has_no_supervised_terms():
    rows_ = torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    unknown = torch.tensor([-1, -1])
    for loss in (losses.supervised(rows_, unknown), losses.supervised_contrast(rows_, unknown)):
        assert float(loss.detach()) == 0
        (grad,) = torch.autograd.grad(loss, rows_)
        assert not grad.any()


def test_an_unused_class_leaves_the_entropy_finite():
    logits = torch.tensor([[1.0, -1e4]] * 2, requires_grad=True)
    loss = losses.mean_entropy(logits)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert_figures(loss, torch.tensor(2.0).log(), "figure", dtype=torch.float32)


# -- draws -------------------------------------------------------------------------------------------


def test_half_of_a_batch_is_labelled():
    labelled = torch.arange(2000) < 100
    batches = [b for epoch in range(20) for b in epoch_batches(labelled, 128, 3, 0, epoch)]
    assert len(batches) == 20 * (2000 // 128) and all(b.shape == (128, 3) for b in batches)
    drawn = torch.cat(batches)
    assert 0.48 < float(labelled[drawn[:, 0]].double().mean()) < 0.52
    counts = torch.bincount(drawn[:, 0], minlength=2000).double()
    assert counts[:100].min() > 120 and counts[100:].mean() < 12  # 192 and 10 are expected
    first, second = drawn[:, 1], drawn[:, 2]
    assert bool((first != second).all())
    assert torch.bincount(first * 3 + second, minlength=9).tolist().count(0) == 3  # all pairs of two


def test_draws_depend_on_seed_and_epoch_alone():
    labelled = torch.arange(50) % 3 == 0

    def one(seed: int, epoch: int) -> Tensor:
        return torch.cat(epoch_batches(labelled, 16, 2, seed, epoch))

    torch.manual_seed(5)
    want = one(1, 2)
    torch.manual_seed(6)
    assert torch.equal(one(1, 2), want)
    assert not torch.equal(one(1, 3), want) and not torch.equal(one(2, 2), want)


@pytest.mark.parametrize("known", [0, 50])
def test_all_or_none_labelled_are_drawn_alike(known: int):
    drawn = torch.cat(epoch_batches(torch.arange(50) < known, 10, 1, 0, 0))
    assert len(drawn) == 50 and not drawn[:, 1:].any() and len(drawn[:, 0].unique()) > 20
