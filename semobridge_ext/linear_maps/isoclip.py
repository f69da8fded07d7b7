"""IsoCLIP: features compared within one modality, without the directions that serve the other one.

    Ψ = A Wᵀ = U Σ Hᵀ          image: norm(x U_k U_kᵀ A)          text: norm(x H_k H_kᵀ W)

on features x before the projections A [V, D] and W [T, D]; U_k, H_k keep the singular vectors from k_top
on, without the k_bottom last of r = min(V, T, D). The singular values themselves are not used. Projections
with a bias are the matrices [A; a] and [W; b] of rows (x, 1).

Exact compression: with U_kᵀ A Aᵀ U_k = C Cᵀ the k-wide rows x U_k C have the inner products of the D-wide
ones, so a gallery shrinks to k columns and ranks the same.

A text and an image projected so lie in two unrelated subspaces: the operator that related them is what
was cut. Comparing across modalities is refused; use the model's own features for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _inputs
from semobridge_ext._ops.topk.op import TopK, topk
from semobridge_ext.clip.affine import Affine
from semobridge_ext.linear_maps.isoclip_cuts import CUTS, SIDES, Cuts
from semobridge_ext.linear_maps.isoclip_file import load_isoclip, save_isoclip
from semobridge_ext.linear_maps.linear_map import LinearMap
from semobridge_ext.linear_maps.spectrum import UNPUBLISHED, factor_of, published_cuts, weights_name

if TYPE_CHECKING:
    from typing_extensions import Self


class IsoCLIP(Cuts):
    """Intra-modal features of a CLIP model: its projections without the inter-modal directions.

    Args:
        image_projection: [V, D] the matrix A: an image feature is ``x·A`` with x before the projection.
        text_projection: [T, D] the matrix W.
        image_bias, text_bias: [D] of projections with a bias: features are ``x·A + a``, and the projectors
            act on rows with a one appended, ``(x, 1)·[A; a]``. None: none; zeros are none.
        k_top, k_bottom: singular directions of ``A·Wᵀ`` cut at the top and at the bottom. None: not
            chosen yet; ``fit`` or ``tune`` choose them on labelled data.
        text_k_top, text_k_bottom: of the text side; None: as for images.
        side: "image" or "text", what ``transform``, ``fit`` and ``topk`` are about.
        compress: True gives k-wide features with the inner products of the D-wide ones.
        normalize: False leaves the norm out, for means of un-normalised features.

    Raises:
        TypeError, ValueError: at first use, as scikit-learn has it: matrices that do not fit, cuts that
            leave no direction, features of another width.

    Numerics: projectors and factors in float64, application in float32 (float64 for float64 rows) by the
        fused op. Differentiable in the features. Compressed and D-wide inner products agree to rounding.
        D-wide maps come from a Gram matrix with one correction, compressed ones and ``tune`` from an SVD.

    Memory: the two matrices, their product and its vectors in float64, and one map per side and form in use.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> torch.manual_seed(0).seed() and None
        >>> iso = sb.IsoCLIP(torch.randn(12, 8), torch.randn(10, 8), k_top=2, k_bottom=1)
        >>> x = torch.randn(5, 12)  # image features before the projection
        >>> wide, small = iso.image(x), iso.image(x, compress=True)
        >>> wide.shape, small.shape, torch.allclose(wide @ wide.T, small @ small.T, atol=1e-5)
        (torch.Size([5, 8]), torch.Size([5, 5]), True)

    Paper: IsoCLIP, arXiv 2603.19862.
    """

    def __init__(
        self,
        image_projection: Any = None,  # [V, D]
        text_projection: Any = None,  # [T, D]
        *,
        image_bias: Any = None,  # [D]
        text_bias: Any = None,  # [D]
        k_top: Any = None,
        k_bottom: Any = None,
        text_k_top: Any = None,
        text_k_bottom: Any = None,
        side: str = "image",
        compress: bool = False,
        normalize: bool = True,
    ) -> None:
        self.image_projection, self.text_projection = image_projection, text_projection
        self.image_bias, self.text_bias = image_bias, text_bias
        self.k_top, self.k_bottom = k_top, k_bottom
        self.text_k_top, self.text_k_bottom = text_k_top, text_k_bottom
        self.side, self.compress, self.normalize = side, compress, normalize

    # -- construction and files ----------------------------------------------------------------------

    @classmethod
    def _made(
        cls,
        image: Affine,
        text: Affine,
        published: str | None,
        options: dict[str, Any],
        weights: str | None = None,
    ) -> IsoCLIP:
        if published is not None:
            given = [name for name in CUTS if options.get(name) is not None]
            if given:
                remedy = "pass either, not both"
                contract = f"stand alone, without {', '.join(given)}"
                raise ValueError(_errors.message("IsoCLIP", "published", contract, published, remedy))
            options = {**options, **dict(zip(CUTS, published_cuts(published, weights), strict=True))}
        biases: dict[str, Any] = {
            f"{side}_bias": given.bias.clone()
            for side, given in zip(SIDES, (image, text), strict=True)
            if given.bias is not None
        }
        iso = cls(image.matrix.clone(), text.matrix.clone(), **biases, **options)
        iso._spectrum()
        for side in SIDES:
            if iso._is_chosen(side) and UNPUBLISHED not in iso._given(side):
                iso._cut(side)
        return iso

    @classmethod
    def from_clip(
        cls, model: Any, *, published: str | None = None, weights: str | None = None, **options: Any
    ) -> IsoCLIP:
        """IsoCLIP of a CLIP model of a family that ``semobridge_ext.clip`` lists.

        Args:
            model: with a linear projection at the end of both towers, with or without a bias. SigLIP's image
                tower ends in attention pooling, without a matrix to take apart: refused.
            published: the model whose published cuts to use, such as "ViT-B/32" (see ``PUBLISHED``). They
                belong to the weights they were chosen on: "OpenCLIP ViT-B/32" to datacomp_xl_s13b_b90k, the
                models without a maker's name to OpenAI's.
            weights: a name of the model's weights, such as open_clip's tag, that is compared with them; None:
                the name that a Hugging Face model carries; the cuts of others are taken on trust.
            options: k_top, k_bottom and the other keywords of the class.

        Raises:
            TypeError: no linear projection; the message says what was found. ValueError: cuts that
                leave no direction, or that were published for other weights.
        """
        from semobridge_ext.clip.families import adapter_of
        from semobridge_ext.clip.projections import affine_image, affine_text

        name = "IsoCLIP.from_clip"
        adapter = adapter_of(name, model)
        if weights is None:
            weights = weights_name(getattr(getattr(adapter.model, "config", None), "_name_or_path", None))
        image, text = affine_image(name, adapter), affine_text(name, adapter)
        return cls._made(image, text, published, options, weights)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: Any,
        *,
        published: str | None = None,
        revision: str = "main",
        cache_dir: Any = None,
        refresh: bool = False,
        timeout: float = 300.0,
        **options: Any,
    ) -> IsoCLIP:
        """IsoCLIP of a checkpoint, of which only the two projections are read.

        Args:
            name_or_path: a safetensors file, a folder with one, a URL, a Hugging Face name or open_clip's
                name, as in ``Bridge.from_pretrained``.
            published: as in ``from_clip``; compared with a name of the hub or of open_clip, not with a path.
            revision, cache_dir, refresh, timeout: as in ``Bridge.from_pretrained``.
            options: k_top, k_bottom and the other keywords of the class.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: the file cannot be had, in time or at all.
                ValueError: no such name, answers that do not fit what was asked, no linear projections
                in it, or cuts that leave no direction or were published for other weights.
        """
        from semobridge_ext.clip.checkpoints import read_projections

        found = read_projections(
            "IsoCLIP.from_pretrained", name_or_path, SIDES,
            revision=revision, cache_dir=cache_dir, refresh=refresh, timeout=timeout,
        )  # fmt: skip
        return cls._made(found["image"], found["text"], published, options, weights_name(name_or_path))

    def save(self, path: Any) -> None:
        """Writes a safetensors file (both matrices, cuts, options) to `path`, atomically."""
        save_isoclip(path, self)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        return load_isoclip("IsoCLIP.load", path, cls)

    def map(
        self, side: str | None = None, *, compress: bool | None = None, normalize: bool | None = None
    ) -> LinearMap:
        """The side's projector as a LinearMap, ``U_k U_kᵀ A`` or, compressed, ``U_k C``.

        Args:
            side: "image" or "text"; None: the class's side.
            compress, normalize: override the options of the class.
        """
        side = self._side("IsoCLIP.map", side)
        compress = bool(self.compress if compress is None else compress)
        normalize = bool(self.normalize if normalize is None else normalize)
        spectrum, (top, bottom) = self._spectrum(), self._cut(side)
        maps: dict[tuple, LinearMap] = self.__dict__["_kept"][2]
        key = (side, top, bottom, compress, normalize)
        if key not in maps:
            if compress:
                basis = spectrum.basis(side, top, bottom)
                found = basis @ factor_of(basis.T @ spectrum.projections[side])
            else:
                found = spectrum.projector(side, top, bottom)
            matrix, offset = spectrum.parts(side, found)
            maps[key] = LinearMap(matrix, offset, normalize=normalize)
        return maps[key]

    def native_map(self, side: str | None = None, *, normalize: bool = True) -> LinearMap:
        """The model's own projection of a side, ``norm(x A)`` or ``norm(x W)``; `normalize`: the norm."""
        side = self._side("IsoCLIP.native_map", side)
        spectrum = self._spectrum()
        return LinearMap(*spectrum.parts(side, spectrum.projections[side]), normalize=normalize)

    # -- application ---------------------------------------------------------------------------------

    def _features(self, function: str, side: str, x: Any, compress: bool | None) -> Any:
        if _arrays.is_array(x):
            rows = _arrays.tensor(function, "x", x)
            return _arrays.array(self._features(function, side, rows, compress))
        spectrum = self._spectrum()
        _errors.check_float_tensor(function, "x", x)
        width, joint = spectrum.width(side), spectrum.projections[side].shape[1]
        if x.dim() == 0 or x.shape[-1] != width:
            other = "text" if side == "image" else "image"
            remedy = f"take them with clip.encode_{side}(model, .., project=False)"
            if x.dim() and x.shape[-1] == spectrum.width(other):
                remedy = f"these look like {other} features, whose projector is .{other}(x)"
            elif x.dim() and x.shape[-1] == joint:
                remedy = f"these look projected already; {remedy}"
            contract = f"be {side} features before the projection, width {width}"
            raise ValueError(_errors.message(function, "x", contract, x, remedy))
        return self.map(side, compress=compress)(x)

    def image(self, x: _arrays.Rows, *, compress: bool | None = None) -> _arrays.Rows:  # [.., V] -> [.., D]
        """Image features for comparison with images; x as ``clip.encode_image(.., project=False)`` has it.

        Args:
            x: [.., V] image features before the projection, any length, any float dtype.
            compress: overrides the option of the class.

        Returns:
            [.., D] (compressed [.., k]) unit rows in the dtype of x, an array for an array.
        """
        return self._features("IsoCLIP.image", "image", x, compress)

    def text(self, x: _arrays.Rows, *, compress: bool | None = None) -> _arrays.Rows:  # [.., T] -> [.., D]
        """Text features for comparison with texts; x as ``clip.encode_text(.., project=False)`` has it.

        Args:
            x: [.., T] text features before the projection, any length, any float dtype.
            compress: overrides the option of the class.

        Returns:
            [.., D] (compressed [.., k]) unit rows in the dtype of x, an array for an array.
        """
        return self._features("IsoCLIP.text", "text", x, compress)

    def topk(
        self,
        queries: Any,  # [N, V], or [N, T] for texts
        gallery: Any,  # [G, V] or [G, T]
        k: int,
        *,
        query_side: str | None = None,
        gallery_side: str | None = None,
        exclude: Any = None,
    ) -> TopK:
        """Exact search among features before the projection, compressed on the way; see ``sb.topk``.

        Args:
            queries: [N, V] image features (texts: [N, T]) before the projection, any float dtype.
            gallery: [G, V] (texts: [G, T]), the same modality.
            k: how many to return, 0..G (G − 1 with `exclude`).
            query_side, gallery_side: "image" or "text"; None: the class's side.
            exclude: [N] int64, a gallery row that the query must not return; -1 excludes none.

        Returns:
            ``TopK(scores [N, k], indices [N, k] int64)`` of the projected unit rows.

        Raises:
            ValueError: query_side and gallery_side differ. The projectors of the two sides keep
                different subspaces, so that their inner product means nothing.
        """
        ours = self._side("IsoCLIP.topk", query_side)
        theirs = self._side("IsoCLIP.topk", gallery_side)
        if ours != theirs:
            contract = f"be {ours!r}, the queries' modality"
            remedy = (
                "IsoCLIP removes what relates images to texts, so comparing across modalities means nothing; "
                "compare the model's own projected features"
            )
            raise ValueError(_errors.message("IsoCLIP.topk", "gallery_side", contract, repr(theirs), remedy))
        rows = [self._features("IsoCLIP.topk", ours, x, True) for x in (queries, gallery)]
        return topk(rows[0], rows[1], k, exclude=exclude)

    def class_means(self, x: Any, labels: Any, *, compress: bool | None = None) -> tuple[Any, Any]:
        """Prototypes of the nearest-class-mean rule: means of un-normalised features, projected, normalised.

        Args:
            x: [N, V] (or [N, T], by ``side``) features before the projection, any float dtype.
            labels: N class names.
            compress: as in ``image``; queries must take the same.

        Returns:
            Unit rows [C, D] or [C, k], and the C class names. ``NearestClassMean`` behind an IsoCLIP
            with ``normalize=False`` is the same rule as a scikit-learn pipeline.
        """
        where = "IsoCLIP.class_means"
        if _arrays.is_array(x):
            means, classes = self.class_means(_arrays.tensor(where, "x", x), labels, compress=compress)
            return _arrays.array(means), classes
        width = self._spectrum().width(self._side(where, None))
        if _errors.check_float_tensor(where, "x", x).dim() != 2:
            remedy = "pass one row per image or text"
            raise ValueError(_errors.message(where, "x", f"be [N, {width}]", x, remedy))
        _errors.check_values(where, "x", x)
        names = _inputs.names(where, labels, len(x), argument="labels", of="x")
        classes = _inputs.ordered(names)
        codes = _inputs.encode(where, names, classes).to(x.device)
        sums = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, device=x.device)
        means = sums.index_add_(0, codes, x.double()) / torch.bincount(codes).unsqueeze(1)
        rows = self._features(where, self._side(where, None), means, compress)
        if not self.normalize:
            rows = torch.nn.functional.normalize(rows, dim=1)
        return rows.to(x.dtype), _inputs.as_array(classes)

    # -- scikit-learn's conventions -------------------------------------------------------------------

    def transform(self, X: Any) -> Any:
        """The projected features of X [N, V] (texts: [N, T]), a tensor or an array as X is."""
        side = self._side("IsoCLIP.transform", None)
        width = self._spectrum().width(side)
        x = _inputs.features("IsoCLIP.transform", "X", X, width, allow_empty=True)
        rows = self.map(side)(x)
        return rows if isinstance(X, Tensor) else rows.cpu().numpy()

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """``fit`` on X [N, V] (texts: [N, T]) and N labels y, then ``transform`` of X."""
        return self.fit(X, y).transform(X)

    def __sklearn_is_fitted__(self) -> bool:
        return self.image_projection is not None and self._is_chosen(self.side)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=self.k_top is None or self.k_bottom is None),
            transformer_tags=TransformerTags(),
            classifier_tags=None,
            regressor_tags=None,
            input_tags=InputTags(),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies carry the matrices; what follows from them is computed anew where they arrive."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __repr__(self) -> str:
        widths = [
            f"{name}={list(m.shape)}"
            for name, m in (("V, D", self.image_projection), ("T, D", self.text_projection))
            if isinstance(m, Tensor)
        ]
        cuts = [f"{name}={value}" for name in CUTS if (value := getattr(self, name)) is not None]
        return f"IsoCLIP({', '.join([*widths, *cuts, f'side={self.side!r}'])})"
