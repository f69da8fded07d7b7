"""SeMoBridge, closed form: image features carried into the text modality (arXiv 2509.26036, §3.2).

    W⁺ = pinv(W, atol)     e = f W⁺ (+ τ)     ê = ℓ·norm(e)     bridged = ê W

Without a bias ``norm(bridged) = norm(f V_r V_rᵀ)``, with V_r the right singular vectors of W that the
cut-off keeps. Three forms of that projector cost D², 2·D·r and 2·D·(D − r) multiplications a row; the
cheapest is folded once, in float64.

What to expect: a projector of nearly full rank changes cosines little. The closed form alone is close
to comparing images directly; most of the published gain comes from the blend of logits and from
training.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semobridge_ext import _errors, _files
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.project_normalize.cuda import CudaProjection, direct_kernels
from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.project_normalize.prepared_triton import TritonProjection
from semobridge_ext.runtime.choice import is_direct
from semobridge_ext.runtime.rows import compute_dtype

_FORMAT = "semobridge-ext bridge 1"
_log = logging.getLogger("semobridge_ext")


class _Fold(NamedTuple):
    """What follows from (text_projection, inverse), in float64 on the CPU."""

    rank: int
    right: Tensor  # [D, r] kept right singular vectors
    dropped: Tensor  # [D, D - r] the others
    singular: Tensor  # [min(T, D)] all singular values
    pinv: Tensor  # [D, T]
    closed_form: bool  # inverse is the pseudo-inverse, not a trained or edited one
    projector: Tensor  # [D, D]


def _fold_of(text_projection: Tensor, atol: float, inverse: Tensor | None) -> _Fold:
    """Folds W and its cut-off; `inverse` None stands for the pseudo-inverse itself."""
    w = text_projection.detach().to("cpu", torch.float64)
    # All of V is needed, for the complement; the reduced form has it unless W is wide.
    u, s, vh = torch.linalg.svd(w, full_matrices=w.shape[0] < w.shape[1])
    rank = int((s > atol).sum())
    right, dropped = vh[:rank].T, vh[rank:].T
    pinv = (right / s[:rank]) @ u[:, :rank].T
    projector, closed_form = right @ right.T, True
    if inverse is not None:
        held = inverse.detach().to("cpu", torch.float64)
        # Within the rounding of the dtype that it went through it still is the pseudo-inverse.
        slack = 4 * torch.finfo(inverse.dtype).eps * float(pinv.abs().amax()) if rank else 0.0
        closed_form = bool(((held - pinv).abs() <= slack).all())
        projector = projector if closed_form else held @ w
    return _Fold(rank, right, dropped, s, pinv, closed_form, projector)


class Bridge(nn.Module):
    """The closed-form bridge of one CLIP model.

    Args:
        text_projection: [T, D] the matrix W of the text tower, any float dtype; copied, kept in
            float32 (float64 if given so).
        atol: singular values ≤ ``atol`` are dropped; the paper uses 0.3.
        text_length: ℓ, the mean length of the classes' un-projected text features. It cancels
            whenever the result is normalised.

    Attributes:
        inverse: [D, T] parameter W⁺, frozen by default; ``requires_grad_()`` trains it (SeMoBridge-T).
        projector: [D, D] ``W⁺ W``, folded in float64.
        rank: singular values kept.

    Raises:
        TypeError: not a float tensor. ValueError: not 2-D, not finite, or no singular value > atol.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.Bridge(torch.eye(4), atol=0.3)
        >>> b(torch.tensor([[0.0, 3.0, 0.0, 4.0]]))
        tensor([[0.0000, 0.6000, 0.0000, 0.8000]])
    """

    text_projection: Tensor
    inverse: nn.Parameter
    _fold_cache: tuple[tuple, _Fold] | None
    _plans: dict[tuple, Projection]
    _plan_stamp: tuple | None
    _cuda: tuple[tuple, CudaProjection | TritonProjection] | None

    def __init__(
        self,
        text_projection: Tensor,  # [T, D]
        *,
        atol: float = 0.3,
        text_length: float = 1.0,
    ) -> None:
        super().__init__()
        w = _errors.check_float_tensor("Bridge", "text_projection", text_projection).detach()
        if w.dim() != 2 or w.numel() == 0:
            remedy = "pass the [T, D] matrix, or use Bridge.from_clip(model)"
            raise ValueError(_errors.message("Bridge", "text_projection", "be 2-D", w, remedy))
        _errors.check_finite("Bridge", "text_projection", w, "reload the model's weights")
        for name, value in (("atol", atol), ("text_length", text_length)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(_errors.message("Bridge", name, "be a number", value, "pass a float"))
        if not 0 <= atol < float("inf"):
            raise ValueError(_errors.message("Bridge", "atol", "be ≥ 0", atol, "the paper uses 0.3"))
        if not 0 < text_length < float("inf"):
            remedy = "pass the mean length of the un-projected text features"
            raise ValueError(_errors.message("Bridge", "text_length", "be > 0", text_length, remedy))
        self.atol, self.text_length = float(atol), float(text_length)
        fold = _fold_of(w, self.atol, None)
        if fold.rank == 0:
            contract = f"have a singular value above atol={self.atol}"
            remedy = "lower atol, or check that this is the text projection"
            got = f"largest singular value {float(fold.singular[0]):.3g}"
            raise ValueError(_errors.message("Bridge", "text_projection", contract, got, remedy))
        keep = torch.float64 if w.dtype is torch.float64 else torch.float32
        self.register_buffer("text_projection", w.to(keep, copy=True))
        self.inverse = nn.Parameter(fold.pinv.to(w.device, keep), requires_grad=False)
        self._forget()
        self._fold_cache = (self._stamp(), fold)

    # -- construction and files ----------------------------------------------------------------------

    @classmethod
    def from_clip(cls, model: Any, *, atol: float = 0.3, text_length: float = 1.0) -> Bridge:
        """The bridge of a CLIP model of a family that ``semobridge_ext.clip`` lists.

        Raises:
            TypeError: not a CLIP model, or one without a linear text projection; the message says what
                was found. A projection with a bias, as SigLIP's, is refused: ``t = x·W + b`` is inverted
                by ``(t − b)·W⁺``, and an image feature, whose length carries no meaning, has no scale
                at which b could be subtracted. ``Bridge(W)`` leaves the bias out on purpose.
        """
        from semobridge_ext.clip import text_projection

        return cls(text_projection(model), atol=atol, text_length=text_length)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: Any,
        *,
        atol: float = 0.3,
        text_length: float = 1.0,
        revision: str = "main",
        cache_dir: Any = None,
        refresh: bool = False,
    ) -> Bridge:
        """The bridge of a checkpoint, of which only the text projection is read.

        Args:
            name_or_path: a safetensors file or a folder with one; a URL; a Hugging Face name
                "org/repo"; or open_clip's "ViT-B-32:openai". Over HTTP range requests fetch about
                1 MB, without login.
            atol, text_length: of the bridge.
            revision: of the Hugging Face repository.
            cache_dir: where a fetched matrix is kept; None: SEMOBRIDGE_CACHE or the user's cache
                folder. What is there is used without asking the network.
            refresh: True fetches again.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: the file cannot be had. ValueError: no
            such name, a server without ranges, or a checkpoint without a linear text projection; the
            message names what is missing.
        """
        from semobridge_ext.clip.checkpoints import read_projections

        found = read_projections(
            "Bridge.from_pretrained", name_or_path, ("text",),
            revision=revision, cache_dir=cache_dir, refresh=refresh,
        )  # fmt: skip
        return cls(found["text"], atol=atol, text_length=text_length)

    def save(self, path: Any) -> None:
        """Writes a safetensors file (tensors ``text_projection``, ``inverse``), atomically."""
        tensors = {"text_projection": self.text_projection, "inverse": self.inverse.detach()}
        meta = {"format": _FORMAT, "atol": repr(self.atol), "text_length": repr(self.text_length)}
        _files.save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Any) -> Bridge:
        """Reads what ``save`` wrote; a foreign or truncated file is named and refused (ValueError)."""
        names = ("text_projection", "inverse")
        tensors, meta = _files.load_tensors("Bridge.load", path, _FORMAT, names, ("atol", "text_length"))
        try:
            atol, length = float(meta["atol"]), float(meta["text_length"])
        except ValueError as error:
            raise ValueError(
                f"Bridge.load: {path} must hold numbers as atol and text_length, got {error}; save it again"
            ) from None
        b = cls(tensors["text_projection"], atol=atol, text_length=length)
        if tensors["inverse"].shape != b.inverse.shape:
            raise ValueError(f"Bridge.load: {path} holds an inverse of another shape; save it again")
        b.inverse.data = tensors["inverse"].to(b.inverse.dtype)
        return b

    # -- what follows from the matrices --------------------------------------------------------------

    def _forget(self) -> None:
        """Drops what was derived from the matrices."""
        self._fold_cache, self._plans, self._plan_stamp = None, {}, None
        self._cuda = None

    def _apply(self, fn: Any, recurse: bool = True) -> Bridge:
        """Moving or converting the module replaces the data behind the tensors without a trace."""
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the matrices; native operands are packed anew where they arrive."""
        return {**self.__dict__, "_fold_cache": None, "_plans": {}, "_plan_stamp": None, "_cuda": None}

    def _stamp(self) -> tuple:
        """Changes whenever the matrices may have: in-place writes and replaced tensors."""
        inverse, w = self._parameters["inverse"], self._buffers["text_projection"]
        assert inverse is not None and w is not None
        if inverse.is_inference() or w.is_inference():  # these carry no version
            return (inverse.data_ptr(), w.data_ptr())
        return (inverse.data_ptr(), inverse._version, w.data_ptr(), w._version)

    def _fold(self) -> _Fold:
        stamp = self._stamp()
        if self._fold_cache is None or self._fold_cache[0] != stamp:
            self._fold_cache = (stamp, _fold_of(self.text_projection, self.atol, self.inverse))
        return self._fold_cache[1]

    @property
    def rank(self) -> int:
        return self._fold().rank

    @property
    def projector(self) -> Tensor:  # [D, D]
        like = self.text_projection
        return self._fold().projector.to(like.device, like.dtype)

    def _plan(self, project: bool, normalize: bool, dtype: torch.dtype) -> Projection:
        """The prepared native operands of one kind of call, made at its first use."""
        stamp = self._stamp()
        if stamp != self._plan_stamp:
            self._plans.clear()
            self._plan_stamp = stamp
        key = (project, normalize, dtype)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(project, normalize, compute_dtype(dtype))
            self._plans[key] = plan
        return plan

    def _cuda_plan(self, device: torch.device, kernels: str = "native") -> CudaProjection | TritonProjection:
        """The folded projector as these kernels take it: csrc's, or Triton's."""
        kind = TritonProjection if kernels == "triton" else CudaProjection
        stamp = (kind, self._stamp(), device)
        if self._cuda is None or self._cuda[0] != stamp:
            self._cuda = (stamp, kind(self._fold().projector, device))
        return self._cuda[1]

    def _make_plan(self, project: bool, normalize: bool, compute: torch.dtype) -> Projection:
        fold = self._fold()
        inverse = self.inverse.detach().to("cpu", compute)
        w = self.text_projection.detach().to("cpu", compute)
        if not project:
            length = 1.0 if normalize else self.text_length
            return Projection(inverse, compute=compute, normalize=True, scale=length)
        if not normalize:
            # ‖f W⁺‖ = ‖f V_r Σ_r⁻¹‖ and V_r Σ_r⁻¹ · Σ_r V_rᵀ = W⁺ W: r columns instead of T.
            kept = fold.singular[: fold.rank]
            first, second = (
                (fold.right / kept, kept.unsqueeze(1) * fold.right.T) if fold.closed_form else (inverse, w)
            )
            return Projection(
                first, second, compute=compute, normalize_first=True,
                scale_first=self.text_length, normalize=False,
            )  # fmt: skip
        width = w.shape[1]
        complement = 2 * fold.rank > width
        factor = fold.dropped if complement else fold.right
        # Two thin products and their extra pass pay from about half of the square one's work.
        if not fold.closed_form or 2 * factor.shape[1] > 0.9 * width:
            return Projection(fold.projector, compute=compute)
        if factor.shape[1] == 0:
            factor = torch.zeros(width, 1, dtype=torch.float64)  # full rank: only the norm is left
        return Projection(factor, factor.T, compute=compute, residual=complement)

    # -- application ---------------------------------------------------------------------------------

    def forward(
        self,
        img_feats: Tensor,  # [.., D]
        *,
        class_bias: Tensor | None = None,  # [T], [C, T] or [.., T]
        project: bool = True,
        normalize: bool = True,
    ) -> Tensor:  # [.., D], or [.., T] with project=False
        """Bridges image features; see :func:`semobridge_ext.bridge`."""
        inverse = self._parameters["inverse"]
        if (
            class_bias is None
            and is_direct(img_feats, inverse)  # type: ignore[arg-type]
            and img_feats.dim() > 0
            and img_feats.shape[-1] == inverse.shape[0]  # type: ignore[union-attr]
        ):
            return self._plan(project, normalize, img_feats.dtype)(img_feats)
        if (
            class_bias is None
            and project
            and normalize
            and isinstance(img_feats, Tensor)
            and (kernels := direct_kernels(img_feats, inverse))  # type: ignore[arg-type]
            and img_feats.shape[-1] == inverse.shape[0]  # type: ignore[union-attr]
        ):
            return self._cuda_plan(img_feats.device, kernels)(img_feats)
        return self._forward_ops(img_feats, class_bias, project, normalize)

    def _forward_ops(
        self, img_feats: Tensor, class_bias: Tensor | None, project: bool, normalize: bool
    ) -> Tensor:
        """The same through registered operators: checks, gradients, compilation, other devices."""
        inverse, w = self.inverse, self.text_projection
        f = _errors.check_float_tensor("bridge", "img_feats", img_feats)
        _errors.check_last_dim("bridge", "img_feats", f, w.shape[1], "this bridge is for that width")
        _errors.check_same_device("bridge", "img_feats", f, inverse.device)
        if class_bias is not None:
            class_bias = self._checked_bias(f, class_bias)
        length = 1.0 if normalize else self.text_length
        e = project_normalize(f, inverse, bias=class_bias, scale=length)
        return project_normalize(e, w, normalize=normalize) if project else e

    def _checked_bias(self, f: Tensor, bias: Tensor) -> Tensor:
        _errors.check_float_tensor("bridge", "class_bias", bias)
        _errors.check_same_device("bridge", "class_bias", bias, f.device)
        full = (*f.shape[:-1], self.text_projection.shape[0])
        if bias.shape == full or (bias.dim() == 1 and bias.shape[0] == full[-1]):
            return bias
        if bias.dim() == 2 and len(full) >= 2 and bias.shape == (full[0], full[-1]):
            return bias.reshape(full[0], *[1] * (len(full) - 2), full[-1])
        contract = f"be [T], [C, T] with C the first dimension of img_feats, or {list(full)}"
        remedy = "support images are [C, K, D] with bias [C, T]; queries take none"
        raise ValueError(_errors.message("bridge", "class_bias", contract, bias, remedy))

    def extra_repr(self) -> str:
        t, d = self.text_projection.shape
        return f"T={t}, D={d}, rank={self.rank}, atol={self.atol}, text_length={self.text_length}"


# -- the default bridge ------------------------------------------------------------------------------

_default: Bridge | None = None
_embedded: Bridge | None = None


def use(model: Any) -> Bridge:
    """Sets the bridge that ``bridge(img_feats)`` uses, for the whole process, and returns it.

    Args:
        model: a CLIP model (see ``Bridge.from_clip``), a ``Bridge``, or ``"picto"``, the embedded one.

    Returns:
        The Bridge that is now the default.

    Raises:
        TypeError: none of these.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.use(sb.Bridge(torch.eye(8)))
        >>> sb.bridge(torch.ones(2, 8)).shape
        torch.Size([2, 8])
    """
    global _default
    if isinstance(model, Bridge):
        _default = model
    elif isinstance(model, str):
        if model != "picto":
            remedy = "or load that model and pass it"
            contract = "be a CLIP model, a Bridge or 'picto'"
            raise TypeError(_errors.message("use", "model", contract, model, remedy))
        _default = _picto_bridge()
    else:
        _default = Bridge.from_clip(model)
    return _default


def _picto_bridge() -> Bridge:
    global _embedded
    if _embedded is None:
        from semobridge_ext.data import picto_text_projection

        _embedded = Bridge(picto_text_projection())
    return _embedded


def _default_for(img_feats: Any) -> Bridge:
    width = img_feats.shape[-1] if isinstance(img_feats, Tensor) and img_feats.dim() else None
    embedded = _picto_bridge()
    if width is not None and width != embedded.text_projection.shape[1]:
        raise ValueError(
            f"bridge: img_feats has width {width} and no default bridge is set; "
            "write sb.use(model) once, with the CLIP model that made the features"
        )
    if width is not None:
        _log.warning("bridge: no model set, using the embedded picto CLIP's bridge; sb.use(model) sets one")
        use(embedded)
    return embedded


def bridge(
    img_feats: Tensor,  # [.., D]
    *,
    bridge: Bridge | None = None,
    class_bias: Tensor | None = None,  # [T], [C, T] or [.., T]
    project: bool = True,
    normalize: bool = True,
) -> Tensor:  # [.., D], or [.., T] with project=False
    """Carries image features into the text modality: ``norm(ℓ·norm(f W⁺ + τ)·W)``.

    Args:
        img_feats: [.., D] raw outputs of ``encode_image`` (not unit rows; any length works where the
            result is normalised and no bias is given). float32, float64, bfloat16 or float16.
        bridge: the Bridge to use; default: what ``use`` set.
        class_bias: τ, [T], one row per class [C, T] for features [C, D] or [C, K, D], or [.., T].
            For support images only, never for queries.
        project: False returns the text-width feature ê [.., T] before W.
        normalize: True gives unit rows; False gives ``ℓ·norm(e)·W`` (with ``project=False``,
            ``ℓ·norm(e)``), the form whose mean over shots makes a prototype.

    Returns:
        [.., D] (or [.., T]) in the dtype of ``img_feats``; NaN stays in its row, a zero row is zero.

    Raises:
        TypeError: kind or dtype. ValueError: width, device, bias shape, or no default bridge set.

    Numerics: float32 accumulation (float64 for float64), projector folded in float64, a row's result
        independent of its batch and of the thread count. Differentiable in img_feats, the bridge's
        inverse and class_bias; with gradients the two products run unfolded.

    Memory: the output; the folded matrices are kept by the bridge.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.Bridge(torch.eye(2))
        >>> sb.bridge(torch.tensor([3.0, 4.0]), bridge=b)
        tensor([0.6000, 0.8000])

    SeMoBridge, arXiv 2509.26036, eq. 3-5.
    """
    b = bridge if bridge is not None else _default
    if b is None:
        b = _default_for(img_feats)
    elif not isinstance(b, Bridge):
        remedy = "make one with sb.Bridge(text_projection) or sb.Bridge.from_clip(model)"
        raise TypeError(_errors.message("bridge", "bridge", "be a Bridge", b, remedy))
    return b(img_feats, class_bias=class_bias, project=project, normalize=normalize)
