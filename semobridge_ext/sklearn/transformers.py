"""Maps of features as scikit-learn's `TransformerMixin` and `BaseEstimator`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor

from semobridge_ext import _errors, _inputs, bridging, linear_maps
from semobridge_ext._parameters import check_feature_names, keep_feature_names, repr_of
from semobridge_ext.bridging.default import default_for, embedded_bridge
from semobridge_ext.fewshot.conventions import not_fitted
from semobridge_ext.sklearn.display import Displayed

if TYPE_CHECKING:
    from typing_extensions import Self


class _Types(Displayed, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What a transformer of this package lacks: the types, names of its columns and their containers."""


class _Transformer(_Types):
    """A map that is fixed at ``fit``: rows of X by rows, NaN staying in its row."""

    n_features_in_: int
    _map: linear_maps.LinearMap

    def _map_of(self, x: Tensor) -> linear_maps.LinearMap:  # x: [N, D]
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr_of(self, self._get_param_names())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_map")

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fixes the map.

        Args:
            X: [N, D] raw features, a floating-point tensor, array or data frame.
            y: not looked at.

        Raises:
            TypeError, ValueError: no floating-point rows, another width than the map's, arguments that do not
                fit.
        """
        x = _inputs.features(f"{type(self).__name__}.fit", "X", X, finite=False)
        self._map = self._map_of(x)
        keep_feature_names(self, X)
        self.n_features_in_, self._n_features_out = x.shape[1], self._map.out_features
        return self

    def transform(self, X: Any) -> Any:
        """The mapped rows of X.

        Args:
            X: [N, D] raw features, a floating-point tensor, array or data frame.

        Returns:
            [N, M], a tensor for a tensor, else an array or what ``set_output`` asks for; float32 and float64
            stay what they are.

        Raises:
            ValueError: not fitted, or another width or other columns than at ``fit``.
        """
        if not hasattr(self, "_map"):
            raise not_fitted(self)
        where = f"{type(self).__name__}.transform"
        check_feature_names(self, where, X)
        x = _inputs.features(where, "X", X, self.n_features_in_, finite=False)
        rows: Any = self._map(x)
        return rows if isinstance(X, Tensor) else rows.cpu().numpy()


class Bridge(_Transformer):
    """``semobridge_ext.Bridge`` for scikit-learn: ``norm(f W⁺ W)``.

    Args:
        bridge: a Bridge, a CLIP model, ``"picto"``; None: what ``sb.use`` set. ``"identity"`` is the norm
            alone, for features of any width.
        normalize: False leaves the last norm out.

    Attributes: bridge_, None for ``"identity"``; n_features_in_, feature_names_in_.

    Raises:
        TypeError, ValueError: from ``fit``: another kind of bridge, or one of another width than X.

    Example:
        >>> import semobridge_ext as sb
        >>> from semobridge_ext.sklearn import Bridge
        >>> Bridge(sb.Bridge(torch.eye(2))).fit_transform([[0.0, 2.0]]).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, bridge: Any = None, *, normalize: bool = True) -> None:
        self.bridge, self.normalize = bridge, normalize

    def _map_of(self, x: Tensor) -> linear_maps.LinearMap:
        self.bridge_ = self._resolved(x)
        if self.bridge_ is None:
            made = linear_maps.LinearMap(torch.eye(x.shape[1], dtype=torch.float64, device=x.device))
        else:
            made = linear_maps.LinearMap.from_bridge(self.bridge_)
        return _of_width("Bridge.fit", made, x).with_norm(self.normalize)

    def _resolved(self, x: Tensor) -> bridging.Bridge | None:
        given = self.bridge
        if isinstance(given, str) and given == "identity":
            return None
        if given is None:
            return default_for(x)
        if isinstance(given, bridging.Bridge):
            return given
        if isinstance(given, str) and given == "picto":
            return embedded_bridge()
        if isinstance(given, torch.nn.Module):
            return bridging.Bridge.from_clip(given)
        contract = "be a Bridge, a CLIP model, 'picto' or 'identity'"
        raise TypeError(
            _errors.message("Bridge.fit", "bridge", contract, given, "load that model and pass it")
        )


class LinearMap(_Transformer):
    """``semobridge_ext.LinearMap`` for scikit-learn: one that stands, or one that ``fit`` makes of X.

    Args:
        linear_map: a LinearMap, or the name of its constructor: "centering" ``norm(x − μ)``, "pca"
            ``norm((x − μ) V_k)`` or "whitening", μ and V_k of the rows of X that are finite.
        k: directions kept by "pca" (None: min(N − 1, D)) and "whitening" (None: D).
        shrinkage: of "whitening".
        normalize: False leaves the last norm out.

    Attributes: map_, the LinearMap; n_features_in_, feature_names_in_.

    Raises:
        TypeError, ValueError: from ``fit``: another name or kind, a map of another width than X, what the
            constructor refuses.

    Example:
        >>> import semobridge_ext as sb
        >>> from semobridge_ext.sklearn import LinearMap
        >>> LinearMap("centering").fit_transform([[3.0, 4.0], [3.0, 6.0]]).tolist()
        [[0.0, -1.0], [0.0, 1.0]]
    """

    _NAMES = ("centering", "pca", "whitening")

    def __init__(
        self,
        linear_map: Any = "centering",
        *,
        k: int | None = None,
        shrinkage: float = 1e-3,
        normalize: bool = True,
    ) -> None:
        self.linear_map, self.k, self.shrinkage, self.normalize = linear_map, k, shrinkage, normalize

    @property
    def map_(self) -> linear_maps.LinearMap:
        """The map in use."""
        if not hasattr(self, "_map"):
            raise not_fitted(self)
        return self._map

    def _map_of(self, x: Tensor) -> linear_maps.LinearMap:
        given = self.linear_map
        if isinstance(given, linear_maps.LinearMap):
            return _of_width("LinearMap.fit", given, x).with_norm(self.normalize)
        rows = _finite_rows(x, 1 if given == "centering" else 2)
        if given == "centering":
            made = linear_maps.LinearMap.centering(rows.mean(dim=0))
        elif given == "pca":
            most = min(len(rows) - 1, rows.shape[1])
            made = linear_maps.LinearMap.pca(rows, most if self.k is None else self.k, center=True)
        elif given == "whitening":
            made = linear_maps.LinearMap.whitening(rows, k=self.k, shrinkage=self.shrinkage)
        else:
            contract, remedy = f"be a LinearMap or one of {list(self._NAMES)}", "'centering' is the default"
            raise ValueError(_errors.message("LinearMap.fit", "linear_map", contract, given, remedy))
        return made.with_norm(self.normalize)


class IsoCLIP(linear_maps.IsoCLIP, _Types):
    """``semobridge_ext.IsoCLIP`` for scikit-learn: intra-modal features, cuts given or chosen by ``fit``.

    Args:
        image_projection, text_projection, image_bias, text_bias: as there.
        k_top, k_bottom, text_k_top, text_k_bottom: as there.
        side, compress, normalize: as there.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> from semobridge_ext.sklearn import IsoCLIP
        >>> iso = IsoCLIP(torch.eye(3), torch.eye(3), k_top=1, k_bottom=0, compress=True)
        >>> iso.fit(torch.eye(3)).get_feature_names_out().tolist()
        ['isoclip0', 'isoclip1']
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Checks X [N, V] (texts: [N, T]); chooses the cuts on it and N labels y where none are given."""
        super().fit(X, y)
        keep_feature_names(self, X)
        return self

    def transform(self, X: Any) -> Any:
        """The projected features of X [N, V] (texts: [N, T]), as ``set_output`` asks for them."""
        check_feature_names(self, "IsoCLIP.transform", X)
        return super().transform(X)

    @property
    def _n_features_out(self) -> int:
        return self.map().out_features


def _of_width(function: str, made: linear_maps.LinearMap, x: Tensor) -> linear_maps.LinearMap:
    if made.in_features != x.shape[1]:
        remedy = "take both from one model"
        contract = f"have the map's width {made.in_features}"
        raise ValueError(_errors.message(function, "X", contract, f"{x.shape[1]} features", remedy))
    return made


def _finite_rows(x: Tensor, least: int) -> Tensor:  # [N, D] -> [n, D] float64
    """The rows that a map is made of: one with NaN or infinity would spoil the map for all others."""
    rows = x[torch.isfinite(x).all(dim=1)].to("cpu", torch.float64)
    if len(rows) < least:
        got = f"{len(rows)} sample{'s' * (len(rows) != 1)}"
        contract, remedy = f"have at least {least} finite rows", "pass more rows"
        raise ValueError(_errors.message("LinearMap.fit", "X", contract, got, remedy))
    return rows
