"""The oracle of encode_text: the model's own forward pass, every position of every text, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def encode_text(
    model: Any,
    texts: Sequence[str],
    *,
    tokenizer: Callable[..., Any],
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # [N, D]
    """Text features as the model itself computes them, all texts at once, on a copy in ``dtype``.

    Args:
        model: a CLIP model of open_clip, OpenAI's clip or Hugging Face.
        texts: N strings.
        tokenizer: a list of strings to token ids [N, L], or a Hugging Face tokenizer.
        dtype: of the copy; float64 for an oracle. OpenAI's clip norms its rows in float32 whatever they are,
            and takes no other weights there: pass torch.float32.

    Returns:
        [N, D] of ``dtype``, not normalised, without gradient.

    Raises:
        RuntimeError: weights of a dtype that the model's modules do not take (PyTorch's own message).

    Numerics: the model's own, in evaluation mode.

    Memory: a copy of the model, and O(N·L) activations.

    Example:
        >>> import semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> sb.reference.encode_text(model, ["a star"], tokenizer=tokenizer).dtype
        torch.float64
    """
    wide = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        if hasattr(tokenizer, "convert_tokens_to_ids"):
            inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        else:
            inputs = {"input_ids": tokenizer(list(texts))}
        if hasattr(wide, "get_text_features"):
            found = wide.get_text_features(**inputs)
            return found if isinstance(found, Tensor) else found.pooler_output
        return wide.encode_text(inputs["input_ids"])
