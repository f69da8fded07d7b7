"""A prompt template as token ids, and the positions that its placeholder takes."""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors

# Pairs of words of which a tokenizer has at least one pair as single pieces. Where the ids of the two texts
# differ stands the placeholder, whatever special tokens and cleaning the tokenizer adds.
_WORDS = (("x", "z"), ("£", "€"), ("*", "$"))


def default_tokenizer(function: str, vocab_size: int, context_length: int = 77) -> Any:
    """CLIP's byte-pair tokenizer for models with its vocabulary."""
    if vocab_size != 49408:
        raise ValueError(
            f"{function}: tokenizer must be given for a model with {vocab_size} words, got None; "
            "pass the one that belongs to the model"
        )
    try:
        return clip_tokenizer(context_length)
    except ImportError as error:
        raise ImportError(
            f"{function}: tokenizer must be given where open_clip is missing; pip install open_clip_torch"
        ) from error


def clip_tokenizer(context_length: int) -> Any:
    """open_clip's `SimpleTokenizer(context_length=…)`: one of its own, its merges read once.

    Whoever gets it may change it; and the pieces it remembers of every word it meets go when it goes.
    """
    made = copy(_first_tokenizer())
    for name, value in vars(made).items():
        if isinstance(value, (dict, list)):
            setattr(made, name, value.copy())
    made.context_length = context_length
    return made


@cache
def _first_tokenizer() -> Any:
    """Its 49 thousand merges are unpacked once a process; no text ever passes through it."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def is_hugging_face(tokenizer: Any) -> bool:
    """Whether the tokenizer is one of transformers, which pads and truncates only on demand."""
    return hasattr(tokenizer, "convert_tokens_to_ids")


def fitting_ids(function: str, tokenizer: Any, texts: list[str], length: int | None) -> Any:
    """The tokens of texts, no more than the model has positions for.

    A tokenizer of CLIP pads to 77 unless it is told otherwise; it is asked again where a model has fewer.
    """
    if not callable(tokenizer):
        remedy = "pass what makes token ids of a list of texts"
        raise TypeError(_errors.message(function, "tokenizer", "be callable", tokenizer, remedy))
    found = tokenizer(texts)
    if not isinstance(found, Tensor) and not hasattr(found, "keys"):
        found = _arrays.whole(found)
        if not isinstance(found, Tensor):
            contract, remedy = "give token ids", "pass the one that belongs to the model"
            raise TypeError(_errors.message(function, "tokenizer", contract, _errors.describe(found), remedy))
    if length is None or not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] <= length:
        return found
    try:
        shorter = tokenizer(texts, context_length=length)
    except TypeError:  # it takes no length
        shorter = found
    if shorter.shape[1] > length:
        contract = f"give at most {length} tokens a text, as the model has positions"
        remedy = "pass the one that belongs to the model, or none where its words are CLIP's"
        raise ValueError(_errors.message(function, "tokenizer", contract, f"{shorter.shape[1]}", remedy))
    return shorter


def known_ids(function: str, found: Any, vocabulary: int | None) -> Any:
    """The ids of a tokenizer, none of them beyond the model's words."""
    ids = found["input_ids"] if hasattr(found, "keys") and "input_ids" in found else found
    whole = isinstance(ids, Tensor) and bool(ids.numel()) and not ids.is_floating_point()
    if vocabulary and whole and int(ids.max()) >= vocabulary:
        contract = f"give ids below {vocabulary}, as the model has words"
        remedy = "pass the one that belongs to the model"
        raise ValueError(_errors.message(function, "tokenizer", contract, f"{int(ids.max())}", remedy))
    return found


def _ids(function: str, tokenizer: Any, text: str, length: int) -> Tensor:
    """[L] ids; L ≤ length."""
    if is_hugging_face(tokenizer):
        out = tokenizer([text], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return out["input_ids"][0]
    try:
        try:
            out = tokenizer([text], context_length=length)
        except TypeError:
            out = tokenizer([text])
    except RuntimeError as error:  # OpenAI's clip.tokenize refuses instead of truncating
        raise ValueError(
            f"{function}: template must fit the context of {length} tokens, got {text!r} ({error}); "
            "shorten it or use fewer tokens"
        ) from error
    return torch.as_tensor(out[0] if isinstance(out, list) else out).reshape(-1, out.shape[-1])[0]


class Placed(NamedTuple):
    """A template with placeholder words in it."""

    text: str
    ids: Tensor  # [L]
    positions: list[int]  # of the placeholder words


def placed(
    function: str,
    tokenizer: Any,
    template: str,
    num_tokens: int,
    context_length: int,
) -> Placed:
    """The template with ``num_tokens`` placeholder words, its token ids [L], and the words' positions.

    Raises:
        ValueError: not exactly one ``{}``; it does not fit the context; or the tokenizer merges the
            placeholder with what stands beside it.
    """
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(
            f"{function}: template must contain {{}} once, got {template!r}; "
            'write for example "a photo of {}"'
        )
    for first, second in _WORDS:
        texts = [template.replace("{}", " ".join([word] * num_tokens)) for word in (first, second)]
        a, b = (_ids(function, tokenizer, text, context_length) for text in texts)
        if a.shape != b.shape:
            continue
        positions = torch.nonzero(a != b).flatten().tolist()
        if len(positions) == num_tokens:
            if len(a) > context_length:
                break
            roomy = _ids(function, tokenizer, texts[0], context_length + 8)
            if not _adds_only_padding(a, roomy):
                break
            return Placed(texts[0], a, positions)
    raise ValueError(
        f"{function}: template must keep {num_tokens} placeholder(s) as single tokens within "
        f"{context_length}, got {template!r}; set {{}} off with spaces, shorten the template or use "
        "fewer tokens"
    )


def template_ids(
    function: str, tokenizer: Any, template: str, num_tokens: int, context_length: int
) -> tuple[Tensor, list[int]]:
    """Token ids [L] and positions of :func:`placed`."""
    return placed(function, tokenizer, template, num_tokens, context_length)[1:]


def _adds_only_padding(ids: Tensor, roomy: Tensor) -> bool:
    """Whether a longer context changes nothing but the padding, on either side: no word was cut off."""
    length, extra = len(ids), len(roomy) - len(ids)
    return (torch.equal(roomy[:length], ids) and len(roomy[length:].unique()) <= 1) or (
        torch.equal(roomy[extra:], ids) and len(roomy[:extra].unique()) <= 1
    )
