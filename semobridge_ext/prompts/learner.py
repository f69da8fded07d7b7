"""What CoOp and KDPL share: the prompts of their classes, prediction, new classes, files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _digest, _errors, _inputs, _numbers
from semobridge_ext._parameters import plain_parameters
from semobridge_ext._schema import Field, need, number, restoring
from semobridge_ext.fewshot.estimator import FewShotEstimator, exactly
from semobridge_ext.fewshot.estimator_file import load_estimator, save_estimator
from semobridge_ext.prompts.prompt_features import PromptEncoder, Prompts, checked_names
from semobridge_ext.prompts.settings import Settings, check_settings, settings_of
from semobridge_ext.prompts.training import Task, Trainer, train
from semobridge_ext.runtime.plain_modes import plain_device

if TYPE_CHECKING:
    from typing_extensions import Self

_STD = 0.02  # of random contexts


class PromptLearner(FewShotEstimator):
    """A context of learned rows in front of, around or behind class names, for a frozen text tower."""

    _file: ClassVar[dict[str, Field]] = {
        "context": Field(("V", "T")),
        "text_features": Field(("C", "D"), optional=True),
        "losses": Field(("L",), (torch.float64,)),
    }
    _unnamed = False  # whether a file may hold no classes
    _unsaved: ClassVar[tuple[str, ...]] = ("model", "class_names", "tokenizer")

    model: Any
    tokenizer: Any
    class_specific: bool = False
    logit_scale: float | None
    batch_rows: int | None
    ctx_init: str | None
    n_ctx: int
    class_token_position: str
    checkpoint_every: int
    progress: bool

    context_: Tensor
    text_features_: Tensor
    losses_: Tensor
    logit_scale_: float

    # -- fitting -----------------------------------------------------------------------------------

    @plain_device()
    def _encoder(self, where: str) -> PromptEncoder:
        return PromptEncoder(where, self.model, self.tokenizer)

    def _first_context(self, where: str, encoder: PromptEncoder, classes: int) -> Tensor:  # [V, T]
        count = classes if self.class_specific else 1
        if self.ctx_init is not None:
            rows = encoder.word_rows(self.ctx_init)
            if not len(rows):
                remedy = "'a photo of a' is usual"
                raise ValueError(_errors.message(where, "ctx_init", "have tokens", self.ctx_init, remedy))
            return rows.repeat(count, 1)
        generator = torch.Generator().manual_seed(_numbers.seed_of(self.get_params()["seed"]))
        shape = (count * self.n_ctx, encoder.width)
        drawn = _STD * torch.randn(shape, generator=generator, dtype=torch.float32)
        return drawn.to(encoder.device, encoder.dtype)

    def _prompts(
        self, encoder: PromptEncoder, names: Sequence[str], n_ctx: int
    ) -> tuple[Tensor, Tensor]:  # [C, L], [C] int64
        words = encoder.words(names)
        return encoder.ids(names, words, n_ctx, self.class_token_position, self.class_specific)

    def _settings(self, where: str) -> None:
        check_settings(where, self.get_params())
        self._check_numbers(where.partition(".")[2])

    def _learn(
        self, where: str, encoder: PromptEncoder, task: Task, context: Tensor, n_ctx: int, checkpoint: Any
    ) -> Trainer:
        settings: Settings = settings_of(self.get_params(), n_ctx)
        facts = {"ctx_init": self.ctx_init, "context": context, "model": _digest.marked(encoder.digest())}
        trainer = Trainer(where, task, settings, context.clone(), self._scale(encoder), facts)
        train(trainer, checkpoint, self.checkpoint_every, self.progress)
        return trainer

    def _scale(self, encoder: PromptEncoder) -> float:
        return encoder.logit_scale if self.logit_scale is None else float(self.logit_scale)

    def _keep(
        self, encoder: PromptEncoder, trainer: Trainer, n_ctx: int, names: Sequence[str] | None,
        prompts: Prompts | None,
    ) -> None:  # fmt: skip
        vectors = trainer.vectors
        if names is not None and prompts is not None:
            self._names, self.classes_ = list(names), _inputs.as_array(list(names))
            self.text_features_ = normalize(prompts.forward(vectors, keep=False), dim=1)
        else:
            for name in ("_names", "classes_", "text_features_"):
                vars(self).pop(name, None)
        self.context_ = vectors.reshape(-1, n_ctx, encoder.width) if self.class_specific else vectors
        self.losses_, self.logit_scale_ = trainer.losses, trainer.scale
        self.n_features_in_ = encoder.features

    # -- classes -----------------------------------------------------------------------------------

    @plain_device()
    def features_for(self, class_names: Sequence[str]) -> Tensor:  # [C, D]
        """Unit text features of any class names with the learned context, in the order given.

        Classes that were not trained on are told apart by them: ``ZeroShot(features, class_names=names)``.

        Args:
            class_names: C names in words.

        Returns:
            [C, D] in the dtype of the text tower (float32, or float64), on its device.

        Raises:
            TypeError, ValueError: names that are no words, or too long. ValueError: not fitted, or a context
                of each class, which says nothing about others.
        """
        where = f"{type(self).__name__}.features_for"
        self._check_learned()
        if self.class_specific:
            got, remedy = "a context of each class", "fit with class_specific=False"
            raise ValueError(_errors.message(where, "context_", "be shared by all classes", got, remedy))
        names = checked_names(where, class_names)
        encoder = self._encoder(where)
        with exactly(encoder.device):
            prompts = encoder.prompts(*self._prompts(encoder, names, len(self.context_)), self.batch_rows)
            vectors = self.context_.to(encoder.device, encoder.dtype)
            return normalize(prompts.forward(vectors, keep=False), dim=1)

    def _check_learned(self) -> None:
        if not hasattr(self, "context_"):
            self._check_fitted()

    def _logits(self, x: Tensor) -> Tensor:  # [N, D] -> [N, C]
        rows = normalize(x.to(self.text_features_.dtype), dim=1)
        return self.logit_scale_ * rows @ self.text_features_.to(rows.device).T

    def predict_proba(self, X: Any) -> Any:  # [N, C]
        """``softmax`` of the logits, which carry the model's own scale; not calibrated.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("predict_proba", X)
        with exactly(x.device):
            proba = torch.softmax(self._logits(x), dim=1)
        return proba if isinstance(X, Tensor) else proba.cpu().numpy()

    # -- files -------------------------------------------------------------------------------------

    @classmethod
    def _format(cls) -> str:
        return f"semobridge-ext {cls.__name__} 1"

    def save(self, path: Any) -> None:
        """Writes a safetensors file with the context, the classes' features and whose tower they belong to.

        The model itself is not written: ``load`` gets it, and compares.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        self._check_learned()
        where = f"{type(self).__name__}.save"
        tensors = {"context": self.context_.flatten(0, -2), "losses": self.losses_}
        if hasattr(self, "text_features_"):
            tensors["text_features"] = self.text_features_
        given = plain_parameters(self.get_params())
        params = {name: value for name, value in given.items() if name not in self._unsaved}
        fields = {
            "names": getattr(self, "_names", []), "params": params, "width": self.n_features_in_,
            "logit_scale_": self.logit_scale_, "tower": self._encoder(where).digest(),
            "vectors": self.context_.shape[-2],
        }  # fmt: skip
        save_estimator(path, self._format(), {n: t.contiguous() for n, t in tensors.items()}, fields)

    @classmethod
    def load(cls, path: Any, model: Any, *, tokenizer: Any = None) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.
            model: the CLIP model whose text tower the context was learned for.
            tokenizer: as for the constructor.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, or one of another
                tower, which is named.
        """
        where = f"{cls.__name__}.load"
        fields = ("names", "params", "width", "logit_scale_", "tower", "vectors")
        tensors, values, sizes = load_estimator(
            where, path, cls._format(), cls._file, fields, unnamed=cls._unnamed
        )
        encoder = PromptEncoder(where, model, tokenizer)
        if values["tower"] != encoder.digest():
            raise ValueError(
                f"{where}: model must be the one that {path} was written for, got a {type(model).__name__} "
                "with other weights; pass the model that was fitted"
            )
        with restoring(where, path):
            return cls._restored(where, path, tensors, values, sizes, encoder, model, tokenizer)

    @classmethod
    def _restored(
        cls, where: str, path: Any, tensors: dict[str, Tensor], values: dict[str, Any],
        sizes: dict[str, int], encoder: PromptEncoder, model: Any, tokenizer: Any,
    ) -> Self:  # fmt: skip
        names, params, n_ctx = values["names"], values["params"], values["vectors"]
        has_text = "text_features" in tensors
        need(where, path, bool(names) == has_text, "text features of its classes", names)
        known = set(cls._parameter_names()) - set(cls._unsaved)
        need(where, path, isinstance(params, dict) and set(params) == known, "the parameters", params)
        if names:
            checked_names(where, names)
            params = {**params, "class_names": names}
        self = cls._blank(model, tokenizer, params)
        check_settings(where, self.get_params())
        count = len(names) if self.class_specific else 1
        whole = type(n_ctx) is int and n_ctx >= 1 and n_ctx * count == sizes["V"]
        need(where, path, whole, f"{sizes['V']} vectors", n_ctx)
        need(where, path, sizes["T"] == encoder.width, f"vectors of width {encoder.width}", sizes["T"])
        width = sizes.get("D", encoder.features)
        need(where, path, width == values["width"] == encoder.features, "the model's width", values["width"])
        self.logit_scale_ = number(where, path, "logit_scale_", values["logit_scale_"], 0.0)
        context = tensors["context"].to(encoder.device, encoder.dtype)
        self.context_ = context.reshape(-1, n_ctx, encoder.width) if self.class_specific else context
        self.losses_, self.n_features_in_ = tensors["losses"], width
        if has_text:
            self._names, self.classes_ = names, _inputs.as_array(names)
            self.text_features_ = tensors["text_features"].to(encoder.device)
        return self

    @classmethod
    def _blank(cls, model: Any, tokenizer: Any, params: dict[str, Any]) -> Self:
        """An estimator with a file's parameters."""
        raise NotImplementedError
