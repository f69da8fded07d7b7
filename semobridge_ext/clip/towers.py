"""The towers of a CLIP model as plain tensors, with learned rows where pseudo-tokens stand.

Where a tower is not of the specification's form, ``text_entry`` and ``vision_entry`` go through the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.model import OwnRows, OwnTower
from semobridge_ext._engines.tower_descent.spec import LearnedRows, MaskedRows, Tower
from semobridge_ext.clip.adapter import Adapter, Appended, TextInput, UnknownModelError, VisionInput
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.own_pass import OwnPass, Run, check_patches, text_pass, vision_pass
from semobridge_ext.clip.template import template_ids
from semobridge_ext.runtime.backend import requested

_TEXT_REMEDY = "use a CLIP or SigLIP-style text transformer, or oti, which then runs the model's own pass"
_VISION_REMEDY = (
    "use a vision transformer with class-token or attention pooling, or ovi, which then runs the model's own "
    "pass where it has patches"
)
_log = logging.getLogger("semobridge_ext")
_told: set[str] = set()


def _reader(adapter: Adapter, remedy: str) -> Reader:
    double = next(adapter.model.parameters()).dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    return Reader(adapter.function, dtype, remedy, takes_appended=True)


def text_tower(
    model: Any,
    template: str = "a photo of {}",
    *,
    num_tokens: int = 1,
    tokenizer: Any = None,
) -> tuple[Tower, LearnedRows]:
    """The text tower of a CLIP model with ``num_tokens`` learned rows in place of ``{}``.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, on any device.
        template: contains ``{}`` once, anywhere.
        num_tokens: R, pseudo-words in the placeholder's place.
        tokenizer: the model's own; None: CLIP's where the vocabulary is CLIP's.

    Returns:
        The tower in float32 (float64 for a float64 model), and its rows: base [L, T], the constant
        tokens with their positional embedding, and which positions are learned. CoCa's class embedding
        is one row more, behind them.

    Raises:
        TypeError: not a CLIP model. NotImplementedError: a tower that computes something else, by its
            modules, an adapter in a layer or a hook (the message names it). ValueError: template or
            tokenizer do not fit.

    Numerics: the weights are copied as they are; a layer scale is multiplied into the layer before it.

    Memory: matrices in the tower's own dtype are views of the model's; others are copied.

    Example:
        >>> import semobridge_ext as sb
        >>> tower, rows = sb.clip.text_tower(sb.load_picto_clip()[0], "an icon of {}")
        >>> tower.width, tower.features, rows.source[:6]
        (192, 192, (-1, -1, -1, -1, 0, -1))
    """
    return _read_text("text_tower", model, template, num_tokens, tokenizer)


def _read_text(
    function: str, model: Any, template: str, num_tokens: int, tokenizer: Any
) -> tuple[Tower, LearnedRows]:
    adapter = adapter_of(function, model)
    reader = _reader(adapter, _TEXT_REMEDY)
    reader.no_hooks(adapter.text_module, "the text tower")
    tower, own = adapter.read_text(reader)
    if tokenizer is None:
        tokenizer = adapter.default_tokenizer()
    length = len(own.positions) - (own.appended is not None)
    ids, learned = template_ids(adapter.function, tokenizer, template, num_tokens, length)
    ids = ids.to(own.embedding.device)
    base = own.embedding.detach()[ids].to(tower.dtype)
    base[learned] = 0
    source = [learned.index(i) if i in learned else -1 for i in range(len(ids))]
    if own.appended is not None:
        return tower, _appended(own, own.appended, ids, base, source)
    pool = int(own.pooling.positions(ids))
    base = base + own.positions.detach()[: len(ids)].to(tower.dtype)
    if own.pad is not None:
        keep = [i for i in range(len(ids)) if ids[i] != own.pad or i in learned]
        if pool not in keep:
            raise reader.refuse(f"{tower.name} that pools a padding token")
        base, source, pool = base[keep], [source[i] for i in keep], keep.index(pool)
    return tower, LearnedRows(base, tuple(source), pool)


def _appended(
    own: TextInput, appended: Appended, ids: Tensor, base: Tensor, source: list[int]
) -> LearnedRows:
    """Tokens whose keys are seen, and behind them the row that is pooled."""
    seen, last = appended.seen(ids), len(ids)
    keep = [i for i in range(last + 1) if seen[i] or i == last]
    rows = torch.cat([base, appended.row.to(base).unsqueeze(0)])
    rows = (rows + own.positions.detach()[: last + 1].to(base.dtype))[keep]
    places = tuple([*source, -1][i] for i in keep)
    pool = len(keep) - 1
    return LearnedRows(rows, places, pool) if seen[last] else MaskedRows(rows, places, pool, (pool,))


def _patched(own: VisionInput, num_patches: int) -> LearnedRows:
    """Class and register tokens, then patch u holding pseudo-patch ⌊u·P/U⌋."""
    constants = 0 if own.prefix is None else len(own.prefix)
    base = own.positions.clone()
    if own.prefix is not None:
        base[:constants] += own.prefix
    patches = len(base) - constants
    source = [-1] * constants + [u * num_patches // patches for u in range(patches)]
    return LearnedRows(base, tuple(source), own.pooled)


def vision_tower(model: Any, *, num_patches: int = 1) -> tuple[Tower, LearnedRows]:
    """The vision transformer of a CLIP model with ``num_patches`` learned pseudo-patches.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, on any device.
        num_patches: P; patch u of U holds pseudo-patch ⌊u·P/U⌋ (nearest interpolation).

    Returns:
        The tower in float32 (float64 for a float64 model), and its rows: base [L, V], class tokens and
        positional embedding, and which pseudo-patch stands where.

    Raises:
        TypeError: not a CLIP model. NotImplementedError: ResNets and other towers (the message names
            what was found). ValueError: more pseudo-patches than patches.

    Numerics, Memory: as :func:`text_tower`.

    Example:
        >>> import semobridge_ext as sb
        >>> tower, rows = sb.clip.vision_tower(sb.load_picto_clip()[0], num_patches=2)
        >>> tower.width, rows.vectors, rows.pool
        (192, 2, 0)
    """
    return _read_vision("vision_tower", model, num_patches)


def _read_vision(function: str, model: Any, num_patches: int) -> tuple[Tower, LearnedRows]:
    adapter = adapter_of(function, model)
    reader = _reader(adapter, _VISION_REMEDY)
    reader.no_hooks(adapter.vision_module, "the vision tower")
    tower, own = adapter.read_vision(reader)
    rows = _patched(own, num_patches)
    patches = sum(s >= 0 for s in rows.source)
    check_patches(function, num_patches, patches)
    return tower, rows


# -- of any model --------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A tower with learned rows: plain tensors for the engine, or what a model runs itself."""

    tower: Tower | OwnTower
    rows: LearnedRows | OwnRows
    run: Run | None = None  # the model's own pass


def _entry(
    read: Callable[[], tuple[Tower, LearnedRows]], own: Callable[[], OwnPass], function: str, what: str
) -> Entry:
    """The tower as the engine takes it; else the model's own pass, and a note about it, once."""
    try:
        return Entry(*read())
    except UnknownModelError:
        raise
    except NotImplementedError as refusal:
        if requested() not in ("auto", "eager"):
            raise
        found = own()  # its refusal names this one as its context
        reason = str(refusal).partition(", got ")[2].partition("; ")[0]
        note = f"{function}: the {what} tower runs through the model itself, by autograd: {reason}"
        if note not in _told:
            _told.add(note)
            _log.warning("%s; slower than the engine, the same settings and files", note)
        return Entry(*found)


def text_entry(
    function: str, model: Any, template: str, *, num_tokens: int = 1, tokenizer: Any = None
) -> Entry:
    """:func:`text_tower`, or the model's own text pass where that is refused."""
    return _entry(
        lambda: _read_text(function, model, template, num_tokens, tokenizer),
        lambda: text_pass(adapter_of(function, model), template, num_tokens, tokenizer),
        function, "text",
    )  # fmt: skip


def vision_entry(function: str, model: Any, *, num_patches: int = 1) -> Entry:
    """:func:`vision_tower`, or the model's own image pass where that is refused."""
    return _entry(
        lambda: _read_vision(function, model, num_patches),
        lambda: vision_pass(adapter_of(function, model), num_patches),
        function, "vision",
    )  # fmt: skip
