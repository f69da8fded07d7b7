"""Whether a training ended in numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.fewshot.training_checkpoint import Best
from semobridge_ext.fewshot.training_schedule import Schedule


def check_converged(
    losses: Tensor,  # [steps]
    parameters: dict[str, Tensor],
    schedule: Schedule,
    best: Best | None,
) -> None:
    """Raises where the loss diverged; warns where the validation data chose an earlier, sound step.

    Args:
        losses: of the steps taken. parameters: behind the last of them. schedule: of the run.
        best: what the validation data chose; None: there is none, and the last parameters are kept.
    """
    wild = ~torch.isfinite(losses)
    kept = parameters if best is None else best.parameters
    sound = all(bool(torch.isfinite(p).all()) for p in kept.values())
    if sound and not bool(wild.any()):
        return
    step = int(wild.nonzero()[0]) + 1 if bool(wild.any()) else len(losses)
    got = f"NaN or infinity at step {step} of {schedule.steps}"
    remedy = f"lower lr={schedule.lr:g}, raise warmup={schedule.warmup}, or check the features' lengths"
    text = _errors.message("SeMoBridgeT.fit", "the loss", "stay finite", got, remedy)
    if best is None or not sound:
        raise ValueError(text)
    warnings.warn(f"{text}. Kept are the parameters that the validation data chose.", stacklevel=5)


def check_losses(
    where: str,
    losses: Tensor,  # [steps]
    parameters: Iterable[Tensor],
    remedy: str,
) -> None:
    """Raises where the loss or what was trained is not finite."""
    wild = ~torch.isfinite(losses)
    if bool(wild.any()) or not all(bool(torch.isfinite(p).all()) for p in parameters):
        step = int(wild.nonzero()[0]) + 1 if bool(wild.any()) else len(losses)
        got = f"NaN or infinity at step {step} of {len(losses)}"
        raise ValueError(_errors.message(where, "the loss", "stay finite", got, remedy))
