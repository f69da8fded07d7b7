"""The two prompts of each finding as rows of text features."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs
from semobridge_ext.clip.texts import encode_text
from semobridge_ext.incremental.labels import finding_names
from semobridge_ext.runtime.rows import compute_dtype

_SAME = 1e-5  # how far the unit rows of one prompt may be apart, encoded twice in other batches


def encode_findings(
    model: Any,
    findings: Sequence[str],
    *,
    positive: str = "a photo of {}",
    negative: str = "a photo without {}",
    tokenizer: Callable[[list[str]], Any] | None = None,
) -> Tensor:  # [L, 2, D]
    """Text features of a positive and a negative prompt for each finding, by ``encode_text``.

    Args:
        model: an open_clip, OpenAI or Hugging Face CLIP.
        findings: L names.
        positive, negative: templates with {} for the name.
        tokenizer: as for ``encode_text``.

    Returns:
        [L, 2, D] raw text features in the dtype of the model: ``RETune``'s prompt_features.

    Raises:
        TypeError: findings is one text. ValueError: no finding, a name twice, a template without {}; and
            what ``encode_text`` raises.

    Numerics: those of ``encode_text``. Not differentiable.

    Memory: the result, and what ``encode_text`` takes.

    Example:
        >>> import semobridge_ext as sb
        >>> from semobridge_ext.incremental import encode_findings
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> encode_findings(model, ["a circle", "an arrow"], tokenizer=tokenizer).shape
        torch.Size([2, 2, 192])
    """
    where = "encode_findings"
    names = finding_names(where, findings)
    for argument, template in (("positive", positive), ("negative", negative)):
        if not isinstance(template, str) or "{}" not in template:
            remedy = "write for example 'a photo of {}'"
            raise ValueError(_errors.message(where, argument, "contain {}", repr(template), remedy))
    texts = [template.replace("{}", str(name)) for name in names for template in (positive, negative)]
    found = encode_text(model, texts, tokenizer=tokenizer)
    return found.reshape(len(names), 2, found.shape[1])


def check_prompts(where: str, value: Any, width: int | None) -> Tensor:  # [k, 2, D] unit rows on the CPU
    name = "prompt_features"
    rows = _inputs.numbers(where, name, value)
    if rows.is_nested or rows.dim() != 3 or rows.shape[1] != 2 or rows.numel() == 0:
        remedy = "pass a positive and a negative row per finding, see incremental.encode_findings"
        raise ValueError(_errors.message(where, name, "be [k, 2, D]", rows, remedy))
    rows = _inputs.features(where, name, rows.flatten(0, 1)).reshape(rows.shape)
    if width is not None and rows.shape[2] != width:
        remedy = "take both from the same model"
        raise ValueError(_errors.message(where, name, f"have width {width}", rows, remedy))
    return normalize(rows.cpu().double(), dim=2).to(compute_dtype(rows.dtype))


def joined(
    where: str, names: list[Hashable], prompts: Tensor, others: list[Hashable], theirs: Tensor
) -> tuple[list[Hashable], Tensor]:
    """The known findings and behind them the new ones; what is given again must be what it was."""
    place = {name: i for i, name in enumerate(names)}
    for name, rows in zip(others, theirs, strict=True):
        if name in place and float((rows.double() - prompts[place[name]].double()).abs().max()) > _SAME:
            contract, remedy = "stay what they were", "leave them out, or give the finding another name"
            raise ValueError(
                _errors.message(where, "prompt_features", contract, f"others of {name!r}", remedy)
            )
    fresh = [i for i, name in enumerate(others) if name not in place]
    dtype = torch.promote_types(prompts.dtype, theirs.dtype)
    return [*names, *(others[i] for i in fresh)], torch.cat([prompts.to(dtype), theirs[fresh].to(dtype)])
