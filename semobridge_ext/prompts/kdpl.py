"""KDPL: a context learned from a larger model's probabilities, without a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs
from semobridge_ext._ops.symmetric_kl.op import symmetric_kl
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.fewshot.estimator import exactly
from semobridge_ext.prompts.image_rows import CachedRows
from semobridge_ext.prompts.learner import PromptLearner
from semobridge_ext.prompts.prompt_features import Prompts, checked_names
from semobridge_ext.prompts.schedule import epoch_batches
from semobridge_ext.prompts.training import Step
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class _Taught:
    """The teacher's probabilities of a batch, over all names or over those that it finds most likely."""

    def __init__(
        self,
        rows: CachedRows,
        teacher: CachedRows,
        names: Tensor,  # [K, E] unit rows, the teacher's
        prompts: Prompts | Callable[[Tensor], Prompts],  # of all names, or of the chosen ones
        scale: float,
        keep: int,
        settings: tuple[int, int],  # batch_size, seed
        facts: dict[str, Any],
    ) -> None:
        self._rows, self._teacher, self._names, self._prompts = rows, teacher, names, prompts
        self._scale, self._keep, self._facts = scale, keep, facts
        self._batch_size, self._seed = settings

    def facts(self) -> dict[str, Any]:
        return {**self._rows.facts(), "X_teacher": self._teacher.facts()["X"], "teacher": self._names,
                **self._facts}  # fmt: skip

    def _shown(self, batch: Tensor) -> Tensor:  # [B, 2] -> [B, E]
        if self._teacher.views == 1:
            batch = torch.stack([batch[:, 0], torch.zeros_like(batch[:, 1])], dim=1)
        return self._teacher.take(batch, 0)

    def chosen(self, batch: Tensor) -> Tensor:  # [B, 2] -> [keep] int64
        """The names of the largest mean probability of a batch, on the teacher's device."""
        cosines = self._shown(batch) @ self._names.T
        return torch.softmax(self._scale * cosines, dim=1).mean(dim=0).topk(self._keep).indices

    def steps(self, epoch: int) -> Iterator[Step]:
        drawn = epoch_batches(self._rows.count, self._batch_size, self._rows.views, self._seed, epoch)
        names, choices, on_host = [self._names] * len(drawn), None, None
        if self._keep < len(self._names):
            # The teacher alone chooses: an epoch's choices cross to the host in one copy, not in each step.
            choices = torch.stack([self.chosen(batch) for batch in drawn])
            on_host = choices.cpu()
            names = []
        for i, batch in enumerate(drawn):
            rows = names[i] if choices is None else self._names[choices[i]]
            target = self._scale * self._shown(batch) @ rows.T
            prompts = self._prompts
            if not isinstance(prompts, Prompts):
                assert on_host is not None
                prompts = prompts(on_host[i])

            def loss(logits: Tensor, target: Tensor = target) -> Tensor:
                return symmetric_kl(target, logits)

            yield Step(prompts, self._rows.take(batch, 0), loss)


class KDPL(PromptLearner):
    """Knowledge distillation prompt learning: CoOp's context from a teacher's probabilities, no labels.

        p_T = softmax(κ·cos_T)    p_S = softmax(κ·norm(f)·norm(t)ᵀ)    L = ½·KL(p_T‖p_S) + ½·KL(p_S‖p_T)

    κ is the student's on both sides, and L the mean of a batch. With ``class_names`` both sides run over all
    classes. With a ``dictionary`` nobody need know the classes: each step takes the ``keep`` names of largest
    mean probability by the teacher, both sides are normalised over them, and the text tower runs on their
    prompts alone.

    Args:
        model: the student, a CLIP model of a family that ``semobridge_ext.clip`` lists, with a causal text
            tower.
        teacher: floating-point text features [K, E] of the names, in their order; or a CLIP model, which
            then encodes them in ``teacher_templates``.
        class_names: C names in words, or None with a dictionary.
        dictionary: K names in words, or None with class names.
        keep: names of the dictionary in a step.
        teacher_templates: prompts with ``{}`` for a teacher that is a model. teacher_tokenizer: its own.
        n_ctx, ctx_init, class_token_position, epochs, lr, first_lr, momentum, weight_decay: as for
            :class:`CoOp`; the paper's context begins from "a photo of a".
        batch_size, logit_scale, tokenizer, batch_rows, seed, checkpoint_every, progress: as for
            :class:`CoOp`.

    Attributes:
        context_: [n, T]. losses_: [epochs] float64 means. logit_scale_: κ. n_features_in_: D. With class
            names also classes_: [C] sorted, and text_features_: [C, D] unit rows.

    Raises:
        TypeError, ValueError: at ``fit``, for settings out of their range. NotImplementedError: at ``fit``,
            for an unsupported text tower.

    Numerics: as :class:`CoOp`; the divergence and its gradient are those of ``ops.symmetric_kl``. Names of
        equal probability at the border of ``keep`` are taken as ``torch.topk`` has them.

    Memory: as :class:`CoOp`; a step's teacher has [B, K] probabilities, and ``keep`` prompts at a time run
        through the text tower.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> x, teacher_x, teacher = torch.randn(8, 192), torch.randn(8, 5), torch.randn(3, 5)
        >>> words = {"n_ctx": 4, "ctx_init": None, "tokenizer": tokenizer}
        >>> kdpl = sb.KDPL(model, teacher, dictionary=["star", "house", "moon"], keep=2, epochs=2, **words)
        >>> kdpl.fit(x, teacher_x).features_for(["sun", "tree"]).shape
        torch.Size([2, 192])

    Paper: "Improving Zero-shot Generalization of Learned Prompts via Unsupervised Knowledge Distillation"
    (arXiv 2407.03056).
    """

    _unnamed = True
    _unsaved: ClassVar[tuple[str, ...]] = (
        "model", "class_names", "tokenizer", "teacher", "dictionary", "teacher_templates",
        "teacher_tokenizer",
    )  # fmt: skip

    def __init__(
        self,
        model: Any,
        teacher: Any,  # [K, E], or a model
        class_names: Sequence[str] | None = None,
        *,
        dictionary: Sequence[str] | None = None,
        keep: int = 1000,
        teacher_templates: Sequence[str] = ("a photo of a {}.",),
        teacher_tokenizer: Any = None,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_token_position: str = "end",
        epochs: int = 50,
        lr: float = 2e-3,
        first_lr: float = 1e-5,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch_size: int = 32,
        logit_scale: float | None = None,
        tokenizer: Any = None,
        batch_rows: int | None = None,
        seed: int = 0,
        checkpoint_every: int = 10,
        progress: bool = False,
    ) -> None:
        self.model, self.teacher, self.class_names = model, teacher, class_names
        self.dictionary, self.keep = dictionary, keep
        self.teacher_templates, self.teacher_tokenizer = teacher_templates, teacher_tokenizer
        self.n_ctx, self.ctx_init, self.class_token_position = n_ctx, ctx_init, class_token_position
        self.epochs, self.lr, self.first_lr = epochs, lr, first_lr
        self.momentum, self.weight_decay, self.batch_size = momentum, weight_decay, batch_size
        self.logit_scale, self.tokenizer, self.batch_rows = logit_scale, tokenizer, batch_rows
        self.seed, self.checkpoint_every, self.progress = seed, checkpoint_every, progress

    @plain_modes()
    def fit(self, X: Any, X_teacher: Any, *, checkpoint: Any = None) -> Self:
        """Learns the context from cached features of the same images by student and teacher; no labels.

        Args:
            X: [N, D] raw image features of the student, a floating-point tensor or array; or [V, N, D], V
                cached views, of which a step takes one at random. The views are fixed.
            X_teacher: [N, E] or [V, N, E] of the teacher; one view serves all of the student's.
            checkpoint: as for ``CoOp.fit``.

        Returns:
            The estimator itself.

        Raises:
            TypeError: not a CLIP model, no floating-point rows, names or settings of another kind.
            ValueError: NaN or infinite rows; shapes that do not fit; both or neither of class names and
                dictionary; a name that is too long; a checkpoint of other data or settings, which are named;
                a loss that diverged. The estimator is then as it was before. NotImplementedError: an
                unsupported text tower.
        """
        where = "KDPL.fit"
        self._settings(where)
        given = self._given_names(where)
        names: list[str] = given
        if self.class_names is not None:
            names = _inputs.ordered(given)  # type: ignore[assignment]
        encoder = self._encoder(where)
        device, dtype = encoder.device, encoder.dtype
        with exactly(device):
            taught = self._teacher_rows(where, given, names).to(device, dtype)
            rows = CachedRows(where, X, encoder.features, device, dtype)
            shown = CachedRows(where, X_teacher, taught.shape[1], device, dtype, "X_teacher")
            if shown.count != rows.count or shown.views not in (1, rows.views):
                contract = f"have {rows.count} rows, and one view or {rows.views}"
                got, remedy = f"{shown.views} views of {shown.count} rows", "encode the same images"
                raise ValueError(_errors.message(where, "X_teacher", contract, got, remedy))
            context = self._first_context(where, encoder, 1)
            n_ctx = len(context)
            ids, ends = self._prompts(encoder, names, n_ctx)
            encoder.check(names[0], n_ctx)
            keep = len(names) if self.dictionary is None else min(self.keep, len(names))

            def chosen(indices: Tensor) -> Prompts:
                return encoder.prompts(ids[indices], ends[indices], self.batch_rows)

            everything = encoder.prompts(ids, ends, self.batch_rows) if keep == len(names) else None
            task = _Taught(
                rows, shown, taught, everything or chosen, self._scale(encoder), keep,
                (self.batch_size, self.seed), {"names": names, "keep": keep},
            )  # fmt: skip
            trainer = self._learn(where, encoder, task, context, n_ctx, checkpoint)
            own = self.dictionary is None
            self._keep(encoder, trainer, n_ctx, names if own else None, everything if own else None)
        return self

    def fit_seeds(
        self, X: Any, y: Any, *, shots: int, seeds: Sequence[int] = (0,), **given: Any
    ) -> list[Any]:
        """Refused: a draw of shots per class needs labels, and KDPL takes none.

        Args:
            X, y, shots, seeds, given: not looked at.

        Raises:
            NotImplementedError: always.
        """
        remedy = "draw rows yourself and fit one estimator on each draw"
        raise NotImplementedError(
            _errors.message("KDPL.fit_seeds", "y", "stay unread", "a call for labelled draws", remedy)
        )

    def _check_fitted(self) -> None:
        if hasattr(self, "context_") and not hasattr(self, "classes_"):
            remedy = "take ZeroShot(kdpl.features_for(names), class_names=names)"
            contract, got = "be known for a prediction", "a context that was learned from a dictionary"
            raise ValueError(_errors.message("KDPL", "class_names", contract, got, remedy))
        super()._check_fitted()

    def _given_names(self, where: str) -> list[str]:
        """Class names or the dictionary, as they stand; a generator is read once."""
        if (self.class_names is None) == (self.dictionary is None):
            got = "neither" if self.class_names is None else "both"
            remedy = "pass the names of the classes, or a dictionary where they are unknown"
            raise ValueError(_errors.message(where, "class_names", "stand for dictionary", got, remedy))
        if self.class_names is None:
            if self.keep < 2:
                remedy = "the teacher is 1 on a single name, and nothing is learned"
                raise ValueError(_errors.message(where, "keep", "be at least 2", self.keep, remedy))
            return checked_names(where, self.dictionary, "dictionary", least=2)
        return checked_names(where, self.class_names, least=2)

    def _teacher_rows(self, where: str, given: list[str], names: list[str]) -> Tensor:  # [K, E] unit rows
        if isinstance(self.teacher, nn.Module):
            plain = [name.replace("_", " ") for name in names]
            templates, tokenizer = self.teacher_templates, self.teacher_tokenizer
            return class_text_features(self.teacher, plain, templates, tokenizer=tokenizer).projected
        if self.teacher is None:  # as a file leaves it
            remedy = "set_params(teacher=...) takes text features or a model; files hold none"
            raise ValueError(_errors.message(where, "teacher", "be given", "none", remedy))
        rows = _inputs.features(where, "teacher", self.teacher)
        if len(rows) != len(names):
            contract, remedy = f"have {len(names)} rows", "one per name, in the order of the names"
            raise ValueError(_errors.message(where, "teacher", contract, rows, remedy))
        order = None if self.class_names is None else _inputs.order_of(given)
        rows = rows if order is None else rows[order.to(rows.device)]
        return normalize(rows.double(), dim=1)

    @classmethod
    def _blank(cls, model: Any, tokenizer: Any, params: dict[str, Any]) -> Self:
        return cls(model, None, tokenizer=tokenizer, **params)
