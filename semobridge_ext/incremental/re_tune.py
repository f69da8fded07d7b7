"""RETune: adaptors on the features of a frozen CLIP, trained on one multi-label task after the other."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs
from semobridge_ext._parameters import Parameters
from semobridge_ext.fewshot.estimator import CHUNK, exactly, not_fitted
from semobridge_ext.incremental import adaptors
from semobridge_ext.incremental.labels import columns_of, finding_names, hide, label_codes
from semobridge_ext.incremental.metrics import average_precision, mean_of
from semobridge_ext.incremental.model import Model, check_labels, check_task, grown, unnamed
from semobridge_ext.incremental.model_file import load_model, save_model
from semobridge_ext.incremental.prompts import check_prompts
from semobridge_ext.incremental.settings import check_settings, form_of, settings_of
from semobridge_ext.incremental.training import TaskData, Trainer, train
from semobridge_ext.runtime.plain_modes import plain_device, plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class RETune(Parameters):
    """Multi-label classification that learns findings and images task after task, without replay.

        f′ = norm(f̂ + r·g(f̂))     t′ = norm(t̂ + r·h(t̂))     one adaptor for images, one for texts
        z_d = s·(f′·t′_d⁺ − f′·t′_d⁻)     p_d = σ(z_d) = softmax over {positive, negative} of s·cos
        L = mean over the known labels of the task of −[y log p + (1 − y) log(1 − p)]

    Every finding has a positive and a negative prompt. Encoders are frozen, so this stands on their
    features. ``partial_fit`` is called once a task, in order. Of a task's images and labels nothing is kept,
    only the adaptors and the prompts.

    From the paper are the frozen towers, adaptors on both, the two prompts and tasks in order without replay.
    Its program is not public, and of the paper abstract and introduction were read. The rest is this
    package's choice: the adaptors' form, and that they begin as the frozen model; r and s; the mean over
    known labels; AdamW with fresh moments each task, whose decay draws towards the frozen model; a cosine
    rate; one adaptor per tower for all tasks.

    Args:
        adaptor: ``"linear"``, g(x) = x M, or ``"bottleneck"``, g(x) = max(x A, 0) B.
        width: H of the bottleneck, A [D, H] and B [H, D].
        residual: r.
        logit_scale: s, already exponentiated.
        epochs: of each task.
        batch_size: rows a step, drawn anew each epoch; None: all.
        lr, weight_decay: of AdamW; a cosine takes the rate towards 0 within each task.
        seed: of the bottleneck and of all draws.
        checkpoint_every: epochs between two writes of the checkpoint.
        progress: a bar on standard error.

    Attributes:
        losses_: [epochs] float64 means of the last task; not saved.

    Raises:
        TypeError, ValueError: at ``fit`` and ``partial_fit``, for settings out of their range.

    Numerics: float32 (float64 for float64 features). Deterministic for one seed, device and number of
        threads; a resumed run has the bits of an unbroken one.

    Memory: the features and labels of one task, a batch's [B, L] logits, and 3 times the adaptors. A saved
        file holds the adaptors and the prompts.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x, prompts = torch.eye(3), torch.eye(3).repeat(2, 1)[:4].reshape(2, 2, 3)
        >>> model = sb.RETune(epochs=5).fit(x, [[1], [0], [0]], prompts[:1], findings=["edema"])
        >>> model.partial_fit(x, [[0], [1], [0]], prompts[1:], findings=["nodule"]).predict_proba(x).shape
        torch.Size([3, 2])

    Paper: RE-tune (arXiv 2410.17827).
    """

    losses_: Tensor
    _model: Model | None

    def __init__(
        self,
        *,
        adaptor: str = "linear",
        width: int = 64,
        residual: float = 1.0,
        logit_scale: float = 100.0,
        epochs: int = 100,
        batch_size: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
        checkpoint_every: int = 20,
        progress: bool = False,
    ) -> None:
        self.adaptor, self.width, self.residual, self.logit_scale = adaptor, width, residual, logit_scale
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.seed, self.checkpoint_every, self.progress = seed, checkpoint_every, progress

    def __repr__(self) -> str:
        return f"RETune(adaptor={self.adaptor!r}, epochs={self.epochs}, lr={self.lr:g}, seed={self.seed})"

    def __sklearn_is_fitted__(self) -> bool:
        return getattr(self, "_model", None) is not None

    @property
    def findings_(self) -> list[Hashable]:
        """The findings' names, in the order in which they came; the columns of every result."""
        return list(self._fitted().names)

    @property
    def tasks_(self) -> int:
        """How many tasks were trained."""
        return self._fitted().tasks

    @property
    def n_features_in_(self) -> int:
        """D, the width of the features."""
        return self._fitted().prompts.shape[2]

    def _fitted(self) -> Model:
        found = getattr(self, "_model", None)
        if found is None:
            raise not_fitted(self)
        return found

    # -- fitting -----------------------------------------------------------------------------------

    @plain_device()
    def add_findings(self, prompt_features: Any, findings: Any = None) -> Self:
        """Adds findings by their prompts alone; before any training this is the zero-shot classifier.

        Args:
            prompt_features: [k, 2, D] positive and negative text features of each finding, a floating-point
                tensor or array of any length of rows (``incremental.encode_findings``).
            findings: k names, none of them known yet; None, where there are no findings yet: 0..k−1.

        Returns:
            The estimator itself.

        Raises:
            TypeError: no floating-point rows. ValueError: shapes that do not fit, NaN, names twice.
        """
        where = "RETune.add_findings"
        check_settings(where, self.get_params())
        before = getattr(self, "_model", None)
        prompts = check_prompts(where, prompt_features, None if before is None else self.n_features_in_)
        if findings is None and before is not None:
            raise unnamed(where)
        names: list[Hashable] = (
            list(range(len(prompts))) if findings is None else finding_names(where, findings)
        )
        known = [] if before is None else [name for name in names if name in before.names]
        if known:
            remedy = "its prompts stay"
            raise ValueError(_errors.message(where, "findings", "be new", f"{known[0]!r} again", remedy))
        self._model = grown(where, form_of(self.get_params()), self.seed, before, names, prompts)
        return self

    @plain_modes()
    def fit(
        self,
        X: Any,
        Y: Any,
        prompt_features: Any,
        *,
        findings: Any = None,
        known: Any = None,
        checkpoint: Any = None,
    ) -> Self:
        """Forgets everything and trains the first task.

        Args:
            X, Y, known, checkpoint: as for ``partial_fit``.
            prompt_features: [k, 2, D], as for ``partial_fit``; needed.
            findings: k names of the columns of Y; None: 0..k−1.

        Returns:
            The estimator itself.

        Raises:
            TypeError, ValueError: as ``partial_fit``.
        """
        return self._fit("fit", None, X, Y, prompt_features, findings, known, checkpoint)

    @plain_modes()
    def partial_fit(
        self,
        X: Any,
        Y: Any,
        prompt_features: Any = None,
        *,
        findings: Any = None,
        known: Any = None,
        checkpoint: Any = None,
    ) -> Self:
        """Trains the next task, from where the last one ended; the first is that of ``fit``.

        Args:
            X: [n, D] raw image features of this task, a floating-point tensor or array.
            Y: [n, k] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known and has no part in
                the loss.
            prompt_features: [k, 2, D] positive and negative text features of the columns' findings, floating
                point. None: all of them are known. Those of a known finding must be what they were.
            findings: k names of the columns. None: all known findings in their order, or 0..k−1 in the
                first task.
            known: [n, k] bool; False hides a label, whatever Y holds.
            checkpoint: a file that is written during this task, and continued from where it exists. It
                depends on the bytes of this task's data, on the adaptors before it and on every setting but
                ``checkpoint_every`` and ``progress``; each task takes a file of its own. One run holds it
                at a time, by ``<checkpoint>.lock``.

        Returns:
            The estimator itself.

        Raises:
            TypeError: no floating-point rows, labels that are no numbers, settings that are none.
            ValueError: NaN or infinite rows; shapes that do not fit; a finding without a known label, or new
                without prompts; an adaptor other than in the first task; a checkpoint of other data or
                settings, which are named; a loss that diverged. The estimator is then as it was before.
        """
        before = getattr(self, "_model", None)
        return self._fit("partial_fit", before, X, Y, prompt_features, findings, known, checkpoint)

    def _fit(
        self, verb: str, before: Model | None, X: Any, Y: Any, given: Any, findings: Any, known: Any,
        checkpoint: Any,
    ) -> Self:  # fmt: skip
        where = f"RETune.{verb}"
        check_settings(where, self.get_params())
        x = _inputs.features(where, "X", X, None if before is None else before.prompts.shape[2])
        codes = hide(where, label_codes(where, "Y", Y), known)
        prompts = None if given is None else check_prompts(where, given, x.shape[1])
        if findings is None and before is not None and prompts is not None:
            raise unnamed(where)
        if findings is not None:
            names = finding_names(where, findings)
        else:
            names = list(range(codes.shape[1])) if before is None else before.names
        check_labels(where, codes, len(x), names)
        check_task(where, codes, names)
        model = grown(where, form_of(self.get_params()), self.seed, before, names, prompts)
        mine = model.prompts[columns_of(where, names, model.names)]
        dtype = compute_dtype(x.dtype)
        with exactly(x.device):
            unit = normalize(x.to(dtype), dim=1)
            data = TaskData(model.tasks, unit, codes, mine.to(x.device, dtype))
            trainer = Trainer(where, data, model.form, model.parameters, settings_of(self.get_params()))
            train(trainer, checkpoint, self.checkpoint_every, self.progress)
        self._model = model._replace(parameters=trainer.parameters, tasks=model.tasks + 1)
        self.losses_ = trainer.losses
        return self

    # -- predicting --------------------------------------------------------------------------------

    def _logits(self, verb: str, X: Any) -> Tensor:
        model = self._fitted()
        x = _inputs.features(f"RETune.{verb}", "X", X, model.prompts.shape[2])
        dtype = compute_dtype(x.dtype)
        with exactly(x.device):
            p = {name: value.to(x.device, dtype) for name, value in model.parameters.items()}
            prompts = model.prompts.to(x.device, dtype)
            units = (normalize(part.to(dtype), dim=1) for part in x.split(CHUNK))
            return torch.cat([adaptors.logits(p, model.form, unit, prompts) for unit in units])

    @plain_device()
    def decision_function(self, X: Any) -> Any:  # [N, L]
        """z, ``s`` times the cosine with the positive prompt less that with the negative one.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Returns:
            [N, L] float32, or float64 for float64 features, in the order of ``findings_``; a tensor for a
            tensor.

        Raises:
            ValueError: not fitted, another width, NaN or infinite rows.
        """
        found = self._logits("decision_function", X)
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    @plain_device()
    def predict_proba(self, X: Any) -> Any:  # [N, L]
        """σ(z) of each finding, of which any number may be present; rows do not add up to 1.

        Args:
            X: [N, D] as for ``decision_function``.

        Returns:
            [N, L] as from ``decision_function``.

        Raises:
            ValueError: as ``decision_function``.
        """
        found = torch.sigmoid(self._logits("predict_proba", X))
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    @plain_device()
    def predict(self, X: Any) -> Any:  # [N, L]
        """1 where z > 0, which is p > ½, else 0.

        Args:
            X: [N, D] as for ``decision_function``.

        Returns:
            [N, L] int64, a tensor for a tensor.

        Raises:
            ValueError: as ``decision_function``.
        """
        found = (self._logits("predict", X) > 0).long()
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    @plain_device()
    def score(self, X: Any, Y: Any, *, findings: Any = None) -> float:
        """Mean average precision over the findings that Y has a positive of.

        Args:
            X: [N, D] as for ``decision_function``.
            Y: [N, k] labels 0 and 1; NaN or −1 is not known and left out.
            findings: k names of the columns; None: all, in the order of ``findings_``.

        Raises:
            TypeError: labels that are no numbers. ValueError: as ``decision_function``; shapes that do not
                fit; no positive at all.
        """
        where = "RETune.score"
        z = self._logits("score", X)
        names = self.findings_ if findings is None else finding_names(where, findings)
        codes = label_codes(where, "Y", Y)
        check_labels(where, codes, len(z), names)
        if not bool((codes == 1).any()):
            remedy = "score images that show a finding"
            raise ValueError(_errors.message(where, "Y", "hold a positive", "none", remedy))
        return mean_of(average_precision(codes, z[:, columns_of(where, names, self.findings_)]))

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file with what prediction and a next task need: adaptors and prompts.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        save_model(path, self._fitted(), self.get_params())

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
        """
        model, params = load_model("RETune.load", path, cls._parameter_names())
        self = cls(**params)
        self._model = model
        return self
