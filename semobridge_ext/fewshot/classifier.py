"""SeMoBridge, closed form, as a classifier (arXiv 2509.26036, §3; docs/methods.md §1).

F̄_c = norm(mean_k F_ck)      F̂_c = norm(mean_k bridged(F_ck))      z1, z2, z3: _ops/blend_logits/op.py
logit_c = λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))],  w_c = exp(s·D_c)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext._schema import WHOLE, Field, need, number, restoring
from semobridge_ext.bridging import Bridge
from semobridge_ext.fewshot.class_sums import ClassSums
from semobridge_ext.fewshot.estimator import CHUNK, exactly
from semobridge_ext.fewshot.estimator_file import load_estimator, save_estimator, sort_classes
from semobridge_ext.fewshot.tuning import TuneResult, fit_scale, tune_blend
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class SeMoBridgeClassifier(ClassSums):
    """Few-shot classification with text, bridged shots and bridged queries, blended.

    Args:
        bridge: a Bridge, a CLIP model, ``"picto"``; None: what ``sb.use`` set. ``fit`` takes a copy.
            ``"identity"`` bridges nothing: the control, and the form for features of no CLIP model.
        text_features: [C, D] class text features t_c (any length; normalised here), in the order of
            ``class_names``; None: no text, z1 = 0 and every class weighs the same in the blend.
        class_names: C hashable names of the rows of text; None: 0..C-1 with text, what y holds without.
        s, alpha, beta, gamma, lambda1, lambda2, lambda3: the blend before ``tune``.
        probability_scale: what ``predict_proba`` multiplies the logits by before ``tune`` fits it.

    Attributes:
        classes_: class names, sorted: the order of the columns and of all that is [C].
        params_: the blend in use (BlendParams).
        exponents_: [C] float64 D_c. counts_: [C] shots. search_: what ``tune`` found, or None.
        probability_scale_: the scale in use. n_features_in_: D.

    Raises:
        TypeError, ValueError: from ``fit``, which checks all arguments: a class without a shot, a label
            without text, NaN features, widths that differ, a bridge of another kind.

    Features are raw rows of ``encode_image`` (lengths matter in F̄), tensors or arrays of any float
    dtype; NaN and infinity are refused. Rows on the CPU use the native core. Rows on CUDA use the CUDA
    kernel from the batch size on that ``semobridge-ext calibrate`` measured, and PyTorch below it or in
    float64; ``sb.backend`` overrides the choice.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> shots = torch.eye(3).repeat(2, 1)
        >>> clf = sb.SeMoBridgeClassifier(sb.Bridge(torch.eye(3)), torch.eye(3), class_names=["a", "b", "c"])
        >>> clf.fit(shots, ["a", "b", "c"] * 2).predict([[0.1, 2.0, 0.3]]).tolist()
        ['b']
    """

    _format = "semobridge-ext SeMoBridgeClassifier 1"
    _file: ClassVar[dict[str, Field]] = {
        "text": Field(("C", "D"), (torch.float64,)),
        "raw_sums": Field(("C", "D"), (torch.float64,)),
        "bridged_sums": Field(("C", "D"), (torch.float64,)),
        "counts": Field(("C",), WHOLE),
        "text_projection": Field(("T", "D"), optional=True),
        "inverse": Field(("D", "T"), optional=True),
    }

    def __init__(
        self,
        bridge: Any = None,
        text_features: Any = None,  # [C, D]
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
    ) -> None:
        self.bridge = bridge
        self.text_features = text_features
        self.class_names = class_names
        self.s, self.alpha, self.beta, self.gamma = s, alpha, beta, gamma
        self.lambda1, self.lambda2, self.lambda3 = lambda1, lambda2, lambda3
        self.probability_scale = probability_scale

    # -- fitting ------------------------------------------------------------------------------------

    @plain_modes()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Takes the shots; augmented copies of an image count as further shots, as in the paper.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names, any number of rows per class.
            sample_weight: M weights of the shots, ≥ 0; None: all 1. A shot of weight 2 counts twice.

        Raises:
            ValueError: a class without a shot, a label without text, NaN features, widths that differ,
                weights that do not fit.
        """
        return self._fit_sums(X, y, sample_weight)

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool = True) -> Tensor:
        codes = super()._open_sums(verb, labels, x, every)
        given = self.s, self.alpha, self.beta, self.gamma, self.lambda1, self.lambda2, self.lambda3
        self.params_ = BlendParams(*map(float, given))
        self.probability_scale_ = float(self.probability_scale)
        self.search_: TuneResult | None = None
        return codes

    # -- prediction ---------------------------------------------------------------------------------

    def _queries(self, verb: str, X: Any) -> Tensor:
        self._check_fitted()
        if not math.isfinite(sum(self.params_)):
            where, remedy = f"{type(self).__name__}.{verb}", "fit again, or set finite ones"
            got = _errors.describe(tuple(self.params_))
            raise ValueError(_errors.message(where, "params_", "hold finite numbers", got, remedy))
        return super()._queries(verb, X)

    def _logits(self, x: Tensor) -> Tensor:
        return self._operand.logits(x, self.params_, called="decision_function")

    def _labels(self, x: Tensor) -> Tensor:
        return self._operand.labels(x, self.params_, called="predict")

    def similarities(self, X: Any) -> Similarities:
        """The three blocks of cosines z1, z2, z3, each [N, C], that the blend is made of.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        return self._operand.similarities(self._queries("similarities", X), called="similarities")

    def predict_proba(self, X: Any) -> Any:  # [N, C]
        """``softmax(scale·logits)`` with one scale for all classes.

        The blend has no probabilistic model. After ``tune`` the scale minimises the validation data's
        mean negative log-likelihood (temperature scaling), and the values can be read as calibrated on
        average over data like these; before it they only order the classes.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("predict_proba", X)
        with exactly(x.device):
            logits = self._logits(x)
            proba = torch.softmax(self.probability_scale_ * logits.double(), dim=1).to(logits.dtype)
        return proba if isinstance(X, Tensor) else proba.cpu().numpy()

    @plain_modes()
    def tune(
        self,
        X: Any,
        y: Any,
        *,
        n_trials: int = 1000,
        seed: int = 0,
        sampler: Any = "optuna",
        ranges: dict[str, tuple[float, float]] | None = None,
        fixed: dict[str, float] | None = None,
        redundant: bool = False,
        batch: int = 1,
        progress: bool = False,
    ) -> Self:
        """Searches the blend for the best accuracy on validation data; see ``tuning.tune_blend``.

        Args:
            X, y: the validation part, [N, D] and N names; never the test part.
            n_trials, seed: the paper takes 1000 trials. sampler: ``"optuna"`` (its TPE; needs optuna),
                ``"random"``, or an Optuna sampler.
            ranges: other bounds than s [0, 1.5], α, β, γ [0, 10], λ [0, 1].
            fixed: parameters that are not searched, e.g. ``{"s": 0.0}``.
            redundant: True searches λ1, λ2, λ3 as the authors do; False their ratios only, in two
                dimensions, because a common factor changes no prediction.
            batch: trials asked for at once; more than 1 is faster and searches less sharply.
            progress: a progress bar on stderr.

        Returns:
            self, with ``params_``, ``search_`` (best, history) and ``probability_scale_`` set. The
            first best trial is kept.
        """
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        result = tune_blend(
            self._operand, x, codes, n_trials=n_trials, seed=seed, sampler=sampler, ranges=ranges,
            fixed=fixed, redundant=redundant, batch=batch, progress=progress,
            called=f"{type(self).__name__}.tune",
        )  # fmt: skip
        self.search_, self.params_ = result, result.best
        logits = torch.cat([self._logits(part).double().cpu() for part in x.split(CHUNK)])
        self.probability_scale_ = fit_scale(logits, codes)
        return self

    # -- files --------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file with all that prediction, ``add_shots`` and ``add_classes`` need.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        self._check_fitted()
        tensors, fields = self._state()
        save_estimator(path, self._format, tensors, fields)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            "text": self._text_rows, "raw_sums": self._raw_sums, "bridged_sums": self._bridged_sums,
            "counts": self.counts_,
        }  # fmt: skip
        fields = {
            "names": self._names, "has_text": self._has_text, "params": list(self.params_),
            "scale": self.probability_scale_, "bridge": None,
        }  # fmt: skip
        if self.bridge_ is not None:
            tensors |= {
                "text_projection": self.bridge_.text_projection, "inverse": self.bridge_.inverse.detach()
            }  # fmt: skip
            fields["bridge"] = [self.bridge_.atol, self.bridge_.text_length]
        return tensors, fields

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
        """
        where = f"{cls.__name__}.load"
        fields = ("names", "has_text", "params", "scale", "bridge")
        tensors, values, _ = load_estimator(where, path, cls._format, cls._file, fields)
        with restoring(where, path):
            cls._check_file(where, path, tensors, values)
            self = cls.__new__(cls)
            self._restore(tensors, values)
        return self

    @classmethod
    def _check_file(cls, where: str, path: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """What the shapes alone do not say."""
        need(
            where, path, isinstance(values["has_text"], bool), "has_text as true or false", values["has_text"]
        )
        params = [number(where, path, "a parameter of the blend", p) for p in values["params"]]
        need(where, path, len(params) == len(BlendParams._fields), "seven parameters", params)
        values["params"] = params
        values["scale"] = number(where, path, "scale", values["scale"])
        need(where, path, int(tensors["counts"].min()) >= 1, "a shot of every class", tensors["counts"])
        bridged = {"text_projection", "inverse"} & set(tensors)
        if values["bridge"] is None:
            need(where, path, not bridged, "no matrices of a bridge", sorted(bridged))
        else:
            need(where, path, len(bridged) == 2, "both matrices of a bridge", sorted(bridged))
            need(where, path, len(values["bridge"]) == 2, "atol and text_length", values["bridge"])

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        by_class = ("text", "raw_sums", "bridged_sums", "counts", "tau")
        sort_classes(tensors, values, by_class)
        params = BlendParams(*values["params"])
        bridge: Any = "identity"
        if values["bridge"] is not None:
            atol, length = values["bridge"]
            bridge = Bridge._restored(tensors, atol, length)
        text = tensors["text"] if values["has_text"] else None
        type(self).__init__(
            self, bridge, text, class_names=values["names"], **params._asdict(),
            probability_scale=values["scale"],
        )  # fmt: skip
        self._names, self.classes_ = values["names"], _inputs.as_array(values["names"])
        self.n_features_in_ = tensors["text"].shape[1]
        self.params_, self.probability_scale_, self.search_ = params, values["scale"], None
        self._has_text, self._text_rows = values["has_text"], tensors["text"]
        self._raw_sums, self._bridged_sums = tensors["raw_sums"], tensors["bridged_sums"]
        self.counts_ = tensors["counts"]
        self.bridge_ = None if bridge == "identity" else bridge
        self._derive()
