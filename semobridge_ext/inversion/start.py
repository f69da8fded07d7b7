"""Start values that are predicted from what an inversion aims at, and what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _digest, _errors
from semobridge_ext._engines.tower_descent.choice import fingerprint
from semobridge_ext._engines.tower_descent.model import OwnTower
from semobridge_ext._engines.tower_descent.spec import Tower
from semobridge_ext._ops.project_normalize.prepared import PreparedProjection
from semobridge_ext.inversion.targets import unit_targets
from semobridge_ext.runtime.held import Held

_KEPT = 8  # digests of the towers seen last
_digests: dict[tuple[Any, ...], str] = {}

Identity = dict[str, Any]  # JSON, as a file keeps it
Layer = tuple[Tensor, Tensor]  # [D, H], [H, R·T]


def _plain(part: Any) -> Iterator[Any]:
    """What a tower's specification holds beside its tensors."""
    if isinstance(part, tuple):
        for one in part:
            yield from _plain(one)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _plain(getattr(part, field.name))
    elif not isinstance(part, Tensor):
        yield part


def _tower_digest(tower: Tower | OwnTower) -> str:
    """Of everything in it; read again only where a weight has changed, since that takes longer than steps."""
    key = fingerprint(tower), *_plain(tower)
    if key not in _digests:
        while len(_digests) >= _KEPT:
            _digests.pop(next(iter(_digests)), None)
        _digests[key] = _digest.digest(tower)
    return _digests[key]


def identity_of(function: str, description: dict[str, Any]) -> Identity:
    """What start values belong to: function, template, number of vectors, the tower to its last weight."""
    tower, rows = description["tower"], description["rows"]
    return {
        "function": function,
        "template": description.get("template", ""),
        "vectors": description["vectors"],
        "tower": tower.name,
        "tower_digest": _digest.marked(_tower_digest(tower)),
        "rows_digest": _digest.marked(_digest.digest(rows)),
        "compute": str(tower.compute).removeprefix("torch."),
    }


_IDENTITY = {
    "function": str, "template": str, "vectors": int, "tower": str, "tower_digest": str, "rows_digest": str,
    "compute": str,
}  # fmt: skip


def _check_parts(matrix: Any, offset: Any, identity: Any, layer: Layer | None) -> None:
    name, remedy = "InversionMap", "make maps with InversionMap.fit, from_inversion or load"
    parts = {"matrix": matrix, "offset": offset}
    if layer is not None:
        parts |= {"inner": layer[0], "outer": layer[1]}
    for which, value in parts.items():
        _errors.check_float_tensor(name, which, value)
        if value.dim() != 2 or value.numel() == 0:
            raise ValueError(_errors.message(name, which, "be 2-D and not empty", value, remedy))
        _errors.check_finite(name, which, value, "check what it was computed from")
    if matrix.shape[1] != offset.numel():
        contract = f"be [D, {offset.numel()}], as wide as offset"
        raise ValueError(_errors.message(name, "matrix", contract, matrix, remedy))
    if layer is not None:
        inner, outer = layer
        if len(inner) != len(matrix):
            contract = f"be [{len(matrix)}, H], as high as matrix"
            raise ValueError(_errors.message(name, "inner", contract, inner, remedy))
        if tuple(outer.shape) != (inner.shape[1], matrix.shape[1]):
            contract = f"be [{inner.shape[1]}, {matrix.shape[1]}], from inner to matrix"
            raise ValueError(_errors.message(name, "outer", contract, outer, remedy))
    kinds = {k: type(v) for k, v in identity.items()} if isinstance(identity, dict) else None
    if kinds != _IDENTITY or identity["compute"] not in ("float32", "float64"):
        contract = f"hold {', '.join(_IDENTITY)}"
        raise ValueError(_errors.message(name, "identity", contract, identity, remedy))
    if identity["vectors"] != len(offset):
        contract, got = f"be [{identity['vectors']}, T], a row for each vector", offset
        raise ValueError(_errors.message(name, "offset", contract, got, remedy))


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64, copy=True).contiguous()


class Start:
    """``norm(f)·matrix + offset``, a hidden layer's part added, reshaped to [B, R, T]; the class under
    :class:`InversionMap`.
    """

    matrix: Tensor  # [D, R·T] float64
    offset: Tensor  # [R, T] float64
    inner: Tensor | None  # [D, H] float64
    outer: Tensor | None  # [H, R·T] float64
    identity: Identity

    def _set(self, matrix: Tensor, offset: Tensor, identity: Identity, layer: Layer | None) -> None:
        _check_parts(matrix, offset, identity, layer)
        with torch.inference_mode(False):  # tensors for any later use, wherever the map is made
            self.matrix, self.offset = _kept(matrix), _kept(offset)
            self.inner, self.outer = (None, None) if layer is None else (_kept(layer[0]), _kept(layer[1]))
        self.identity = dict(identity)
        self._prepared: tuple[Held, tuple[PreparedProjection, ...]] | None = None

    def _parts(self) -> dict[str, Tensor]:
        """What a file keeps."""
        parts = {"matrix": self.matrix, "offset": self.offset, "inner": self.inner, "outer": self.outer}
        return {name: value for name, value in parts.items() if value is not None}

    def _projections(self) -> tuple[PreparedProjection, ...]:
        parts = self._parts()
        if self._prepared is None or not self._prepared[0].same(*parts.values()):
            prepared = [PreparedProjection(self.matrix, self.offset.reshape(-1), normalize=False)]
            prepared += [
                PreparedProjection(parts[n], normalize=False) for n in ("inner", "outer") if n in parts
            ]
            self._prepared = Held(*parts.values()), tuple(prepared)
        return self._prepared[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies carry the matrices; native operands are packed anew where they arrive."""
        return {**vars(self), "_prepared": None}

    @property
    def compute(self) -> torch.dtype:
        """Of the tokens: float32, float64 for a float64 model."""
        return getattr(torch, self.identity["compute"])

    @property
    def _mark(self) -> str:
        """Of the map and what it belongs to, as a stamp keeps it."""
        held = {**self._parts(), "identity": self.identity}
        return _digest.marked(_digest.digest(held))

    def _check(self, function: str, now: Identity) -> None:
        """Refuses another tower or template."""
        if changed := _digest.changes(self.identity, now):
            raise ValueError(
                f"{function}: init must be a map of this model and template, got one with other {changed}; "
                "fit one with InversionMap.fit(model, features)"
            )

    def _tokens(
        self,
        rows: Tensor,  # [B, D] unit rows
    ) -> Tensor:  # [B, R, T]
        """The predicted tokens, computed on the CPU so that they are the same for every device."""
        rows = rows.to("cpu", self.compute)
        linear, *layer = self._projections()
        found = linear(rows)
        if layer:
            found = found + layer[1](layer[0](rows).relu_())
        return found.reshape(len(rows), *self.offset.shape)

    def __call__(
        self,
        features: _arrays.Rows,  # [B, D]
    ) -> _arrays.Rows:  # [B, R, T]
        """The predicted tokens [B, R, T] of features [B, D], on their device, in ``compute``.

        An array comes back for an array.
        """
        rows = unit_targets(type(self).__name__, "features", features, len(self.matrix), self.compute)
        found: Any = self._tokens(rows).to(rows.device)
        return _arrays.array(found) if _arrays.is_array(features) else found
