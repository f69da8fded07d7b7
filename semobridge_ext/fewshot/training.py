"""SeMoBridge-T: the bridge and a bias per class, trained on the shots (arXiv 2509.26036, §3.4).

    L = ½·CE_img + ¼·CE_txtp + ¼·CE_txte + 0.1·CE_cons + 0.1·L_bias

_engines/bridge_training takes the steps; its reference.py spells out the loss.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._schema import Field, need
from semobridge_ext.bridging import Bridge
from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.conventions import Absent
from semobridge_ext.fewshot.estimator import exactly, unchanged_on_error
from semobridge_ext.fewshot.training_checkpoint import Best, Checkpoint
from semobridge_ext.fewshot.training_checks import check_converged
from semobridge_ext.fewshot.training_schedule import Schedule
from semobridge_ext.fewshot.training_settings import loss_weights_of, schedule_of
from semobridge_ext.fewshot.training_validation import accuracy
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self

_PROGRESS_EVERY = 50  # steps


class SeMoBridgeT(SeMoBridgeClassifier):
    """SeMoBridge with a trained bridge.

    Args:
        bridge: where training starts, as in SeMoBridgeClassifier; not changed. ``"identity"`` starts from
            W = I.
        text_features, class_names, s, alpha, beta, gamma, lambda1, lambda2, lambda3, probability_scale:
            as in SeMoBridgeClassifier.
        text_hidden: [C, T] un-projected class text features s_c (``class_text_features(...).hidden``);
            needed unless ``losses={"text_embedded": 0}``.
        class_bias: train τ, a bias per class on the support side.
        losses: factors other than the paper's, by name: image, text_projected, text_embedded,
            consistency, bias; 0 leaves one out.
        logit_scale: CLIP's, already exponentiated; in CE_img alone.
        preset: ``"paper"`` (5000 steps, lr 1.5e-4, warm-up 500) or ``"fast"`` (500 larger steps).
        steps, lr, warmup: replace the preset's. weight_decay: AdamW's.
        eval_every: steps between looks at the validation data, where ``fit`` gets any; the parameters
            with the first best validation accuracy are kept.
        patience: looks without a gain after which training stops; None: never.
        checkpoint_every: steps between writes of ``fit``'s checkpoint.
        progress: a progress bar on stderr.

    Attributes (beside SeMoBridgeClassifier's):
        bridge_: the trained Bridge. tau_: [C, T], or None. losses_: [steps taken] the loss before each
        step. validation_: (step, accuracy) pairs. best_step_: steps behind the kept parameters.

    Raises:
        TypeError, ValueError: from ``fit``, which checks all arguments: text that a loss needs is
            missing, unknown losses or preset, and what SeMoBridgeClassifier refuses.

    Numerics: float32 (float64 for float64 features), full batch, deterministic on the CPU whatever the
    number of threads. The host reads nothing back between two looks at the validation data; on a CUDA
    device a step is one replay of a captured graph.

    Memory: 2·M·T values beside the features (see BridgeTrainer in _engines/bridge_training/step.py).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> eye = torch.eye(3)
        >>> clf = sb.SeMoBridgeT(sb.Bridge(eye), eye, eye, steps=5)
        >>> clf.fit(eye.repeat(2, 1), [0, 1, 2] * 2).predict(eye).tolist()
        [0, 1, 2]
    """

    _format = "semobridge-ext SeMoBridgeT 1"
    _file: ClassVar[dict[str, Field]] = SeMoBridgeClassifier._file | {
        "text_projection": Field(("T", "D")),
        "inverse": Field(("D", "T")),
        "losses": Field(("L",)),
        "tau": Field(("C", "T"), optional=True),
    }

    def __init__(
        self,
        bridge: Any = None,
        text_features: Any = None,  # [C, D]
        text_hidden: Any = None,  # [C, T]
        *,
        class_names: Sequence[Hashable] | None = None,
        s: float = 0.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        lambda3: float = 1.0,
        probability_scale: float = 100.0,
        class_bias: bool = True,
        losses: dict[str, float] | None = None,
        logit_scale: float = 100.0,
        preset: str = "paper",
        steps: int | None = None,
        lr: float | None = None,
        warmup: int | None = None,
        weight_decay: float = 0.01,
        eval_every: int = 100,
        patience: int | None = None,
        checkpoint_every: int = 500,
        progress: bool = False,
    ) -> None:
        super().__init__(
            bridge, text_features, class_names=class_names, s=s, alpha=alpha, beta=beta, gamma=gamma,
            lambda1=lambda1, lambda2=lambda2, lambda3=lambda3, probability_scale=probability_scale,
        )  # fmt: skip
        self.text_hidden = text_hidden
        self.class_bias, self.losses, self.logit_scale = class_bias, losses, logit_scale
        self.preset, self.steps, self.lr, self.warmup = preset, steps, lr, warmup
        self.weight_decay, self.eval_every, self.patience = weight_decay, eval_every, patience
        self.checkpoint_every, self.progress = checkpoint_every, progress

    # -- fitting ------------------------------------------------------------------------------------

    partial_fit = Absent("it trains on all shots at once; add_shots adds to them")  # type: ignore[assignment]

    @plain_modes()
    def fit(  # type: ignore[override]  # no weights: the losses are means over all shots
        self,
        X: Any,
        y: Any,
        *,
        validation: tuple[Any, Any] | None = None,
        checkpoint: Any = None,
    ) -> Self:
        """Trains on the shots.

        Args:
            X: [M, D] raw features. y: M class names.
            validation: (features, names) that choose the step to keep; never the test part.
            checkpoint: a file that is written during training, and continued from where it exists.
                The continued run takes the very steps that an unbroken one takes. It depends on the
                bytes of X (rows in class order), y, text, bridge and validation data, on all settings of
                the training and on the package's version; checkpoint_every, progress and the device may
                change. One run holds the file at a time, by ``<checkpoint>.lock``.

        Raises:
            ValueError: as SeMoBridgeClassifier.fit; text that a loss needs is missing; a checkpoint of
                other data or settings, which are named, of an older format, or in use by another run; a loss
                that diverged. The estimator is then as it was before.

        Warns:
            UserWarning: the loss diverged after the step that the validation data chose.
        """
        self._check_real("fit")
        schedule, weights = schedule_of(vars(self)), loss_weights_of(vars(self))
        with unchanged_on_error(self):
            return self._fit(X, y, schedule, weights, validation, checkpoint)

    def _fit(
        self,
        X: Any,
        y: Any,
        schedule: Schedule,
        weights: LossWeights,
        validation: tuple[Any, Any] | None,
        checkpoint: Any,
    ) -> Self:
        x, names = self._support("fit", X, y)
        codes = self._open_sums("fit", names, x)
        for name, low in (("eval_every", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            _numbers.check_number("SeMoBridgeT", name, value, least=low, whole=True, remedy="try 100")
        held_out = None
        if validation is not None:
            features, answers = _inputs.pair("SeMoBridgeT.fit", "validation", validation, "(features, names)")
            queries = _inputs.features("SeMoBridgeT.fit", "validation", features, x.shape[1])
            held_out = queries, self._codes("fit", answers, len(queries))
        with exactly(x.device):
            trainer = self._trainer(x, codes, weights)
            file = None
            if checkpoint is not None:
                file = Checkpoint(checkpoint, self._facts(trainer, schedule, held_out))
            with nullcontext() if file is None else file.held():
                self._train(trainer, schedule, held_out, file)
            self.bridge_ = self._bridge_of(trainer.parameters["inverse"])
            tau = trainer.parameters.get("tau")
            self.tau_: Tensor | None = None if tau is None else tau.clone()
            self._add(x, codes)
        return self

    def _trainer(self, x: Tensor, codes: Tensor, weights: LossWeights) -> BridgeTrainer:
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        assert self.bridge_ is not None
        bridge = self.bridge_
        hidden = None
        if self.text_hidden is not None:
            hidden = self._text("fit", self.text_hidden, bridge.text_projection.shape[0], "text_hidden")
            if len(hidden) != len(self._names):
                remedy = "pass one row per class"
                contract = f"have {len(self._names)} rows"
                raise ValueError(_errors.message("SeMoBridgeT.fit", "text_hidden", contract, hidden, remedy))
            hidden = self._sorted(hidden).to(x.device, dtype)
        order = torch.argsort(codes, stable=True)
        return BridgeTrainer(
            bridge.inverse.detach().to(x.device, dtype), bridge.text_projection.to(x.device, dtype),
            x[order.to(x.device)].to(dtype), codes[order].to(x.device), self._text_rows.to(x.device, dtype),
            hidden, class_bias=self.class_bias, logit_scale=float(self.logit_scale), weights=weights,
            function="SeMoBridgeT",
        )  # fmt: skip

    def _facts(
        self, trainer: BridgeTrainer, schedule: Schedule, held_out: tuple[Tensor, Tensor] | None
    ) -> dict[str, Any]:
        """What the steps and the choice among them depend on; where they run does not count."""
        return {
            **schedule._asdict(), "losses": trainer.weights._asdict(), "weight_decay": self.weight_decay,
            "logit_scale": float(self.logit_scale), "class_bias": self.class_bias,
            "eval_every": self.eval_every, "patience": self.patience, "X": trainer.shots,
            "y": trainer.labels, "bridge": [trainer.parameters["inverse"], trainer.w],
            "text_features": self._text_rows if self._has_text else None, "text_hidden": trainer.hidden,
            "validation": None if held_out is None else list(held_out),
            "blend": None if held_out is None else self.params_._asdict(),
        }  # fmt: skip

    def _resolve_bridge(self, verb: str, x: Tensor) -> Bridge:
        return super()._resolve_bridge(verb, x) or Bridge(torch.eye(x.shape[1], dtype=torch.float64))

    def _bridge_of(self, inverse: Tensor) -> Bridge:
        start = self.bridge_
        assert start is not None
        trained = Bridge(start.text_projection, atol=start.atol, text_length=start.text_length)
        trained.inverse.data = inverse.detach().to(trained.inverse.device, trained.inverse.dtype).clone()
        return trained

    def _train(
        self,
        trainer: BridgeTrainer,
        schedule: Schedule,
        held_out: tuple[Tensor, Tensor] | None,
        file: Checkpoint | None,
    ) -> None:
        trainer.plan([schedule.rate(step) for step in range(schedule.steps)], self.weight_decay)
        best = Best(schedule.steps) if file is None or not file.exists() else file.resume(trainer)
        with self._bar(schedule.steps, trainer.steps) as bar:
            while trainer.steps < schedule.steps:
                loss = trainer.step()
                step, stop = trainer.steps, False
                if bar is not None:
                    bar.update()
                    if step % _PROGRESS_EVERY == 0:
                        bar.set_postfix(loss=f"{float(loss):.4f}")  # waits, so the bar does not run ahead
                if held_out is not None and (step % self.eval_every == 0 or step == schedule.steps):
                    best.look(step, self._validate(trainer, held_out), trainer.parameters)
                    looks = (step - best.step) // self.eval_every
                    stop = self.patience is not None and looks >= self.patience
                if stop:  # before a write, after which a continued run would not stop here
                    break
                if file is not None and step % self.checkpoint_every == 0 and step < schedule.steps:
                    file.write(trainer, best)
        self.losses_ = trainer.losses[: trainer.steps].cpu()
        check_converged(self.losses_, trainer.parameters, schedule, None if held_out is None else best)
        self.validation_ = best.looks
        self.best_step_ = trainer.steps if held_out is None else best.step
        if held_out is not None:
            for name, kept in best.parameters.items():
                trainer.parameters[name].copy_(kept)

    def _bar(self, total: int, done: int) -> Any:
        """Of the steps; without one tqdm is not looked for, which not every machine with a GPU has."""
        if not self.progress:
            return nullcontext()
        from tqdm import tqdm

        return tqdm(total=total, initial=done, desc="train")

    def _validate(self, trainer: BridgeTrainer, held_out: tuple[Tensor, Tensor]) -> float:
        return accuracy(trainer, held_out, self._text_rows, self._has_text, self.params_)

    # -- what a trained bridge changes --------------------------------------------------------------

    def _bridge_shots(self, x: Tensor, codes: Tensor) -> Tensor:
        bias = None if self.tau_ is None else self.tau_.to(x.device, x.dtype)[codes]
        return self._bridge_on(x.device)(x, class_bias=bias, normalize=False)

    def _grow(self, classes: int) -> None:
        if self.tau_ is not None:
            self.tau_ = torch.cat([self.tau_, self.tau_.new_zeros(classes, self.tau_.shape[1])])

    def _reorder(self, order: Tensor) -> None:
        super()._reorder(order)
        if self.tau_ is not None:
            self.tau_ = self.tau_[order.to(self.tau_.device)]

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, fields = super()._state()
        tensors["losses"] = self.losses_
        if self.tau_ is not None:
            tensors["tau"] = self.tau_
        return tensors, {**fields, "validation": self.validation_, "best_step": self.best_step_}

    @classmethod
    def _check_file(cls, where: str, path: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super()._check_file(where, path, tensors, values)
        need(where, path, values["bridge"] is not None, "a bridge", values["bridge"])
        need(
            where,
            path,
            isinstance(values["best_step"], int),
            "a whole number as best_step",
            values["best_step"],
        )

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.tau_ = tensors.get("tau")
        super()._restore(tensors, values)
        self.tau_ = tensors.get("tau")  # in the order of the sorted names by now
        self.losses_ = tensors["losses"]
        self.validation_ = [(step, accuracy) for step, accuracy in values["validation"]]
        self.best_step_ = values["best_step"]
        # A new fit starts where the first one did, at the closed form.
        atol, length = values["bridge"]
        self.bridge = Bridge(tensors["text_projection"], atol=atol, text_length=length)
