"""CoOp: a context of learned rows in place of a template, from a few labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from semobridge_ext import _inputs, _numbers
from semobridge_ext.fewshot.estimator import exactly
from semobridge_ext.prompts.image_rows import CachedRows, EncodedImages, ImageRows
from semobridge_ext.prompts.learner import PromptLearner
from semobridge_ext.prompts.prompt_features import PromptEncoder, Prompts, checked_names
from semobridge_ext.prompts.schedule import epoch_batches
from semobridge_ext.prompts.training import Step
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class _Labelled:
    """Cross-entropy of labelled images over all classes."""

    def __init__(
        self, rows: ImageRows, codes: Tensor, prompts: Prompts, names: list[str], batch_size: int, seed: int
    ) -> None:
        self._rows, self._codes, self._prompts, self._names = rows, codes, prompts, names
        self._batch_size, self._seed = batch_size, seed

    def facts(self) -> dict[str, Any]:
        return {**self._rows.facts(), "y": self._codes, "class_names": self._names}

    def steps(self, epoch: int) -> Iterator[Step]:
        rows = self._rows
        drawn = epoch_batches(rows.count, self._batch_size, rows.views, self._seed, epoch)
        for i, batch in enumerate(drawn):
            x = rows.take(batch, _numbers.seed_of(self._seed, epoch, i))
            labels = self._codes[batch[:, 0]].to(x.device)

            def loss(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return cross_entropy(logits, labels)

            yield Step(self._prompts, x, loss)


class CoOp(PromptLearner):
    """Context optimisation: learned rows v in place of "a photo of a", from labelled images.

        t_c = text(start, v_1, …, v_n, name_c, ".", end)    logits = κ·norm(f)·norm(t_c)
        L = cross-entropy over the classes; image and text tower are frozen, v alone moves

    A shared context with the name at its end does not depend on the class, in any layer: it runs once for
    all, and every name attends to it. Nothing behind the end token is computed, names share the rows of
    their common beginnings, and the gradient goes to v alone (docs/guides/prompt_learning.md).

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, with a causal text tower.
        class_names: C names in words, as prompts have them; "_" is read as a blank.
        n_ctx: n, vectors of the context. ctx_init: words whose embeddings it begins from, as many as they
            have tokens, whatever ``n_ctx`` says; None: N(0, 0.02²).
        class_token_position: "end"; "middle", half of the context on either side of the name; "front".
        class_specific: a context of its own for each class, [C, n, T]. New classes have none then.
        epochs, batch_size: every image once an epoch; a last batch that is not full is dropped.
        lr, first_lr: of SGD: ``first_lr`` in the first epoch, then a cosine from ``lr``.
        momentum, weight_decay: of SGD.
        logit_scale: κ, already exponentiated; None: the model's own.
        tokenizer: a list of strings to token ids, or a Hugging Face tokenizer; None: CLIP's where the
            vocabulary is CLIP's.
        batch_rows: rows of the prefix tree of all prompts that run at once; None: as many as leave 1 GiB for
            the way back.
        seed: of the first context and of all draws.
        checkpoint_every: epochs between two writes of the checkpoint.
        progress: a bar on standard error.

    Attributes:
        classes_: [C] names, sorted. context_: [n, T], or [C, n, T] in the order of ``classes_``.
        text_features_: [C, D] unit rows. losses_: [epochs] float64 means. logit_scale_: κ.
        n_features_in_: D.

    Raises:
        TypeError, ValueError: at ``fit``, for settings out of their range. NotImplementedError: at ``fit``,
            for a text tower that sees both ways, or that computes something else than its weights.

    Numerics: float32 (float64 for a float64 model); half models are widened. Features equal the model's own
        to rounding, one prompt is compared before the training. Deterministic for one seed, device and number
        of threads on a CPU, and a resumed run has the bits of an unbroken one.

    Memory: (5 T + M)·layers numbers for each row of the tree, T and M widths of the tower and of its hidden
        layers, and on a CPU two packed copies of the tower's matrices. What is beyond ``batch_rows`` runs in
        parts, forward twice.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> x, y = torch.randn(8, 192), ["star", "house"] * 4
        >>> coop = sb.CoOp(model, ["star", "house"], n_ctx=4, epochs=2, tokenizer=tokenizer).fit(x, y)
        >>> coop.predict_proba(x).shape, coop.features_for(["moon"]).shape
        (torch.Size([8, 2]), torch.Size([1, 192]))

    Paper: "Learning to Prompt for Vision-Language Models" (arXiv 2109.01134).
    """

    def __init__(
        self,
        model: Any,
        class_names: Sequence[str],
        *,
        n_ctx: int = 16,
        ctx_init: str | None = None,
        class_token_position: str = "end",
        class_specific: bool = False,
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
        self.model, self.class_names = model, class_names
        self.n_ctx, self.ctx_init = n_ctx, ctx_init
        self.class_token_position, self.class_specific = class_token_position, class_specific
        self.epochs, self.lr, self.first_lr = epochs, lr, first_lr
        self.momentum, self.weight_decay, self.batch_size = momentum, weight_decay, batch_size
        self.logit_scale, self.tokenizer, self.batch_rows = logit_scale, tokenizer, batch_rows
        self.seed, self.checkpoint_every, self.progress = seed, checkpoint_every, progress

    @classmethod
    def _blank(cls, model: Any, tokenizer: Any, params: dict[str, Any]) -> Self:
        return cls(model, tokenizer=tokenizer, **params)

    # -- fitting -----------------------------------------------------------------------------------

    @plain_modes()
    def fit(self, X: Any, y: Any, *, checkpoint: Any = None) -> Self:
        """Learns the context from cached image features.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array; or [V, N, D], V cached views of
                each image, of which a step takes one at random. The views are fixed.
            y: N class names; a class may have none.
            checkpoint: a file that is written during training, and continued from where it exists. It
                depends on the bytes of all inputs, of the text tower, and on every setting but
                ``checkpoint_every``, ``batch_rows`` and ``progress``. One run holds it at a time, by
                ``<checkpoint>.lock``.

        Returns:
            The estimator itself.

        Raises:
            TypeError: not a CLIP model, no floating-point rows, names or settings of another kind.
            ValueError: NaN or infinite rows; shapes that do not fit; a label that is no class; a name that
                is too long; a checkpoint of other data or settings, which are named; a loss that diverged.
                The estimator is then as it was before. NotImplementedError: an unsupported text tower.
        """
        where = "CoOp.fit"
        self._settings(where)
        encoder = self._encoder(where)
        rows = CachedRows(where, X, encoder.features, encoder.device, encoder.dtype)
        return self._fit(where, encoder, rows, y, checkpoint)

    @plain_modes()
    def fit_images(
        self, images: Sequence[Any], y: Any, transform: Callable[[Any], Tensor], *, checkpoint: Any = None
    ) -> Self:
        """Learns the context from images, transformed and encoded anew in every step.

        Args:
            images: N images, whatever the transform takes.
            y: N class names.
            transform: an image to a preprocessed [3, H, W] floating-point tensor, with random crops and
                flips if it likes. PyTorch's global generator is seeded for each step and left as it was.
            checkpoint: as for ``fit``; images that are no tensor are known to it by their number alone.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError, NotImplementedError: as ``fit``, and for a model without an image tower.
        """
        where = "CoOp.fit_images"
        self._settings(where)
        encoder = self._encoder(where)
        rows = EncodedImages(where, self.model, images, transform, encoder.device, encoder.dtype)
        return self._fit(where, encoder, rows, y, checkpoint)

    def _fit(self, where: str, encoder: PromptEncoder, rows: ImageRows, y: Any, checkpoint: Any) -> Self:
        given = checked_names(where, self.class_names, least=2)
        names: list[str] = _inputs.ordered(given)  # type: ignore[assignment]
        codes = _inputs.encode(where, _inputs.names(where, y, rows.count), names)
        with exactly(encoder.device):
            context = self._first_context(where, encoder, len(names))
            n_ctx = len(context) // (len(names) if self.class_specific else 1)
            prompts = encoder.prompts(*self._prompts(encoder, names, n_ctx), self.batch_rows)
            encoder.check(names[0], n_ctx)
            task = _Labelled(rows, codes, prompts, names, self.batch_size, self.seed)
            trainer = self._learn(where, encoder, task, context, n_ctx, checkpoint)
            self._keep(encoder, trainer, n_ctx, names, prompts)
        return self
