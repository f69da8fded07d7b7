"""Shots kept as two sums per class in float64, so that shots and classes can be added later.

F̄_c = norm(Σ_k F_ck)      F̂_c = norm(Σ_k bridged(F_ck))      the norm cancels the number of shots
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _inputs
from semobridge_ext._ops.blend_logits.eager import class_exponents
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext.bridging import Bridge
from semobridge_ext.bridging.default import default_for, embedded_bridge
from semobridge_ext.fewshot.estimator import exactly
from semobridge_ext.fewshot.growing import Growing
from semobridge_ext.runtime.held import Held
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class ClassSums(Growing):
    """The state of a classifier with bridged shots: sums of raw and of bridged shots per class.

    A subclass has the constructor arguments ``bridge``, ``text_features`` and ``class_names``.
    """

    _sums = "_raw_sums"
    _unknown = " without text or shots; add it with add_classes(...)"
    bridge: Any

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool = True) -> Tensor:
        codes = self._set_text(verb, labels, x.shape[1], every)
        self.bridge_ = self._resolve_bridge(verb, x)
        classes, width = len(self._names), x.shape[1]
        self._has_text = self.text_features is not None
        self.counts_ = torch.zeros(classes, dtype=torch.int64)
        self._raw_sums = torch.zeros(classes, width, dtype=torch.float64)
        self._bridged_sums = torch.zeros(classes, width, dtype=torch.float64)
        return codes

    def _resolve_bridge(self, verb: str, x: Tensor) -> Bridge | None:
        given = self.bridge
        if isinstance(given, str) and given == "identity":
            return None
        if given is None:
            bridge = default_for(x)
        elif isinstance(given, Bridge):
            bridge = given
        elif isinstance(given, str):
            if given != "picto":
                raise TypeError(
                    f"{type(self).__name__}: bridge must be a Bridge, a CLIP model, 'picto' or 'identity', "
                    f"got {given!r}; load that model and pass it"
                )
            bridge = embedded_bridge()
        else:
            bridge = Bridge.from_clip(given)
        if bridge.text_projection.shape[1] != x.shape[1]:
            raise ValueError(
                f"{type(self).__name__}.{verb}: X must have the bridge's width "
                f"{bridge.text_projection.shape[1]}, got {x.shape[1]} features; take both from one model"
            )
        return _of_this_moment(bridge)

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        wide = x.to(compute_dtype(x.dtype))
        with exactly(x.device):
            bridged = self._bridge_shots(wide, codes.to(x.device))
        codes = codes.cpu()
        self.counts_ = self.counts_ + torch.bincount(codes, minlength=len(self._names))
        for name, rows in (("_raw_sums", wide), ("_bridged_sums", bridged)):
            own = rows.detach().to("cpu", torch.float64)
            if weights is not None:
                own = own * weights.unsqueeze(1)
            setattr(self, name, getattr(self, name).index_add(0, codes, own))

    def _close_sums(self) -> None:
        self._derive()

    def _add(self, x: Tensor, codes: Tensor) -> None:
        """Adds shots to the sums of their classes and derives what prediction needs."""
        self._add_to_sums(x, codes, None)
        self._derive()

    def _bridge_shots(self, x: Tensor, codes: Tensor) -> Tensor:  # [M, D], not normalised
        if self.bridge_ is None:
            return normalize(x, dim=1)
        return self._bridge_on(x.device)(x, normalize=False)

    def _bridge_on(self, device: torch.device) -> Bridge:
        """The bridge for rows of that device; a copy where it lies elsewhere."""
        assert self.bridge_ is not None
        here = self.bridge_.inverse.device == device
        return self.bridge_ if here else copy.deepcopy(self.bridge_).to(device)

    def _derive(self) -> None:
        raw, bridged = normalize(self._raw_sums, dim=1), normalize(self._bridged_sums, dim=1)
        self.exponents_ = (
            class_exponents(raw, self._text_rows)
            if self._has_text
            else torch.zeros(len(raw), dtype=torch.float64)
        )
        projector = factor = None
        if self.bridge_ is not None:
            fold = self.bridge_._fold()
            projector = fold.projector
            factor = fold.right if fold.closed_form else None
        self._operand = BlendOperand(self._text_rows, bridged, raw, self.exponents_, projector, factor)

    @plain_modes()
    def add_shots(self, X: Any, y: Any) -> Self:
        """Adds shots of known classes; the result equals fitting all of them at once.

        The blend found by ``tune`` is kept. Cost: the new rows alone, and D_c's C×C product.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names that were fitted.

        Raises:
            ValueError: not fitted, another width, or a class that was not fitted.
        """
        x = self._queries("add_shots", X)
        codes = self._codes("add_shots", y, len(x))
        self._add(x, codes)
        return self

    @plain_modes()
    def add_classes(self, class_names: Sequence[Hashable], text_features: Any, X: Any, y: Any) -> Self:
        """Adds classes with their text rows and shots; the other classes' sums stay as they are.

        ``classes_``, and with it the columns, stay sorted.

        Args:
            class_names: new names. text_features: one row each (None where fit had no text).
            X, y: shots of the new classes (of known ones too, if wanted).
        """
        x = self._queries("add_classes", X)
        where = f"{type(self).__name__}.add_classes"
        new = _inputs.names(where, class_names)
        known = set(self._names)
        if not new or len(set(new)) != len(new) or known & set(new):
            raise ValueError(
                f"{where}: class_names must be new and distinct, got {new[:5]}; use add_shots for known ones"
            )
        if (text_features is not None) != self._has_text:
            need = "hold one row per new class" if self._has_text else "be None, as fit had none"
            raise ValueError(f"{where}: text_features must {need}; pass them so")
        width = self.n_features_in_
        text = torch.zeros(len(new), width, dtype=torch.float64)
        if self._has_text:
            text = self._text("add_classes", text_features, width)
            if len(text) != len(new):
                raise ValueError(
                    f"{where}: text_features must hold {len(new)} rows, got {len(text)}; one per new class"
                )
        appended = [*self._names, *new]
        order = _inputs.order_of(appended)
        names = appended if order is None else [appended[i] for i in order.tolist()]
        codes = _inputs.encode(where, _inputs.names(where, y, len(x)), names, "; name it in class_names too")
        present = {names[i] for i in set(codes.tolist())}
        lacking = [name for name in new if name not in present][:5]
        if lacking:
            raise ValueError(
                f"{where}: y must hold a shot of every new class, got none of {lacking}; add them"
            )
        self._names, self.classes_ = names, _inputs.as_array(names)
        self._text_rows = torch.cat([self._text_rows, text])
        zeros = torch.zeros(len(new), width, dtype=torch.float64)
        self._raw_sums = torch.cat([self._raw_sums, zeros])
        self._bridged_sums = torch.cat([self._bridged_sums, zeros])
        self.counts_ = torch.cat([self.counts_, torch.zeros(len(new), dtype=torch.int64)])
        self._grow(len(new))
        if order is not None:
            self._reorder(order)
        self._add(x, codes)
        return self

    def _reorder(self, order: Tensor) -> None:
        """Brings the classes' rows into the order of the sorted names."""
        for name in ("_text_rows", "_raw_sums", "_bridged_sums", "counts_"):
            setattr(self, name, getattr(self, name)[order])

    def _grow(self, classes: int) -> None:
        """For what a subclass keeps per class."""


def _of_this_moment(bridge: Bridge) -> Bridge:
    """A copy: the sums of shots belong to these matrices, whatever the caller makes of theirs later."""
    fold, own = bridge._fold(), copy.deepcopy(bridge)
    own._fold_cache = Held(*own._matrices()), fold  # the decomposition need not be made again
    return own
