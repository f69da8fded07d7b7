"""One algebra for the maps of this family: a matrix, an offset, then the norm.

    y = norm(x·M + b)          compose: y = norm(norm(x·M₁ + b₁)·M₂ + b₂) ..

The closed-form bridge, IsoCLIP's projectors, PCA on texts, centring and whitening are all of this form.
A norm in the middle cancels where everything behind it up to the next norm has no offset, since a
positive factor passes through a matrix and a norm takes it out; and steps without a norm between them
multiply out. `fold` does both, in float64: what is left is usually one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _files, _numbers, _schema
from semobridge_ext._ops.project_normalize.prepared import PreparedProjection
from semobridge_ext.linear_maps import export
from semobridge_ext.linear_maps.principal import principal_directions
from semobridge_ext.linear_maps.procrustes import procrustes
from semobridge_ext.linear_maps.steps import FORMAT, Step, folded, layout_of, schema_of, steps_of, tensors_of
from semobridge_ext.runtime.held import Held
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class LinearMap:
    """A matrix, an offset, then the norm: ``y = norm(x·matrix + offset)``, or a chain of these.

    Args:
        matrix: [K, M], a tensor or array of any float dtype; copied to float64.
        offset: [M] or None; added before the norm.
        normalize: False leaves the norm out.

    Attributes:
        steps: the chain, a tuple of ``(matrix, offset, normalize)``; one step unless composed.
        in_features, out_features: K and M.

    Raises:
        TypeError: not float tensors. ValueError: not 2-D, shapes that do not fit, or not finite.

    Numerics: folded in float64; applied in float32 (float64 for float64
        rows), each row independent of its batch. Differentiable in the rows. Immutable.

    Memory: the matrices in float64, and a packed copy for each dtype in use.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> shift = sb.LinearMap.centering(torch.tensor([1.0, 0.0]))
        >>> turn = sb.LinearMap(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> both = sb.LinearMap.compose(shift, turn).fold()
        >>> len(both.steps), both(torch.tensor([[4.0, 4.0]]))
        (1, tensor([[0.8000, 0.6000]]))
    """

    steps: tuple[Step, ...]
    _prepared: dict[int, tuple[Held, PreparedProjection]]

    def __init__(
        self,
        matrix: Any,  # [K, M]
        offset: Any = None,  # [M]
        *,
        normalize: bool = True,
    ) -> None:
        matrix = _arrays.tensor("LinearMap", "matrix", matrix)
        m = _errors.check_float_tensor("LinearMap", "matrix", matrix).detach()
        if m.dim() != 2 or m.numel() == 0:
            remedy = "pass a [K, M] matrix, torch.eye(K) for none"
            raise ValueError(_errors.message("LinearMap", "matrix", "be 2-D and not empty", m, remedy))
        _errors.check_finite("LinearMap", "matrix", m, "check what it was computed from")
        b = None
        if offset is not None:
            offset = _arrays.tensor("LinearMap", "offset", offset)
            b = _errors.check_float_tensor("LinearMap", "offset", offset).detach()
            if b.shape != (m.shape[1],):
                remedy = "pass one value per column of the matrix"
                raise ValueError(_errors.message("LinearMap", "offset", f"be [{m.shape[1]}]", b, remedy))
            _errors.check_finite("LinearMap", "offset", b, "check what it was computed from")
            b = b if bool((b != 0).any()) else None
        with torch.inference_mode(False):  # tensors for any later use, wherever the map is made
            m = m.to("cpu", torch.float64, copy=True).contiguous()
            b = None if b is None else b.to("cpu", torch.float64, copy=True)
        self._set((Step(m, b, bool(normalize)),))

    def _set(self, steps: Sequence[Step]) -> Self:
        self.steps, self._prepared = tuple(steps), {}
        return self

    @classmethod
    def _of(cls, steps: Sequence[Step]) -> Self:
        return cls.__new__(cls)._set(steps)

    # -- the family ----------------------------------------------------------------------------------

    @classmethod
    def from_bridge(cls, bridge: Any) -> LinearMap:
        """The normalised bridge as one D×D matrix, ``norm(f W⁺ W)``, whatever its inverse is now."""
        if not hasattr(bridge, "_fold"):
            name, remedy = "LinearMap.from_bridge", "make one with sb.Bridge(text_projection)"
            got = _errors.describe(bridge)
            raise TypeError(_errors.message(name, "bridge", "be a Bridge", got, remedy))
        return cls(bridge._fold().projector)

    @classmethod
    def centering(cls, mean: Any) -> LinearMap:  # mean [D]
        """``norm(x − mean)``, with `mean` [D] of any float dtype."""
        mean = _arrays.tensor("LinearMap.centering", "mean", mean)
        _errors.check_float_tensor("LinearMap.centering", "mean", mean)
        if mean.dim() != 1 or mean.numel() == 0:
            remedy = "pass the mean row, features.mean(dim=0)"
            raise ValueError(_errors.message("LinearMap.centering", "mean", "be [D]", mean, remedy))
        return cls(torch.eye(len(mean), dtype=torch.float64, device=mean.device), -mean)

    @classmethod
    def pca(cls, rows: Any, k: int, *, center: bool = False) -> LinearMap:
        """``norm(x V_k)``, V_k the k first principal directions of the rows.

        Args:
            rows: [N, D] of any float dtype, what the directions are taken from: for PCA on texts the unit
                text features.
            k: 1..min(N − 1, D); its inner products are those of the D-wide ``x V_k V_kᵀ``.
            center: True also subtracts the rows' mean from x: ``norm((x − μ) V_k)``. Sensible where x
                is of the rows' own modality; another one lies around another mean.
        """
        mean, _, vectors = principal_directions("LinearMap.pca", rows)
        most = min(len(rows) - 1, rows.shape[1])
        if not _numbers.is_whole(k) or not 1 <= k <= most:
            contract, remedy = f"be an int in 1..{most}", "N rows span N − 1 directions about their mean"
            raise ValueError(_errors.message("LinearMap.pca", "k", contract, k, remedy))
        v = vectors[:, :k]
        return cls(v, -(mean @ v) if center else None)

    @classmethod
    def whitening(cls, rows: Any, *, k: int | None = None, shrinkage: float = 1e-3) -> LinearMap:
        """``norm((x − μ) V_k (Λ_k + ρ·tr(Λ)/D)^−½)``: equal variance along every direction kept.

        Args:
            rows: [N, D] of any float dtype, what mean and covariance are taken from.
            k: directions kept, the largest first; None: all D.
            shrinkage: ρ ≥ 0, against directions of almost no variance.
        """
        mean, values, vectors = principal_directions("LinearMap.whitening", rows)
        width = rows.shape[1]
        if k is not None and (not _numbers.is_whole(k) or not 1 <= k <= width):
            remedy = "None keeps all"
            raise ValueError(_errors.message("LinearMap.whitening", "k", f"lie in 1..{width}", k, remedy))
        remedy = "1e-3 is a mild value"
        _numbers.check_number("LinearMap.whitening", "shrinkage", shrinkage, least=0, remedy=remedy)
        loaded = values[:k] + shrinkage * float(values.sum()) / width
        if bool((loaded <= 1e-14 * values[0]).any()):
            got = f"{int((loaded <= 1e-14 * values[0]).sum())} directions without any"
            remedy = "raise shrinkage, keep fewer with k, or pass more rows"
            raise ValueError(
                _errors.message("LinearMap.whitening", "rows", "have variance everywhere", got, remedy)
            )
        m = vectors[:, :k] / loaded.sqrt()
        return cls(m, -(mean @ m))

    @classmethod
    def procrustes(cls, X: Any, Y: Any, *, center: bool = False) -> LinearMap:
        """``norm(x Q)``, Q the orthogonal map that brings X closest to Y: from one model to another.

        Args:
            X: [N, K] features of N items, any float dtype; unit rows where cosines are compared.
            Y: [N, M] the other model's features of the same items, row by row. Where K > M the columns of Q
                are orthonormal and its map loses K − M directions; where K < M the rows are, and inner
                products stay what they were. Q has the largest Σ ⟨x Q, y⟩ of its kind.
            center: True subtracts both means: ``norm((x − μ_X) Q + μ_Y)``.
        """
        return cls(*procrustes("LinearMap.procrustes", X, Y, center))

    # -- the algebra ---------------------------------------------------------------------------------

    @staticmethod
    def compose(*maps: LinearMap) -> LinearMap:
        """The maps one after another, the first applied first; exact, nothing folded yet."""
        if not maps:
            raise ValueError("LinearMap.compose: maps must hold at least one map, got none; pass some")
        for map_ in maps:
            if not isinstance(map_, LinearMap):
                remedy = "use LinearMap.from_bridge(bridge) or IsoCLIP.map()"
                raise TypeError(_errors.message("LinearMap.compose", "maps", "be LinearMaps", map_, remedy))
        for before, after in pairwise(maps):
            if before.out_features != after.in_features:
                contract = f"fit: a map to width {before.out_features} is followed"
                got, remedy = f"one from width {after.in_features}", "compose maps of matching widths"
                raise ValueError(_errors.message("LinearMap.compose", "maps", contract, got, remedy))
        return LinearMap._of([step for map_ in maps for step in map_.steps])

    def fold(self) -> LinearMap:
        """The same map in the fewest steps: one, unless an offset stands behind a norm."""
        done = folded(self.steps)
        return self if len(done) == len(self.steps) else LinearMap._of(done)

    def with_norm(self, normalize: bool) -> LinearMap:
        """The same map with the last norm (`normalize` True) or without it."""
        return LinearMap._of([*self.steps[:-1], self.steps[-1]._replace(normalize=bool(normalize))])

    @property
    def in_features(self) -> int:
        return self.steps[0].matrix.shape[0]

    @property
    def out_features(self) -> int:
        return self.steps[-1].matrix.shape[1]

    def _only(self, what: str) -> Step:
        folded = self.fold()
        if len(folded.steps) > 1:
            raise ValueError(
                f"LinearMap.{what}: the map must fold into one matrix, got {len(folded.steps)} steps: an "
                "offset stands behind a norm, which does not multiply out; read .fold().steps"
            )
        return folded.steps[0]

    @property
    def matrix(self) -> Tensor:
        """[K, M] float64: the one matrix that the map folds into (ValueError if it does not)."""
        return self._only("matrix").matrix

    @property
    def offset(self) -> Tensor:
        """[M] float64: the offset beside it."""
        step = self._only("offset")
        return step.matrix.new_zeros(step.matrix.shape[1]) if step.offset is None else step.offset

    # -- application ---------------------------------------------------------------------------------

    def _projection(self, index: int) -> PreparedProjection:
        step = self.steps[index]
        tensors = (step.matrix,) if step.offset is None else (step.matrix, step.offset)
        kept = self._prepared.get(index)
        if kept is None or not kept[0].same(*tensors):  # `steps` hands the matrices out
            held = Held(*tensors)
            prepared = PreparedProjection(step.matrix, step.offset, normalize=step.normalize)
            kept = self._prepared[index] = held, prepared
        return kept[1]

    def __call__(self, x: _arrays.Rows) -> _arrays.Rows:  # [.., K] -> [.., M]
        """Maps rows [.., K] to [.., M], in the dtype of x; between steps in float32 or float64.

        An array comes back for an array.
        """
        if not isinstance(x, Tensor) and _arrays.is_array(x):
            rows = _arrays.tensor("LinearMap", "x", x)
            return _arrays.array(self._mapped(rows))
        return self._mapped(x)  # type: ignore[return-value]

    def _mapped(self, x: Any) -> Tensor:
        _errors.check_float_tensor("LinearMap", "x", x)
        _errors.check_last_dim("LinearMap", "x", x, self.in_features, "this map is for that width")
        dtype = x.dtype
        if len(self.steps) > 1:
            x = x.to(compute_dtype(dtype))
        for index in range(len(self.steps)):
            x = self._projection(index)(x)
        return x.to(dtype)

    def __repr__(self) -> str:
        shown = [
            f"{s.matrix.shape[0]}→{s.matrix.shape[1]}{' + offset' if s.offset is not None else ''}"
            f"{', norm' if s.normalize else ''}"
            for s in self.steps
        ]
        return f"LinearMap({'; '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """Copies carry the matrices; native operands are packed anew where they arrive."""
        return {"steps": self.steps, "_prepared": {}}

    # -- files and other programs --------------------------------------------------------------------

    @classmethod
    def _checked(cls, steps: Sequence[Step]) -> Self:
        """From matrices of elsewhere."""
        made = [LinearMap(s.matrix, s.offset, normalize=s.normalize) for s in steps]
        return cls._of(LinearMap.compose(*made).steps)

    @classmethod
    def _restored(cls, function: str, path: Any, layout: str, tensors: dict[str, Tensor]) -> Self:
        with _schema.restoring(function, path):
            return cls._checked(steps_of(layout, tensors))

    def save(self, path: Any) -> None:
        """Writes a safetensors file in float64 to `path`, atomically: ``load`` gives the same map."""
        _files.save_tensors(path, tensors_of(self.steps), {"format": FORMAT, "steps": layout_of(self.steps)})

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        where = "LinearMap.load"
        _, meta = _schema.load(where, path, FORMAT, {}, ("steps",))
        with _schema.restoring(where, path):
            schema = schema_of(meta["steps"])
            held = sorted(_schema.names(path))
            _schema.need(where, path, held == sorted(schema), f"the tensors {sorted(schema)}", held)
        tensors, _ = _schema.load(where, path, FORMAT, schema)
        return cls._restored(where, path, meta["steps"], tensors)

    def to_onnx(self, path: Any, *, dtype: torch.dtype = torch.float32) -> None:
        """Writes the folded map as an ONNX graph ``x [rows, K] -> y [rows, M]``, atomically.

        Args:
            path: the file.
            dtype: of the graph, float32 or float64. Rows of zeros stay zero.
        """
        export.to_onnx(folded(self.steps), path, dtype)

    @classmethod
    def from_onnx(cls, path: Any) -> LinearMap:
        """Reads what ``to_onnx`` wrote to `path`; another graph is refused (ValueError)."""
        return cls._restored("LinearMap.from_onnx", path, *export.from_onnx(path))

    def to_faiss(self) -> list[Any]:
        """The folded map as FAISS transforms in order: LinearTransform, NormalizationTransform, ..

        FAISS applies them in float32. Before an index, last first:
        ``for t in reversed(map.to_faiss()): index = faiss.IndexPreTransform(t, index)``.
        """
        return export.to_faiss(folded(self.steps))

    @classmethod
    def from_faiss(cls, transforms: Sequence[Any]) -> LinearMap:
        """A map from FAISS linear transforms (also PCA, OPQ, random rotations) and L2 normalisations."""
        return cls._checked(export.from_faiss(transforms))
