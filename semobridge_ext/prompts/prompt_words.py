"""Prompts of learned rows and class names, as token ids.

    end      start  v_1 … v_n  name  .  end
    middle   start  v_1 … v_⌊n/2⌋  name  v_⌊n/2⌋+1 … v_n  .  end
    front    start  name  v_1 … v_n  .  end

The id ``words + v`` stands for vector v; with a context of its own for each class, vector ``c·n + j`` is the
j-th of class c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.clip.adapter import Adapter, TextInput

POSITIONS = ("end", "middle", "front")
CARRIER = "a"  # stands before a name while it is tokenised, as the context will
_TOKENIZED = 1024  # texts handed to the tokenizer at once


class Name(NamedTuple):
    tokens: list[int]
    tail: list[int]  # what follows: full stop and end


class Words(NamedTuple):
    """A tokenizer's own: the token that begins every text, and what class names are made of."""

    start: int
    names: list[Name]


def _ids(adapter: Adapter, own: TextInput, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids up to the one whose row is the feature."""
    found = []
    for begin in range(0, len(texts), _TOKENIZED):
        ids = adapter.tokenize(tokenizer, texts[begin : begin + _TOKENIZED])
        ids = torch.as_tensor(ids["input_ids"] if hasattr(ids, "keys") else ids).cpu()
        for row, end in zip(ids.tolist(), own.pooling.positions(ids).tolist(), strict=True):
            found.append(row[: end + 1])
    return found


def read_words(
    function: str, adapter: Adapter, own: TextInput, tokenizer: Callable[..., Any], names: Sequence[str]
) -> Words:
    """Raises NotImplementedError for a tokenizer without a start and an end token."""
    first, second = _ids(adapter, own, tokenizer, (CARRIER, f"{CARRIER} {CARRIER}"))
    bounded = min(len(first), len(second)) >= 3 and first[0] == second[0] and first[-1] == second[-1]
    if own.pooling.kind not in ("argmax", "eos") or not bounded:
        remedy = "use a CLIP model, whose texts have both"
        contract = "put a token before every text and an end token, whose row is the feature, behind it"
        raise NotImplementedError(
            _errors.message(function, "tokenizer", contract, type(tokenizer).__name__, remedy)
        )
    lead = len(first) - 1  # start and carrier
    plain = [name.replace("_", " ") for name in names]
    alone = _ids(adapter, own, tokenizer, [f"{CARRIER} {name}" for name in plain])
    whole = _ids(adapter, own, tokenizer, [f"{CARRIER} {name}." for name in plain])
    made = []
    for name, short, long in zip(names, alone, whole, strict=True):
        if len(short) <= lead + 1 or short[:lead] != first[:lead] or long[:lead] != first[:lead]:
            remedy = "give it a name of words that the tokenizer knows"
            raise ValueError(
                _errors.message(function, "class_names", "have tokens of their own", name, remedy)
            )
        # The name's length is that of its own tokens; a stop that joins its last one stays with it.
        end = len(short) - 1
        made.append(Name(long[lead:end], long[end:]))
    return Words(first[0], made)


def context_tokens(adapter: Adapter, own: TextInput, tokenizer: Any, text: str) -> list[int]:
    """Of the words that a context begins from."""
    return _ids(adapter, own, tokenizer, [text.replace("_", " ")])[0][1:-1]


def prompt_ids(
    function: str,
    words: Words,
    vectors: Sequence[Sequence[int]],  # of each class, or one for all
    position: str,
    context_length: int,
    names: Sequence[str],
) -> tuple[Tensor, Tensor]:  # [C, L] int64, [C] int64: ids, and where the prompts end
    n = len(vectors[0])
    cut = {"end": n, "middle": n // 2, "front": 0}[position]
    rows = []
    for c, name in enumerate(words.names):
        own = vectors[c % len(vectors)]
        rows.append([words.start, *own[:cut], *name.tokens, *own[cut:], *name.tail])
    longest = max(map(len, rows))
    # The tokenizer itself cuts at the context's length, so a text that fills it may have been cut.
    if longest > context_length or max(len(r) - n + 1 for r in rows) >= context_length:
        worst = names[max(range(len(rows)), key=lambda i: len(rows[i]))]
        contract = f"leave room for {n} vectors in a context of {context_length} tokens"
        remedy = "shorten the name or take fewer vectors"
        raise ValueError(_errors.message(function, "class_names", contract, worst, remedy))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])
