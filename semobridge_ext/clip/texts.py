"""Text features of many prompts: on the tree of their beginnings where the tower is causal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext._engines.tower_descent.spec import Tower
from semobridge_ext.clip.adapter import Adapter, TextInput
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.encode import batches, evaluating
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.prefix_tree import SortedPrompts, groups, sort_prompts
from semobridge_ext.clip.projections import affine_text
from semobridge_ext.clip.tree_tower import TreeTower
from semobridge_ext.runtime.plain_modes import plain_device

BATCH_ROWS = 4096
_CONTEXT = 77  # CLIP's, where a model of no known make does not say
_TOKENIZED = 1024  # texts handed to the tokenizer at once
# How far the tree may be from the model's own pass, as a share of the row: many times what rounding makes of
# deep towers, and far below what another attention or pooling would.
_APART = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_TF32 = 1e-2  # a GPU may multiply float32 so
_log = logging.getLogger("semobridge_ext")
_said: set[str] = set()

Wanted = tuple[str, ...]  # of "hidden", "projected"


class _NoTreeError(Exception):
    """Why the model's own pass must run."""


class _Tree(NamedTuple):
    tower: Tower
    own: TextInput


@plain_device()
def encode_text(
    model: Any,
    texts: str | Iterable[str],
    *,
    tokenizer: Callable[[list[str]], Any] | None = None,
    project: bool = True,
    batch_rows: int = BATCH_ROWS,
    progress: bool = False,
) -> Tensor:  # [N, D], or [N, T] with project=False
    """Text features of a CLIP model for a list of texts, every common beginning computed once.

    A row of a causal tower depends on the tokens up to its position alone, and nothing after the end token
    matters. So the texts form a prefix tree: a node (token, position, parent) runs through the layers once,
    attends to its ancestors, and of the last layer only the end nodes are computed::

        x_n ← x_n + Σ_{a ∈ ancestors(n) ∪ {n}} softmax_a(q_n·k_a/√d)·v_a·Wo        x_n ← x_n + MLP(LN(x_n))

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists.
        texts: N strings in a list, an array or a generator, any number of them equal; or one string.
        tokenizer: a list of strings to token ids, or a Hugging Face tokenizer; None: CLIP's where the
            vocabulary is CLIP's. It truncates too long texts, or refuses them, as it does elsewhere; one
            that pads beyond the model's positions is asked for so many.
        project: False gives the pooled, normed features x before the projection W.
        batch_rows: nodes of the tree that are computed at once; one text's always are.
        progress: a bar on stderr, counting texts.

    Returns:
        [N, D] or [N, T] in the model's dtype, on its device, in the order of the texts; not normalised, as
        the model's own, and without gradient.

    Raises:
        TypeError: not a CLIP model, something else in place of the texts, or
            project=False without a linear projection. ValueError: no texts, a batch_rows below 1, or no
            tokenizer for a vocabulary other than CLIP's.

    Numerics: the model's own forward pass to rounding, in evaluation mode. On the CPU half models run in
        float32. Autocast changes the result's dtype, as it does the model's own, and no sum. One text
        is compared with the model's own pass first. Where they differ, and for bidirectional towers (SigLIP),
        hooks, adapters and unknown modules, the model's own pass runs, over every position, and a log line
        says so once. Equal texts have equal features; ``batch_rows`` and the other texts change the last
        bits only. NaN stays with the texts whose tokens meet it.

    Memory: O(batch_rows·(8T + L) + N·(L + D)), with L the longest text; a half model on the CPU is copied in
        float32, one of Hugging Face has copies of its attention's input matrices.

    Example:
        >>> import semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> texts = [f"an icon of {name}" for name in ("a star", "a house", "a star")]
        >>> sb.encode_text(model, texts, tokenizer=tokenizer).shape
        torch.Size([3, 192])

    docs/methods.md §10.
    """
    adapter = adapter_of("encode_text", model)
    if not project:
        affine_text("encode_text", adapter)  # refuses in words where there is none
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        contract, got = "be strings", _errors.describe(texts)
        raise TypeError(_errors.message("encode_text", "texts", contract, got, "pass a list of them"))
    if _inputs.is_unordered(texts):
        contract, got = "be strings in an order", _errors.describe(texts)
        remedy = "the rows stand in the order of a list"
        raise TypeError(_errors.message("encode_text", "texts", contract, got, remedy))
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            remedy = "clip.encode_text takes token ids"
            raise TypeError(_errors.message("encode_text", "texts", "hold strings alone", text, remedy))
    if not texts:
        raise ValueError("encode_text: texts must not be empty, got none; pass at least one string")
    if not _numbers.is_whole(batch_rows):
        remedy = f"{BATCH_ROWS} is the default"
        raise TypeError(_errors.message("encode_text", "batch_rows", "be an int", batch_rows, remedy))
    if batch_rows < 1:
        remedy = f"{BATCH_ROWS} is the default"
        raise ValueError(_errors.message("encode_text", "batch_rows", "be positive", batch_rows, remedy))
    if tokenizer is None:
        tokenizer = adapter.default_tokenizer()
    wanted = ("projected",) if project else ("hidden",)
    return text_rows(adapter, tokenizer, texts, wanted, batch_rows=batch_rows, progress=progress)[0]


def text_rows(
    adapter: Adapter,
    tokenizer: Callable[..., Any],
    texts: Sequence[str],
    wanted: Wanted,
    *,
    batch_rows: int = BATCH_ROWS,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, ...]:  # [N, T] for "hidden", [N, D] for "projected", each as it is wanted
    """Features of checked texts. ``batch_size``: texts at once, where all of their positions are computed."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    different = list(distinct)
    context = getattr(adapter, "context_length", _CONTEXT)
    if batch_size is None:
        batch_size = max(1, batch_rows // context)
    else:
        batch_rows = min(batch_rows, batch_size * context)
    with evaluating(adapter.model), torch.no_grad():
        # A single text has nothing to share, and would be compared with what it could be itself.
        tree = _tree(adapter) if len(different) > 1 else None
        found = None
        if tree is not None:
            try:
                found = _on_tree(adapter, tree, tokenizer, different, wanted, batch_rows, progress)
            except _NoTreeError as error:
                _say(adapter, str(error))
        if found is None:
            found = _by_model(adapter, tokenizer, different, wanted, batch_size, progress)
    if len(different) == len(texts):
        return found
    order = torch.tensor([distinct[text] for text in texts], device=found[0].device)
    return tuple(rows[order] for rows in found)


def _say(adapter: Adapter, reason: str) -> None:
    line = f"{adapter.function}: every position of every text is computed, by the model's own pass: {reason}"
    if line not in _said:
        _said.add(line)
        _log.warning(line)


def _bar(adapter: Adapter, total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="text", unit_scale=True, desc=adapter.function, disable=not progress)


# -- the model's own pass --------------------------------------------------------------------------------


def _own_rows(adapter: Adapter, ids: Any, wanted: Wanted) -> tuple[Tensor, ...]:
    if wanted == ("projected",):
        return (adapter.encode_text(ids),)
    hidden, projected = adapter.encode_text_with_hidden(ids)
    return tuple(hidden if name == "hidden" else projected for name in wanted)


def _by_model(
    adapter: Adapter, tokenizer: Any, texts: list[str], wanted: Wanted, batch_size: int, progress: bool
) -> tuple[Tensor, ...]:
    device = next(adapter.model.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    with _bar(adapter, len(texts), progress) as bar:
        for start in range(0, len(texts), batch_size):
            ids = adapter.tokenize(tokenizer, texts[start : start + batch_size])
            for part in batches(ids, batch_size, device):
                parts.append(_own_rows(adapter, part, wanted))
                bar.update(len(parts[-1][0]))
    return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))


# -- the tree --------------------------------------------------------------------------------------------


def _tree(adapter: Adapter) -> _Tree | None:
    """The tower, if it is one that a tree can run; else None, said once."""
    parameter = next(adapter.model.parameters())
    wide = torch.float64 if parameter.dtype is torch.float64 else torch.float32
    # A CPU multiplies half rows more slowly than wide ones, a GPU faster.
    reader = Reader(
        adapter.function, wide if parameter.device.type == "cpu" else parameter.dtype, "the own pass runs"
    )
    try:
        reader.no_hooks(adapter.text_module, "the text tower", any_module=True)
        tower, own = adapter.read_text(reader)
    except (NotImplementedError, AttributeError) as error:  # AttributeError: modules of no known family
        _say(adapter, str(error))
        return None
    if not tower.causal:
        _say(adapter, f"the text tower of {tower.name} sees both ways")
        return None
    return _Tree(tower, own)


def _tokens(adapter: Adapter, own: TextInput, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids [P, L] and ends [P], on the CPU; _NoTreeError where the tree would not see what the model sees."""
    ids: list[Tensor] = []
    ends: list[Tensor] = []
    for start in range(0, len(texts), _TOKENIZED):
        found = adapter.tokenize(tokenizer, texts[start : start + _TOKENIZED])
        mask = None
        if isinstance(found, Mapping):
            if set(found) - {"input_ids", "attention_mask"}:
                raise _NoTreeError(f"the tokenizer gives {sorted(found)}")
            mask, found = found.get("attention_mask"), found["input_ids"]
        part = torch.as_tensor(found).cpu()
        last = own.pooling.positions(part)
        before = torch.arange(part.shape[1]) <= last.unsqueeze(1)
        hidden = torch.zeros_like(before) if mask is None else torch.as_tensor(mask).cpu() == 0
        if own.pad is not None:
            hidden = hidden | (part == own.pad)
        if bool((hidden & before).any()):
            raise _NoTreeError("padding is masked before the end of a text")
        ids.append(part)
        ends.append(last)
    longest = max(part.shape[1] for part in ids)
    return torch.cat([torch.nn.functional.pad(p, (0, longest - p.shape[1])) for p in ids]), torch.cat(ends)


def _on_tree(
    adapter: Adapter,
    tree: _Tree,
    tokenizer: Any,
    texts: list[str],
    wanted: Wanted,
    batch_rows: int,
    progress: bool,
) -> tuple[Tensor, ...]:
    ids, ends = _tokens(adapter, tree.own, tokenizer, texts)
    device = tree.tower.device

    def run(prompts: SortedPrompts, progress: bool) -> tuple[Tensor, ...]:
        tower, parts = TreeTower(*tree, prompts.rows), []
        autocast = torch.autocast(device.type, enabled=False)
        with autocast, _bar(adapter, len(prompts.ends), progress) as bar:
            for group in groups(prompts, batch_rows, device):
                hidden = tower.end_rows(group)
                parts.append(tuple(hidden if w == "hidden" else tower.projected(hidden) for w in wanted))
                bar.update(len(hidden))
        order = prompts.inverse.to(device)
        return tuple(torch.cat(rows)[order] for rows in zip(*parts, strict=True))

    # The longest text first, by the model itself as well: a tower may compute more than its weights say.
    at = int(ends.argmax())
    (part,) = batches(adapter.tokenize(tokenizer, [texts[at]]), 1, device)
    own = plain = _own_rows(adapter, part, wanted)
    if torch.is_autocast_enabled(device.type):  # which may leave the dtype wide and the values rounded
        with torch.autocast(device.type, enabled=False):
            plain = _own_rows(adapter, part, wanted)
    ours = run(sort_prompts(ids[at : at + 1], ends[at : at + 1]), False)
    for theirs, mine in zip(plain, ours, strict=True):
        _check_near(theirs, mine)
    found = run(sort_prompts(ids, ends), progress)
    return tuple(rows.to(theirs.dtype) for rows, theirs in zip(found, own, strict=True))


def apart_beyond_rounding(theirs: Tensor, mine: Tensor) -> float:
    """How far the model's own row is from the tree's, as a share of it; 0 where rounding explains it."""
    limit = _APART.get(theirs.dtype, max(_APART.values()))
    if theirs.device.type != "cpu":
        limit = max(limit, _TF32)
    if theirs.shape != mine.shape:
        return float("inf")
    apart = float((theirs.double() - mine.double()).norm() / theirs.double().norm())
    return apart if apart > limit else 0.0  # NaN passes: the text itself meets it


def _check_near(theirs: Tensor, mine: Tensor) -> None:
    """_NoTreeError where the model's own row is another than the tree's."""
    if apart := apart_beyond_rounding(theirs, mine):
        raise _NoTreeError(f"its features differ from what the weights compute by {apart:.1g}")
