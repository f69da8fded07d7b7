"""Centring by role: every role of a retrieval has its own mean (GR-CLIP, arXiv 2507.19054).

    norm(norm(x) − μ_role)            fused:  norm(a·(norm(t) − μ_t) + (1 − a)·(norm(i) − μ_i))

Texts and images of a CLIP model lie around two means, so that a text finds texts before images whatever
they show. Without the means they are compared by what they differ in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _arrays, _errors, _files, _numbers, _schema
from semobridge_ext.linear_maps.linear_map import LinearMap
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "semobridge-ext role centering 1"


class RoleCentering:
    """A mean per role, subtracted from unit rows: query texts, document texts, document images.

    Args:
        means: {role: [D]} of unit rows, any float dtype; None: ``fit`` takes them from data.

    Attributes: means_ {role: [D] float64}.

    Raises:
        TypeError, ValueError: no float tensors, widths that differ, not finite, no role.

    Numerics: means in float64; applied in float32 (float64 for float64 rows). Differentiable in the rows.

    Memory: one row of D values a role.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> texts, images = torch.eye(2), torch.tensor([[3.0, 4.0]])
        >>> roles = sb.RoleCentering().fit({"query_text": texts, "document_image": images})
        >>> roles.map_for("query_text")(torch.tensor([[5.0, 0.0]]))
        tensor([[ 0.7071, -0.7071]])

    Paper: GR-CLIP, arXiv 2507.19054.
    """

    means_: dict[str, Tensor]

    def __init__(self, means: Mapping[str, Tensor] | None = None) -> None:
        if means is not None:
            self._set("RoleCentering", means)

    def _set(self, function: str, means: Mapping[str, Tensor]) -> None:
        if not isinstance(means, Mapping) or not means or not all(isinstance(r, str) for r in means):
            remedy = 'pass for example {"query_text": .., "document_image": ..}'
            raise ValueError(_errors.message(function, "means", "map names of roles to rows", means, remedy))
        found, width = {}, None
        for role, mean in means.items():
            where = f"means[{role!r}]"
            mean = _arrays.tensor(function, where, mean)
            _errors.check_float_tensor(function, where, mean)
            if mean.dim() != 1 or mean.numel() == 0 or (width or len(mean)) != len(mean):
                contract = f"be [{'D' if width is None else width}]"
                remedy = "pass the mean of the role's unit rows, as wide as the others"
                raise ValueError(_errors.message(function, where, contract, mean, remedy))
            _errors.check_finite(function, where, mean, "drop the rows with NaN or inf")
            width, found[role] = len(mean), mean.detach().to("cpu", torch.float64, copy=True)
        self.means_ = found

    def fit(self, features: Mapping[str, Tensor]) -> Self:
        """Takes the mean of each role's unit rows.

        Args:
            features: {role: [N, D]} of any length and float dtype, N ≥ 1 of each role; from data that is not
                judged.

        Raises:
            TypeError, ValueError: as the constructor, and rows that are not 2-D.
        """
        where = "RoleCentering.fit"
        if not isinstance(features, Mapping):
            remedy = 'pass for example {"query_text": .., "document_image": ..}'
            raise TypeError(_errors.message(where, "features", "map roles to rows", features, remedy))
        means = {}
        for role, rows in features.items():
            rows = _arrays.tensor(where, f"features[{role!r}]", rows)
            _errors.check_float_tensor(where, f"features[{role!r}]", rows)
            if rows.dim() != 2 or rows.numel() == 0:
                remedy = "pass one row per item"
                name = f"features[{role!r}]"
                raise ValueError(_errors.message(where, name, "be 2-D and not empty", rows, remedy))
            _errors.check_values(where, f"features[{role!r}]", rows)
            means[role] = normalize(rows.detach().to("cpu", torch.float64), dim=1).mean(dim=0)
        self._set(where, means)
        return self

    def _mean(self, function: str, role: str) -> Tensor:
        known = getattr(self, "means_", None)
        if known is None:
            raise ValueError(f"{function}: must have means first; call fit(features) or pass means")
        if not isinstance(role, str) or role not in known:
            remedy = "fit it too"
            contract = f"be one of {', '.join(known)}"
            raise ValueError(_errors.message(function, "role", contract, repr(role), remedy))
        return known[role]

    def map_for(self, role: str) -> LinearMap:
        """``norm(norm(x) − μ)`` of one role, [.., D] to [.., D], as a LinearMap for any float dtype.

        Args:
            role: a name that was fitted.

        Raises:
            ValueError: another role, or nothing fitted.
        """
        mean = self._mean("RoleCentering.map_for", role)
        unit = LinearMap(torch.eye(len(mean), dtype=torch.float64, device=mean.device))
        return LinearMap.compose(unit, LinearMap.centering(mean))

    def fuse(
        self,
        text: Any,  # [.., D]
        image: Any,  # [.., D]
        weight: float = 0.5,
        *,
        roles: tuple[str, str] = ("document_text", "document_image"),
    ) -> Any:  # [.., D]
        """Documents of a text and an image: their mix loses the same mix of means.

        Args:
            text, image: [.., D] features of the same documents, any length, any float dtype.
            weight: of the text, 0..1; 0 and 1 are the centred image and text.
            roles: whose means are subtracted.

        Returns:
            [.., D] unit rows in the dtype of the text, an array where it is one.

        Raises:
            TypeError, ValueError: no float tensors, shapes, width or device that do not fit, a weight out of
                range, a role that was not fitted.
        """
        where = "RoleCentering.fuse"
        if _arrays.is_array(text):
            rows = _arrays.tensor(where, "text", text, getattr(image, "device", None))
            return _arrays.array(self.fuse(rows, image, weight, roles=roles))
        image = _arrays.tensor(where, "image", image, getattr(text, "device", None))
        if isinstance(roles, str) or not isinstance(roles, Sequence) or len(roles) != 2:
            remedy = "pass the role of the texts and that of the images"
            raise ValueError(_errors.message(where, "roles", "be two names of roles", repr(roles), remedy))
        means = [self._mean(where, role) for role in roles]
        for name, rows in (("text", text), ("image", image)):
            _errors.check_float_tensor(where, name, rows)
            _errors.check_last_dim(where, name, rows, len(means[0]), "the means are for that width")
        if text.shape != image.shape:
            contract, remedy = f"be {list(text.shape)}", "pass both parts of the same documents"
            raise ValueError(_errors.message(where, "image", contract, image, remedy))
        _errors.check_same_device(where, "image", image, text.device)
        if not _numbers.is_real(weight) or not 0 <= weight <= 1:
            raise ValueError(_errors.message(where, "weight", "lie in 0..1", weight, "0.5 is the mean"))
        dtype = compute_dtype(text.dtype, image.dtype)
        parts = [
            normalize(rows.to(dtype), dim=-1) - mean.to(rows.device, dtype)
            for rows, mean in zip((text, image), means, strict=True)
        ]
        return normalize(weight * parts[0] + (1 - weight) * parts[1], dim=-1).to(text.dtype)

    def __repr__(self) -> str:
        means = getattr(self, "means_", {})
        width = len(next(iter(means.values()))) if means else 0
        return f"RoleCentering({', '.join(means)}; {width})" if means else "RoleCentering()"

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file with every role's mean in float64 to `path`, atomically."""
        if not hasattr(self, "means_"):
            raise ValueError("RoleCentering.save: must have means first; call fit(features) or pass means")
        tensors = {f"mean_{i}": mean for i, mean in enumerate(self.means_.values())}
        _files.save_tensors(path, tensors, {"format": FORMAT, "roles": json.dumps(list(self.means_))})

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        where = "RoleCentering.load"
        _, meta = _schema.load(where, path, FORMAT, {}, ("roles",))
        with _schema.restoring(where, path):
            roles = json.loads(meta["roles"])
            known = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
            _schema.need(where, path, known and len(set(roles)) == len(roles) > 0, "distinct roles", roles)
            schema = {f"mean_{i}": _schema.Field(("D",)) for i in range(len(roles))}
            held = sorted(_schema.names(path))
            _schema.need(where, path, held == sorted(schema), f"the tensors {sorted(schema)}", held)
        tensors, _ = _schema.load(where, path, FORMAT, schema)
        with _schema.restoring(where, path):
            return cls({role: tensors[f"mean_{i}"] for i, role in enumerate(roles)})
