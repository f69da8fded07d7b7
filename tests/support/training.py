"""SeMoBridge-T's trainer on small problems, and autograd of its oracle beside it."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext.fewshot.training_schedule import Schedule
from tests.support.assertions import assert_figures
from tests.support.problems import Problem

NOTHING = LossWeights(0, 0, 0, 0, 0)
LOSSES = {"all": LossWeights(), **{n: NOTHING._replace(**{n: 1.0}) for n in LossWeights._fields}}
# (classes, shots, D, T): C·K below and above D, one shot, unequal shots, odd widths, two classes.
SHAPES = {
    "above D": (9, 4, 24, 20), "below D": (4, 2, 24, 20), "one shot": (6, 1, 17, 33),
    "unequal": (4, [1, 5, 2, 3], 13, 11), "many classes": (70, 2, 16, 16), "two classes": (2, 3, 8, 9),
}  # fmt: skip


def in_order(p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.argsort(p.labels, stable=True)
    return p.shots[order], p.labels[order]


def trainer_of(
    p: Problem, weights: LossWeights, class_bias: bool = True, scale: float = 5.0
) -> BridgeTrainer:
    shots, labels = in_order(p)
    text, hidden = normalize(p.text, dim=1), normalize(p.hidden, dim=1)
    inverse = p.bridge(p.projection.dtype).inverse.detach()
    return BridgeTrainer(
        inverse,
        p.projection,
        shots,
        labels,
        text,
        hidden,
        class_bias=class_bias,
        logit_scale=scale,
        weights=weights,
    )


def autograd(
    p: Problem, trainer: BridgeTrainer, scale: float = 5.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The reference's loss and gradients at the trainer's parameters, in float64."""
    shots, labels = in_order(p)
    leaves = {n: v.detach().double().requires_grad_() for n, v in trainer.parameters.items()}
    text, hidden = (normalize(v, dim=1).double() for v in (p.text, p.hidden))
    loss, _ = semobridge_t_loss(
        leaves["inverse"], leaves.get("tau"), p.projection.double(), shots.double(), labels, text, hidden,
        logit_scale=scale, weights=trainer.weights,
    )  # fmt: skip
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


def check_gradients(p: Problem, trainer: BridgeTrainer, loss: torch.Tensor) -> None:
    """The trainer's loss and gradients against `autograd`."""
    want, gradients = autograd(p, trainer)
    dtype = trainer.parameters["inverse"].dtype
    assert float(want) > 1e-6 and max(float(g.abs().max()) for g in gradients.values()) > 1e-4
    assert_figures(loss, want, "training_loss", dtype=dtype, scale=max(float(want), 1.0))
    for name, exact in gradients.items():
        scale = max(float(exact.abs().max()), 1e-3)  # a gradient that is nearly zero has no digits of its own
        assert_figures(
            trainer.gradients[name], exact, "training_grad", dtype=dtype, scale=scale, context=name
        )


def autograd_trajectory(p: Problem, schedule: Schedule, steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """Losses, W⁺ and τ of the reference's steps with torch's AdamW."""
    shots, labels = in_order(p)
    text, hidden = normalize(p.text, dim=1), normalize(p.hidden, dim=1)
    inverse = p.bridge().inverse.detach().clone().requires_grad_()
    tau = inverse.new_zeros(len(text), inverse.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([inverse, tau], lr=1.0, weight_decay=0.01)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        optimizer.zero_grad()
        loss, _ = semobridge_t_loss(inverse, tau, p.projection, shots, labels, text, hidden)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], "nothing is learned, so nothing is compared"
    return losses, [inverse.detach(), tau.detach()]


def classifier(p: Problem, **options) -> sb.SeMoBridgeT:
    options = {"steps": 60, "warmup": 5, "lr": 1e-3, **options}
    return sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, **options)
