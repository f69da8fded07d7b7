"""A model's text tower for prompts with learned rows: features of many prompts, and their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _digest, _errors, _inputs
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.encode import batches, evaluating
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.prefix_tree import groups, sort_prompts
from semobridge_ext.clip.texts import apart_beyond_rounding
from semobridge_ext.prompts.prompt_tower import Part, Pass, PromptTower
from semobridge_ext.prompts.prompt_words import CARRIER, Words, context_tokens, prompt_ids, read_words

# What nodes may leave for the way back; beyond it prompts run in parts, each of them twice.
_BUDGET = 1 << 30
_REMEDY = "use a CLIP model with a causal text transformer"


class Prompts:
    """P prompts that share learned vectors. ``forward`` keeps what ``backward`` needs."""

    def __init__(
        self, tower: PromptTower, ids: Tensor, ends: Tensor, batch_rows: int | None
    ) -> None:  # [P, L] int64, [P] int64; ids from the tower's ``words`` on are vectors
        self._tower = tower
        device = tower.tower.device
        ordered = sort_prompts(ids, ends)
        rows = max(1, _BUDGET // tower.bytes_per_row) if batch_rows is None else batch_rows
        self._parts: list[Part] = [tower.part(group) for group in groups(ordered, rows, device)]
        self._sizes = [len(part.group.ends) for part in self._parts]
        self._inverse = ordered.inverse.to(device)
        distinct = sum(self._sizes) == len(ids)
        self._order = torch.argsort(ordered.inverse).to(device) if distinct else None
        self._kept: list[Pass] = []

    @property
    def rows(self) -> int:
        """Nodes that are computed."""
        return sum(len(part.group.tokens) for part in self._parts)

    def forward(self, vectors: Tensor, *, keep: bool = True) -> Tensor:  # [V, T] -> [P, D]
        # Parts beyond the first do not fit beside each other: they are made again on the way back.
        keep = keep and len(self._parts) == 1
        self._kept, found = [], []
        for part in self._parts:
            features, made = self._tower.forward(part, vectors)
            found.append(features)
            if keep:
                self._kept.append(made)
        return torch.cat(found)[self._inverse]

    def backward(self, grad: Tensor, vectors: Tensor) -> Tensor:  # [P, D], [V, T] -> [V, T]
        """The gradient of the latest ``forward``, whose vectors are given."""
        if self._order is not None:
            distinct = grad[self._order]
        else:  # equal prompts are computed once, and their gradients add up
            distinct = grad.new_zeros(sum(self._sizes), grad.shape[1]).index_add_(0, self._inverse, grad)
        total = torch.zeros_like(vectors)
        kept, self._kept = self._kept, []
        for i, (part, rows) in enumerate(zip(self._parts, distinct.split(self._sizes), strict=True)):
            made = kept[i] if kept else self._tower.forward(part, vectors)[1]
            total += self._tower.backward(rows, made, len(vectors))
        return total


class PromptEncoder:
    """The text tower of a CLIP model, frozen, and its tokenizer.

    Raises NotImplementedError for a tower that is not causal or computes more than its weights say.
    """

    def __init__(self, function: str, model: Any, tokenizer: Callable[..., Any] | None) -> None:
        self._function, self._adapter = function, adapter_of(function, model)
        double = next(model.parameters()).dtype is torch.float64
        reader = Reader(function, torch.float64 if double else torch.float32, _REMEDY)
        reader.no_hooks(self._adapter.text_module, "the text tower", any_module=True)
        self._tower, self._own = self._adapter.read_text(reader)
        if not self._tower.causal:
            raise reader.refuse(f"the text tower of {self._tower.name}, which sees both ways")
        self._reader = reader
        self._given_tokenizer = tokenizer
        own = self._own
        self.tower = PromptTower(self._tower, own.embedding, own.positions, packed=True)
        self.logit_scale = float(self._adapter.logit_scale)

    @cached_property
    def _tokenizer(self) -> Callable[..., Any]:
        given = self._given_tokenizer
        return self._adapter.default_tokenizer() if given is None else given

    @property
    def features(self) -> int:
        return self._tower.features

    @property
    def width(self) -> int:
        return self._tower.width

    @property
    def device(self) -> torch.device:
        return self._tower.device

    @property
    def dtype(self) -> torch.dtype:
        return self._tower.dtype

    def digest(self) -> str:
        """Of every weight that a prompt's feature depends on."""
        tower, own = self._tower, self._own
        weights = [
            [*b.norm1, *b.qkv, *b.out, *b.norm2, *b.fc, *b.proj] for b in tower.blocks
        ]  # fmt: skip
        ends = [None if part is None else list(part) for part in (tower.norm_final, tower.projection)]
        plain = [tower.heads, tower.activation, own.embedding.detach(), own.positions.detach()]
        return _digest.digest([weights, ends, plain])

    def words(self, names: Sequence[str]) -> Words:
        return read_words(self._function, self._adapter, self._own, self._tokenizer, names)

    def word_rows(self, text: str) -> Tensor:  # [n, T]
        """Embeddings of a text's tokens, as a context begins from them."""
        tokens = context_tokens(self._adapter, self._own, self._tokenizer, text)
        return self._own.embedding.detach()[tokens].to(self.dtype)

    def ids(
        self, names: Sequence[str], words: Words, n_ctx: int, position: str, class_specific: bool
    ) -> tuple[Tensor, Tensor]:  # [C, L], [C] int64
        first, count = self.tower.words, len(names) if class_specific else 1
        vectors = [[first + c * n_ctx + j for j in range(n_ctx)] for c in range(count)]
        length = self._adapter.context_length
        return prompt_ids(self._function, words, vectors, position, length, names)

    def prompts(self, ids: Tensor, ends: Tensor, batch_rows: int | None) -> Prompts:
        return Prompts(self.tower, ids, ends, batch_rows)

    def check(self, name: str, n_ctx: int) -> None:
        """Compares one prompt of plain words with the model's own pass."""
        words = self.words([name])
        ids, ends = self.ids([name], words, n_ctx, "end", False)
        carrier = self.word_rows(CARRIER)[:1]
        mine = self.prompts(ids, ends, None).forward(carrier.expand(n_ctx, -1).contiguous(), keep=False)
        text = f"{' '.join([CARRIER] * n_ctx)} {name.replace('_', ' ')}."
        with evaluating(self._adapter.model), torch.no_grad():
            (own,) = batches(self._adapter.tokenize(self._tokenizer, [text]), 1, self.device)
            theirs = self._adapter.encode_text(own)
        if apart := apart_beyond_rounding(theirs, mine):
            raise self._reader.refuse(
                f"{self._tower.name}, whose features differ from what its weights compute by {apart:.1g}"
            )


def checked_names(function: str, names: Any, argument: str = "class_names", *, least: int = 1) -> list[str]:
    """Class names as strings: at least one (two: a softmax over one is 1), none twice."""
    listed = isinstance(names, Iterable) and not isinstance(names, (str, bytes))
    if not listed or _inputs.is_unordered(names):
        contract, remedy = "be a sequence of class names", "pass the names as a list"
        raise TypeError(_errors.message(function, argument, contract, _errors.describe(names), remedy))
    found = [name.item() if hasattr(name, "item") else name for name in names]
    for name in found:
        if not isinstance(name, str) or not name.strip():
            remedy = "name each class in words, as the prompts have it"
            raise TypeError(_errors.message(function, argument, "hold words", name, remedy))
    if not found:
        remedy = "pass the names of the classes"
        raise ValueError(_errors.message(function, argument, "hold a name", "none", remedy))
    if len(found) < least:
        got, remedy = f"{found[0]!r} alone", "with one there is nothing to tell apart"
        raise ValueError(_errors.message(function, argument, "hold two names", got, remedy))
    if len(set(found)) != len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(_errors.message(function, argument, "be distinct", twice, "merge them"))
    return found
