"""SeMoBridge, closed form: image features carried into the text modality (arXiv 2509.26036, §3.2).

    W⁺ = pinv(W, atol)     e = f W⁺ (+ τ)     ê = ℓ·norm(e)     bridged = ê W

Without τ ``norm(bridged) = norm(f W⁺ W)``, one matrix that is folded once (fold.py).

A text projection with a bias, ``x·W + b = (x, 1)·[W; b]``, is bridged as the linear map [W; b] of rows with a
one appended (docs/methods.md): one row taller, and everything else as it is.

What to expect: a projector of nearly full rank changes cosines little. The closed form alone is close
to comparing images directly; most of the published gain comes from the blend of logits and from
training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from semobridge_ext import _arrays, _errors, _files, _schema
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.project_normalize.prepared import PreparedProjection
from semobridge_ext.bridging.checks import (
    checked_atol,
    checked_bias,
    checked_length,
    checked_projection,
    checked_state,
)
from semobridge_ext.bridging.fold import Fold, fold_of, packed_chain, packed_projector
from semobridge_ext.runtime.choice import direct, plain
from semobridge_ext.runtime.held import Held

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = "semobridge-ext bridge 1"
FILE = {"text_projection": _schema.Field(("T", "D")), "inverse": _schema.Field(("D", "T"))}


class Bridge(nn.Module):
    """The closed-form bridge of one CLIP model.

    Args:
        text_projection: [T, D] the matrix W of the text tower, a tensor or array of any float dtype;
            copied, kept in float32 (float64 if given so).
        text_bias: [D] the bias b of the projection. It becomes the last row of ``text_projection``, so that T
            below is one more than the tower's width; zeros are none, as None is.
        atol: singular values ≤ ``atol`` are dropped; the paper uses 0.3.
        text_length: ℓ, the mean length of the classes' un-projected text features. It cancels
            whenever the result is normalised.

    Attributes:
        inverse: [D, T] parameter W⁺, frozen by default; ``requires_grad_()`` trains it (SeMoBridge-T).
        projector: [D, D] ``W⁺ W``, folded in float64.
        rank: singular values kept.

    Raises:
        TypeError: not a float tensor. ValueError: not 2-D, not finite, or no singular value > atol.

    Numerics: folded in float64, applied in float32 (float64 for float64 rows); a row's result depends
        neither on its batch nor on the number of threads. Differentiable in the features, ``inverse`` and
        the class bias.

    Changes: a call computes with what the two matrices hold then, written in place or replaced. Writes
        through ``.data`` or another library's view leave no trace in PyTorch and are not seen.

    Memory: the two matrices, their fold in float64 (T·D + 3·D² values at most), and packed copies of what a
        kind of call applies, made at its first use.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.Bridge(torch.eye(4), atol=0.3)
        >>> b(torch.tensor([[0.0, 3.0, 0.0, 4.0]]))
        tensor([[0.0000, 0.6000, 0.0000, 0.8000]])
    """

    text_projection: Tensor
    inverse: nn.Parameter
    _fold_cache: tuple[Held, Fold] | None
    _prepared: dict[tuple[bool, bool], PreparedProjection]
    _prepared_from: Held | None = None

    def __init__(
        self,
        text_projection: Any,  # [T, D]
        *,
        text_bias: Any = None,  # [D]
        atol: float = 0.3,
        text_length: float = 1.0,
    ) -> None:
        super().__init__()
        w = checked_projection(text_projection, text_bias)
        self._atol, self._text_length = checked_atol(atol), checked_length(text_length)
        with torch.inference_mode(False):  # tensors that count their writes, wherever the bridge is made
            self._set(w)

    def _set(self, w: Tensor) -> None:  # [T, D]
        fold = fold_of(w, self.atol, None)
        if fold.rank == 0:
            contract = f"have a singular value above atol={self.atol}"
            remedy = "lower atol, or check that this is the text projection"
            got = f"largest singular value {float(fold.singular[0]):.3g}"
            raise ValueError(_errors.message("Bridge", "text_projection", contract, got, remedy))
        keep = torch.float64 if w.dtype is torch.float64 else torch.float32
        self.register_buffer("text_projection", w.to(keep, copy=True))
        self.inverse = nn.Parameter(fold.pinv.to(w.device, keep), requires_grad=False)
        self._forget()
        self._fold_cache = (Held(*self._matrices()), fold)

    # -- construction and files ----------------------------------------------------------------------

    @classmethod
    def from_clip(cls, model: Any, *, atol: float = 0.3, text_length: float = 1.0) -> Bridge:
        """The bridge of a CLIP model of a family that ``semobridge_ext.clip`` lists.

        Args:
            model: the CLIP model, of which only the text projection is read.
            atol, text_length: of the bridge.

        Raises:
            TypeError: not a CLIP model, or one whose text projection is no Linear layer and no matrix; the
                message says what was found.

        A projection with a bias, as SigLIP's, is taken with it: see ``text_bias``. ``Bridge(W)`` leaves
        the bias out on purpose.
        """
        from semobridge_ext.clip.families import adapter_of
        from semobridge_ext.clip.projections import affine_text

        name = "Bridge.from_clip"
        found = affine_text(name, adapter_of(name, model))
        return cls(found.matrix, text_bias=found.bias, atol=atol, text_length=text_length)

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
        timeout: float = 300.0,
    ) -> Bridge:
        """The bridge of a checkpoint, of which only the text projection is read.

        Args:
            name_or_path: a safetensors file or a folder with one; a Hugging Face name "org/repo",
                "hf://org/repo/file" for one file of it; open_clip's "ViT-B-32:openai"; or a URL of a
                file system that fsspec has (https with ``semobridge-ext[http]``, s3 with s3fs, ..).
                Of a server about 1 MB is read. HF_TOKEN or a login opens private repositories.
            atol, text_length: of the bridge.
            revision: of the Hugging Face repository.
            cache_dir: where a fetched matrix is kept; None: SEMOBRIDGE_CACHE or the user's cache
                folder. What is there, or in Hugging Face's own cache, is used without asking the network.
            refresh: True fetches again.
            timeout: seconds for all that is fetched, retries and name resolution included.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: the file cannot be had, in time or at
            all. ImportError: the library of the URL's file system is missing. ValueError: no such name, a
            server whose answers do not fit what was asked, or a checkpoint without a linear text
            projection; the message names what is missing. Nothing of it is kept then.
        """
        from semobridge_ext.clip.checkpoints import read_projections

        found = read_projections(
            "Bridge.from_pretrained", name_or_path, ("text",),
            revision=revision, cache_dir=cache_dir, refresh=refresh, timeout=timeout,
        )  # fmt: skip
        matrix, bias = found["text"]
        return cls(matrix, text_bias=bias, atol=atol, text_length=text_length)

    def save(self, path: Any) -> None:
        """Writes a safetensors file (tensors ``text_projection``, ``inverse``) to `path`, atomically."""
        tensors = {"text_projection": self.text_projection, "inverse": self.inverse.detach()}
        meta = {"format": _FORMAT, "atol": repr(self.atol), "text_length": repr(self.text_length)}
        _files.save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        where = "Bridge.load"
        tensors, meta = _schema.load(where, path, _FORMAT, FILE, ("atol", "text_length"))
        with _schema.restoring(where, path):
            return cls._restored(tensors, float(meta["atol"]), float(meta["text_length"]))

    @classmethod
    def _restored(cls, tensors: dict[str, Tensor], atol: float, text_length: float) -> Self:
        """From the two tensors of a file, whose shapes fit."""
        b = cls(tensors["text_projection"], atol=atol, text_length=text_length)
        with torch.no_grad():
            b.inverse.copy_(tensors["inverse"])
        return b

    # -- what follows from the matrices --------------------------------------------------------------

    def _forget(self) -> None:
        """Drops what was derived from the matrices."""
        self._fold_cache, self._prepared, self._prepared_from = None, {}, None

    def _apply(self, fn: Any, recurse: bool = True) -> Bridge:
        """Moving or converting the module replaces the data behind the tensors without a trace."""
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the matrices; native operands are packed anew where they arrive."""
        return {**self.__dict__, "_fold_cache": None, "_prepared": {}, "_prepared_from": None}

    def get_extra_state(self) -> Tensor:  # [2] float64
        """What ``state_dict`` keeps beside the matrices: atol and text_length, [2] float64."""
        return torch.tensor([self.atol, self.text_length], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:  # [2]
        """Takes what ``get_extra_state`` gave.

        Args:
            state: [2] float64, atol and text_length.

        Raises:
            ValueError: another kind or shape, or numbers that a bridge cannot have.
        """
        self.atol, self.text_length = checked_state(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # State dicts of 0.1.0 hold the matrices alone: this bridge's own numbers stay.
        key = f"{prefix}_extra_state"
        if key not in state_dict and f"{prefix}inverse" in state_dict:
            state_dict[key] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        inverse, w = self._parameters["inverse"], self._buffers["text_projection"]
        assert inverse is not None and w is not None
        return inverse, w

    def _fold(self) -> Fold:
        matrices = self._matrices()
        if self._fold_cache is None or not self._fold_cache[0].same(*matrices):
            held = Held(*matrices)  # before the fold: a write meanwhile makes it stale, not trusted
            with torch.inference_mode(False), torch.no_grad():
                self._fold_cache = (held, fold_of(matrices[1], self.atol, matrices[0]))
        return self._fold_cache[1]

    @property
    def atol(self) -> float:
        return self._atol

    @atol.setter
    def atol(self, value: float) -> None:
        self._atol = checked_atol(value)
        self._forget()

    @property
    def text_length(self) -> float:
        return self._text_length

    @text_length.setter
    def text_length(self, value: float) -> None:
        self._text_length = checked_length(value)
        self._forget()

    @property
    def rank(self) -> int:
        return self._fold().rank

    @property
    def projector(self) -> Tensor:  # [D, D]
        like = self.text_projection
        return self._fold().projector.to(like.device, like.dtype)

    def _projection(self, project: bool, normalize: bool) -> PreparedProjection | None:
        """The prepared operands of one kind of call, made at its first use; None: the operators are due."""
        inverse, w = self._parameters["inverse"], self._buffers["text_projection"]
        if self._prepared_from is None or not self._prepared_from.same(inverse, w):
            if not plain(inverse, w):
                return None
            self._prepared, self._prepared_from = {}, Held(*self._matrices())
        kind = (project, normalize)
        prepared = self._prepared.get(kind)
        if prepared is None:
            with torch.inference_mode(False), torch.no_grad():
                prepared = self._prepared[kind] = self._prepare(project, normalize)
        return prepared

    def _prepare(self, project: bool, normalize: bool) -> PreparedProjection:
        fold = self._fold()

        def here(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return tensor.detach().to("cpu", dtype)

        def chain(compute: torch.dtype) -> Projection:
            inverse, w = here(self.inverse, compute), here(self.text_projection, compute)
            return packed_chain(fold, inverse, w, self.text_length, compute)

        if not project:
            length = 1.0 if normalize else self.text_length
            return PreparedProjection(here(self.inverse, torch.float64), scale=length, called="bridge")
        if not normalize:
            return PreparedProjection(None, packed=chain, called="bridge")
        packed = partial(packed_projector, fold)
        return PreparedProjection(fold.projector, packed=packed, called="bridge")

    # -- application ---------------------------------------------------------------------------------

    def forward(
        self,
        img_feats: _arrays.Rows,  # [.., D]
        *,
        class_bias: Any = None,  # [T], [C, T] or [.., T]
        project: bool = True,
        normalize: bool = True,
    ) -> _arrays.Rows:  # [.., D], or [.., T] with project=False
        """Bridges image features, ``norm(ℓ·norm(f W⁺ + τ)·W)``; what a call of the module runs.

        Args:
            img_feats: [.., D] raw image features, float32, float64, bfloat16 or float16; a tensor or array.
            class_bias: τ, [T], one row per class [C, T], or [.., T]; for support images only.
            project: False returns ê [.., T] before W.
            normalize: True gives unit rows.

        Returns:
            [.., D] (or [.., T]) in the dtype of `img_feats`, an array for an array.

        Raises:
            TypeError: kind or dtype. ValueError: width, device or shape of the bias.
        """
        inverse, rows = self._parameters["inverse"], img_feats  # type: Any, Any
        try:
            is_direct = (
                class_bias is None
                and (where := direct(rows, inverse))
                and rows.dim() > 0
                and rows.shape[-1] == inverse.shape[0]
            )
        except RuntimeError:  # a nested tensor has no shape: the checks of the other path say it
            is_direct = False
        if is_direct:
            prepared = self._projection(project, normalize)
            program = None if prepared is None else prepared.program(where, rows)
            if program is not None:
                return program(rows)  # type: ignore[return-value]
        return self._forward_ops(img_feats, class_bias, project, normalize)

    def _forward_ops(self, img_feats: Any, class_bias: Any, project: bool, normalize: bool) -> Any:
        """The same through registered operators: checks, gradients, compilation, other devices, arrays."""
        inverse, w = self.inverse, self.text_projection
        if not isinstance(img_feats, Tensor) and _arrays.is_array(img_feats):
            rows = _arrays.tensor("bridge", "img_feats", img_feats, inverse.device)
            return _arrays.array(
                self.forward(rows, class_bias=class_bias, project=project, normalize=normalize)
            )
        f = _errors.check_float_tensor("bridge", "img_feats", img_feats)
        _errors.check_last_dim("bridge", "img_feats", f, w.shape[1], "this bridge is for that width")
        _errors.check_same_device("bridge", "img_feats", f, inverse.device)
        if class_bias is not None:
            class_bias = checked_bias(f, class_bias, w.shape[0])
        length = 1.0 if normalize else self.text_length
        e = project_normalize(f, inverse, bias=class_bias, scale=length)
        return project_normalize(e, w, normalize=normalize) if project else e

    def extra_repr(self) -> str:
        t, d = self.text_projection.shape
        return f"T={t}, D={d}, rank={self.rank}, atol={self.atol}, text_length={self.text_length}"
