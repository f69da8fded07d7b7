"""The training of SpectralGCD: epoch after epoch, by SGD with momentum, from where a checkpoint stands."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._digest import digest, marked
from semobridge_ext.discovery import losses, network, vision_block
from semobridge_ext.discovery.losses import Terms
from semobridge_ext.discovery.network import Parameters
from semobridge_ext.discovery.schedule import epoch_batches, rate, teacher_temperature
from semobridge_ext.discovery.settings import Settings
from semobridge_ext.discovery.training_checkpoint import Checkpoint
from semobridge_ext.discovery.training_data import Data


class Trainer:
    def __init__(self, data: Data, settings: Settings) -> None:
        self.data, self.settings = data, settings
        device, block = data.features.device, data.block
        adapter = settings.adapter and block is None
        made = network.initial(settings.sizes, adapter, settings.seed, data.dtype)
        made |= {} if block is None else block.trained
        self.parameters: Parameters = {n: p.to(device).requires_grad_() for n, p in made.items()}
        self.momenta = {n: torch.zeros_like(p, requires_grad=False) for n, p in self.parameters.items()}
        self.losses = torch.zeros(settings.epochs, dtype=torch.float64)
        self.epoch = 0  # epochs behind the parameters
        # What the block was before the training, as the stamp of a checkpoint keeps it.
        self._start = (
            None if block is None else marked(digest([block.trained, block.fixed, list(block.facts)]))
        )

    def facts(self) -> dict[str, Any]:
        """What the run depends on, by the names of the constructor and of ``fit``."""
        s, data = self.settings, self.data
        sizes, weights = s.sizes, s.weights
        plain = {n: v for n, v in s._asdict().items() if n not in ("sizes", "weights")}
        return {
            **plain, "num_classes": sizes.classes, "width": sizes.width, "hidden": sizes.hidden,
            "projection": sizes.projection, "supervised_weight": weights.supervised,
            "entropy_weight": weights.entropy, "forward_kl": weights.forward_kl,
            "reverse_kl": weights.reverse_kl, "X": data.features, "y": data.labels,
            "concept_features": data.concepts,
            "teacher": None if data.teacher is None else list(data.teacher),
            "model": self._start,
        }  # fmt: skip

    def run_epoch(self) -> None:
        """Its loss is the mean over the steps; the host waits once an epoch for it."""
        s, data = self.settings, self.data
        target = teacher_temperature(self.epoch, s.warmup, s.first_temperature, s.last_temperature)
        views = len(data.features)
        batches = epoch_batches(data.labels >= 0, s.batch_size, views, s.seed, self.epoch)
        total = torch.zeros((), dtype=torch.float64, device=data.features.device)
        for drawn in batches:
            total += self._step(drawn, target)
        loss = float(total) / len(batches)
        self.losses[self.epoch] = loss
        self.epoch += 1
        if not math.isfinite(loss):
            raise self._diverged("the loss", str(loss))

    def _diverged(self, what: str, got: str) -> ValueError:
        s = self.settings
        got, remedy = (
            f"{got} in epoch {self.epoch} of {s.epochs}",
            f"lower lr={s.lr:g} and adapter_lr={s.adapter_lr:g}",
        )
        return ValueError(_errors.message("SpectralGCD.fit", what, "stay finite", got, remedy))

    def check_finite(self) -> None:
        """The last step may spoil parameters that no loss has seen."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            raise self._diverged("the parameters", "NaN or infinity")

    def _step(self, drawn: Tensor, target_temperature: float) -> Tensor:  # [B, 3]
        data, device = self.data, self.data.features.device
        labels = data.labels[drawn[:, 0]].to(device)
        images, first, second = drawn.to(device).unbind(1)
        features = torch.cat([data.features[first, images], data.features[second, images]])
        with torch.enable_grad():
            terms = self.terms(features, labels, images, target_temperature)
            loss = self.settings.weights.total(terms)
            grads = torch.autograd.grad(loss, list(self.parameters.values()))
        self._descend(dict(zip(self.parameters, grads, strict=True)))
        return loss.detach()

    def terms(self, features: Tensor, labels: Tensor, images: Tensor, target_temperature: float) -> Terms:
        """Of B images in two views: features [2B, D] or block inputs [2B, L, T], labels and numbers [B]."""
        block = self.data.block
        if block is not None:
            tensors = {**self.parameters, **block.fixed}
            features = vision_block.features(tensors, block.facts, features.to(self.data.dtype))
        rows = network.forward(self.parameters, features, self.data.concepts, self.settings.temperature)
        weights = self.settings.weights
        distillation = features.new_zeros(())
        if self.data.teacher is not None and rows.concepts is not None:
            faces, names = self.data.teacher
            teacher = (faces[images] @ names.T / self.settings.temperature).repeat(2, 1)
            distillation = losses.concept_distillation(
                rows.concepts, teacher, weights.forward_kl, weights.reverse_kl
            )
        return Terms(
            losses.supervised(rows.logits, labels),
            losses.self_distillation(rows.logits, target_temperature),
            losses.mean_entropy(rows.logits),
            losses.contrast(rows.projections),
            losses.supervised_contrast(rows.projections, labels),
            distillation,
        )

    @torch.no_grad()
    def _descend(self, grads: dict[str, Tensor]) -> None:
        s = self.settings
        for name, p in self.parameters.items():
            decay = s.weight_decay if p.dim() > 1 else 0.0  # biases are not decayed
            grad = grads[name].add(p, alpha=decay)
            slow = name == "adapter" or network.is_of_block(name)
            first = s.adapter_lr if slow else s.lr
            momentum = self.momenta[name].mul_(s.momentum).add_(grad)
            p.sub_(momentum, alpha=rate(self.epoch, s.epochs, first))


def train(trainer: Trainer, checkpoint: Any, every: int, progress: bool) -> None:
    """To the last epoch; a checkpoint is written every so many epochs, and after the last."""
    from tqdm import tqdm

    file = None if checkpoint is None else Checkpoint(checkpoint, trainer.facts())
    epochs = trainer.settings.epochs
    with nullcontext() if file is None else file.held():
        if file is not None and file.exists():
            file.resume(trainer)
        bar = tqdm(total=epochs, initial=trainer.epoch, desc="train", unit="epoch", disable=not progress)
        with bar:
            while trainer.epoch < epochs:
                trainer.run_epoch()
                bar.update()
                bar.set_postfix(loss=f"{float(trainer.losses[trainer.epoch - 1]):.4f}")
                if trainer.epoch == epochs:
                    trainer.check_finite()
                if file is not None and (trainer.epoch % every == 0 or trainer.epoch == epochs):
                    file.write(trainer)
