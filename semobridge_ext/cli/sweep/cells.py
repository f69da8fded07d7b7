"""The cells of the table: each method on one small model, beside the plain program of plain.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semobridge_ext import clip
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.sweep import plain
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.inversion import Inversion, oti, ovi
from semobridge_ext.linear_maps import IsoCLIP

METHODS = ("bridge", "IsoCLIP", "class texts", "OTI", "OVI")
WORKS, T_ALONE, REFUSED, WRONG = "works", "t_c alone", "refused", "wrong"
ABSENT = "absent"  # a library that is not installed
_OWN_PASS = "by autograd through the model's own pass, slower than the engine"
_STEPS, _NAMES, _TEMPLATES = 3, ["cat", "big dog"], ("a photo of {}", "{}")
# Of a row's length: float64 against float64, and for models that norm their rows in float32 whatever comes.
_NEAR = {torch.float64: 1e-7, torch.float32: 1e-3}


class Cell(NamedTuple):
    state: str
    note: str = ""  # why it is refused, or how far it is off


class Small(NamedTuple):
    """A small model and what its inputs look like."""

    model: Any
    side: int  # of its images
    words: int
    tokenizer: Any  # None: the package has to find CLIP's
    own_tokenizer: Any  # the same, for the plain program


def scattered(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In evaluation mode, with norms, biases and scales away from 1 and 0: a forgotten one would show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() <= 1 and p.numel() > 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.to(dtype).eval().requires_grad_(False)


def _random(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _held(found: Tensor, want: Tensor, what: str) -> None:
    """Raises where a row is not what the plain program gives, to the rounding of its dtype."""
    if found.shape != want.shape:
        raise _OffError(f"{what} of shape {list(found.shape)} in place of {list(want.shape)}")
    found, wide = found.double(), want.double()
    apart = float((found - wide).norm() / wide.norm())
    if not apart <= _NEAR[want.dtype]:
        raise _OffError(f"{what} off by {apart:.1g} of their length")


class _OffError(Exception):
    """A result that is not the plain program's."""


def _bridge(s: Small) -> Cell:
    dtype = next(s.model.parameters()).dtype
    bridge = Bridge.from_clip(s.model, atol=0.0)  # refuses in words before an oracle is looked for
    end = plain.end_of(s.model, "text")
    rows = _random(5, end.shape[1]).to(dtype)
    _held(bridge(rows), plain.bridged(rows, end), "rows")
    ids = s.own_tokenizer(["a photo of cat", "dog"])
    before = clip.encode_text(s.model, ids, project=False)
    _held(F.pad(before, (0, 1), value=1.0) @ end, plain.texts(s.model, ids), "features of the rows before")
    return Cell(WORKS)


def _isoclip(s: Small) -> Cell:
    dtype = next(s.model.parameters()).dtype
    iso = IsoCLIP.from_clip(s.model, k_top=2, k_bottom=1)
    ends = {side: plain.end_of(s.model, side) for side in ("image", "text")}
    pixels, ids = _random(3, 3, s.side, s.side).to(dtype), s.own_tokenizer(["a photo of cat", "dog"])
    for side, before, own in (
        ("image", clip.encode_image(s.model, pixels, project=False), plain.images(s.model, pixels)),
        ("text", clip.encode_text(s.model, ids, project=False), plain.texts(s.model, ids)),
    ):
        _held(F.pad(before, (0, 1), value=1.0) @ ends[side], own, f"{side} features of the rows before")
        _held(getattr(iso, side)(before), plain.cut(before, ends, side, 2, 1), f"{side} rows")
    return Cell(WORKS)


def _class_texts(s: Small) -> Cell:
    found = class_text_features(s.model, _NAMES, _TEMPLATES, tokenizer=s.tokenizer)
    for row, name in zip(found.projected, _NAMES, strict=True):
        rows = [plain.texts(s.model, s.own_tokenizer([t.replace("{}", name)])) for t in _TEMPLATES]
        _held(
            row[None],
            F.normalize(F.normalize(torch.cat(rows), dim=1).mean(dim=0), dim=0)[None],
            "class texts",
        )
    return Cell(WORKS) if found.reason is None else Cell(T_ALONE, _why(found.reason))


def _oti(s: Small) -> Cell:
    dtype = next(s.model.parameters()).dtype
    clip.encode_text(s.model, s.own_tokenizer(["x"]))  # refuses in words what is no CLIP model
    ids, others = (s.own_tokenizer([f"a photo of {word}"])[0] for word in ("x", "z"))
    at = torch.nonzero(ids != others).flatten().tolist()
    targets = _random(2, plain.texts(s.model, ids[None]).shape[1]).to(dtype)

    def ours(start: Tensor | None) -> Inversion:
        return oti(s.model, targets, tokenizer=s.tokenizer, init=start, steps=_STEPS)

    embedding = _found(lambda: plain.word_embedding(s.model, s.words), ours)
    start = (_random(2, 1, embedding.embedding_dim, seed=6) * 0.02).to(dtype)
    return _descended(ours(start), lambda v: plain.with_words(s.model, embedding, ids, at, v), start, targets)


def _ovi(s: Small) -> Cell:
    dtype = next(s.model.parameters()).dtype
    blank = torch.zeros(1, 3, s.side, s.side, dtype=dtype)
    clip.encode_image(s.model, blank)  # as above
    targets = _random(2, plain.images(s.model, blank).shape[1]).to(dtype)

    def ours(start: Tensor | None) -> Inversion:
        return ovi(s.model, targets, num_patches=2, init=start, steps=_STEPS)

    embedding = _found(lambda: plain.patch_embedding(s.model), ours)
    width = plain.width_of(embedding, lambda: plain.images(s.model, blank))
    start = (_random(2, 2, width, seed=6) * 0.02).to(dtype)
    return _descended(
        ours(start), lambda v: plain.with_patches(s.model, embedding, s.side, v), start, targets
    )


def _found(oracle: Callable[[], Any], ours: Callable[[None], Any]) -> Any:
    """The part that the plain program replaces; where there is none, the package has to refuse."""
    try:
        return oracle()
    except plain.NoOracleError:
        ours(None)
        raise


def _descended(
    ours: Inversion, features_of: Callable[[Tensor], Tensor], start: Tensor, targets: Tensor
) -> Cell:
    losses, features = plain.descend(features_of, start, targets, _STEPS)
    _held(torch.as_tensor(ours.losses)[None], losses[None], "losses")
    _held(ours.features, features, "features")
    return Cell(WORKS, _OWN_PASS if ours.engine == "model" else "")


_CHECKS: dict[str, Callable[[Small], Cell]] = dict(
    zip(METHODS, (_bridge, _isoclip, _class_texts, _oti, _ovi), strict=True)
)


def _why(text: str) -> str:
    """A refusal without the function's name and the remedy."""
    said = text.partition(": ")[2].rpartition("; ")[0] or text
    said = said.removesuffix(" (SigLIP's attention pooling and ResNets end in no matrix of their own)")
    if "be one of (" in said:  # which families there are is no news here
        said = said.rpartition("), got ")[2]
    return " ".join(said.split())


def check(small: Small, method: str) -> Cell:
    """One cell. A refusal is an error of the package's own grammar; any other exception is its fault."""
    try:
        return _CHECKS[method](small)
    except _OffError as error:
        return Cell(WRONG, str(error))
    except (TypeError, ValueError, NotImplementedError) as error:
        if ": " in str(error) and "; " in str(error):
            return Cell(REFUSED, _why(str(error)))
        return Cell(WRONG, f"{type(error).__name__}: {error}")
    except plain.NoOracleError as error:
        return Cell(WRONG, f"nothing to compare with: {error}")
    except Exception as error:
        return Cell(WRONG, f"{type(error).__name__}: {error}")
