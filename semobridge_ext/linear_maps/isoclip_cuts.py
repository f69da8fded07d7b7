"""The cuts of IsoCLIP: the spectrum they cut, what they must satisfy, and how data chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext._parameters import Parameters
from semobridge_ext.linear_maps.spectrum import UNPUBLISHED, Spectrum, search_cuts, spectrum_of
from semobridge_ext.runtime.held import Held
from semobridge_ext.runtime.plain_modes import plain_device

if TYPE_CHECKING:
    from typing_extensions import Self

SIDES = ("image", "text")
CUTS = ("k_top", "k_bottom", "text_k_top", "text_k_bottom")


class Cuts(Parameters):
    """What `IsoCLIP` knows of its matrices and cuts; its arguments are described there."""

    image_projection: Tensor | None  # [V, D]
    text_projection: Tensor | None  # [T, D]
    image_bias: Tensor | None  # [D]
    text_bias: Tensor | None  # [D]
    side: str
    k_top: int | None
    k_bottom: int | None
    text_k_top: int | None
    text_k_bottom: int | None

    def _spectrum(self) -> Spectrum:
        matrices = []
        for name in ("image_projection", "text_projection"):
            m = _errors.check_float_tensor("IsoCLIP", name, getattr(self, name))
            if m.dim() != 2 or m.numel() == 0:
                remedy = "pass the matrix, or use IsoCLIP.from_clip(model)"
                raise ValueError(_errors.message("IsoCLIP", name, "be 2-D and not empty", m, remedy))
            matrices.append(m)
        image, text = matrices
        biases = [b for b in (self.image_bias, self.text_bias) if b is not None]
        if image.shape[1] != text.shape[1]:
            contract, remedy = f"be [T, {image.shape[1]}]", "take both projections from the same model"
            raise ValueError(_errors.message("IsoCLIP", "text_projection", contract, text, remedy))
        kept = self.__dict__.get("_kept")
        if kept is None or not kept[0].same(*matrices, *biases):
            for name, m in zip(("image_projection", "text_projection"), matrices, strict=True):
                _errors.check_finite("IsoCLIP", name, m, "reload the model's weights")
            for name, b in (("image_bias", self.image_bias), ("text_bias", self.text_bias)):
                if b is not None:
                    _errors.check_float_tensor("IsoCLIP", name, b)
            held = Held(*matrices, *biases)
            kept = (held, spectrum_of(image, text, self.image_bias, self.text_bias), {})
            self.__dict__["_kept"] = kept
        return kept[1]

    @property
    def singular_values(self) -> Tensor:
        """[r] float64, of ``A·Wᵀ``, descending."""
        return self._spectrum().decomposition.singular.clone()

    def _side(self, function: str, side: str | None) -> str:
        side = self.side if side is None else side
        if side not in SIDES:
            remedy = "features of other modalities have no projector here"
            raise ValueError(_errors.message(function, "side", "be 'image' or 'text'", side, remedy))
        return side

    def _given(self, side: str) -> tuple[Any, Any]:
        """The side's cuts: its own where given, else those of the class, else what ``fit`` found."""
        top, bottom = self.k_top, self.k_bottom
        if side == "text":
            top = top if self.text_k_top is None else self.text_k_top
            bottom = bottom if self.text_k_bottom is None else self.text_k_bottom
        return (
            getattr(self, "k_top_", None) if top is None else top,
            getattr(self, "k_bottom_", None) if bottom is None else bottom,
        )

    def _is_chosen(self, side: str) -> bool:
        return None not in self._given(side)

    def _cut(self, side: str) -> tuple[int, int]:
        """(k_top, k_bottom) of a side, checked."""
        rank = self._spectrum().rank
        cut = self._given(side)
        for name, value in zip(("k_top", "k_bottom"), cut, strict=True):
            name = f"text_{name}" if side == "text" and getattr(self, f"text_{name}") is not None else name
            if value is None:
                remedy = "pass it, use published=..., or choose it with fit(X, y) or tune(X, y)"
                raise ValueError(_errors.message("IsoCLIP", name, "be chosen before use", "none", remedy))
            if value == UNPUBLISHED:
                got, remedy = "no published value", "pass text_k_top and text_k_bottom, or use tune(X, y)"
                raise ValueError(_errors.message("IsoCLIP", name, "be chosen before use", got, remedy))
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(_errors.message("IsoCLIP", name, "be an int", value, "pass how many to cut"))
            if value < 0:
                raise ValueError(_errors.message("IsoCLIP", name, "be ≥ 0", value, "0 cuts nothing"))
        top, bottom = (value.__index__() for value in cut)
        if top + bottom >= rank:
            contract = f"leave one of the {rank} directions with k_bottom"
            got, remedy = (
                f"{top} and {bottom}",
                "published values belong to one model; use tune(X, y) for others",
            )
            raise ValueError(_errors.message("IsoCLIP", "k_top", contract, got, remedy))
        return top, bottom

    # -- chosen by data ------------------------------------------------------------------------------

    @plain_device()
    def tune(
        self,
        X: Any,
        y: Any,
        *,
        side: str | None = None,
        k_top: Sequence[int] | None = None,
        k_bottom: Sequence[int] | None = None,
        metric: str = "mAP",
    ) -> Self:
        """Chooses the cuts of one side on labelled data: the best leave-one-out retrieval.

        Args:
            X: [N, V] (texts: [N, T]) validation features before the projection.
            y: N labels.
            side: None: the class's side.
            k_top, k_bottom: values to try, every pair that leaves a direction; None: eleven shares of r
                from 0 to a half. With 0 and 0 in the grid the native features compete.
            metric: a figure of ``retrieval_metrics``: "mAP", "mAP@R", "R-Precision", "Recall@k".

        Returns:
            self, with the side's cuts set to the best pair (the smaller cut of equals), and
            ``search_``: the list of (k_top, k_bottom, score). One SVD serves all pairs.
        """
        side = self._side("IsoCLIP.tune", side)
        top, bottom, self.search_ = search_cuts(
            "IsoCLIP.tune", self._spectrum(), side, X, y, k_top, k_bottom, metric
        )
        prefix = "text_" if side == "text" else ""
        setattr(self, f"{prefix}k_top", top)
        setattr(self, f"{prefix}k_bottom", bottom)
        return self

    def fit(self, X: Any, y: Any = None) -> Self:
        """Checks the features; chooses the cuts on (X, y) as ``tune`` does where none are given."""
        side, where = self._side("IsoCLIP.fit", None), "IsoCLIP.fit"
        x = _inputs.features(where, "X", X, self._spectrum().width(side))
        for name in ("k_top_", "k_bottom_"):
            self.__dict__.pop(name, None)
        if not self._is_chosen(side):
            if y is None:
                remedy = "pass y, or k_top and k_bottom"
                raise ValueError(_errors.message(where, "y", "be given to choose the cuts", "none", remedy))
            tops, bottoms = (None if v is None else (v,) for v in self._given(side))
            self.k_top_, self.k_bottom_, self.search_ = search_cuts(
                where, self._spectrum(), side, X, y, tops, bottoms, "mAP"
            )
        self._cut(side)
        self.n_features_in_ = x.shape[1]
        return self
