"""Class text features of a CLIP model, projected and un-projected, from prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.texts import text_rows

_NAME = "class_text_features"


class ClassText(NamedTuple):
    """Text features of C classes."""

    projected: Tensor  # [C, D] unit rows t_c
    hidden: Tensor  # [C, T] unit rows s_c, the same before the text projection
    length: float  # ℓ, the mean length of the un-projected prompt features


def class_text_features(
    model: Any,
    names: Sequence[Any],
    templates: Sequence[str] | Mapping[Any, Sequence[str]] = ("a photo of a {}.",),
    *,
    tokenizer: Callable[[list[str]], Any] | None = None,
    batch_size: int = 256,
) -> ClassText:
    """Class text features ``t_c = norm(mean_p norm(prompt_p))``; the same before the projection.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists.
        names: C class names.
        templates: prompts with ``{}`` in the name's place, an ensemble for all classes; or a mapping
            from every class name to its own whole prompts (any number each).
        tokenizer: a list of strings to token ids, or a Hugging Face tokenizer; None: CLIP's where the
            vocabulary is CLIP's.
        batch_size: prompts encoded at once, at the full length of the context.

    Returns:
        ClassText: ``projected`` [C, D] and ``hidden`` [C, T] unit rows in the model's dtype, on its
        device, and the text length ℓ for ``Bridge(text_length=...)``.

    Raises:
        ValueError: no names, no prompts, a template without ``{}``, a class without prompts, or no
            tokenizer for a vocabulary other than CLIP's. TypeError: not a CLIP model, or a bare string
            in place of the names.
            NotImplementedError: an unknown text pooling.

    Numerics: prompts as :func:`semobridge_ext.encode_text` has them, on the tree of their beginnings where
        the tower is causal; means and norms in float32.

    Memory: O(batch_size) activations and the features of all prompts beside the result.

    Example:
        >>> import semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> prompts = ["{}", "an icon of {}"]
        >>> text = sb.class_text_features(model, ["star", "house"], prompts, tokenizer=tokenizer)
        >>> text.projected.shape, text.hidden.shape
        (torch.Size([2, 192]), torch.Size([2, 192]))
    """
    if isinstance(names, (str, bytes)):
        remedy = f"pass [{names!r}] for one class"
        raise TypeError(_errors.message(_NAME, "names", "be a sequence of class names", names, remedy))
    prompts, owners = _prompts(list(names), templates)
    adapter = adapter_of(_NAME, model)
    if tokenizer is None:
        tokenizer = adapter.default_tokenizer()
    parameter = next(model.parameters())
    found = text_rows(adapter, tokenizer, prompts, ("hidden", "projected"), batch_size=batch_size)
    hidden, projected = (rows.float() for rows in found)
    owner = torch.tensor(owners, device=parameter.device)

    def class_mean(rows: Tensor) -> Tensor:
        units = normalize(rows, dim=1)
        sums = units.new_zeros(len(names), units.shape[1]).index_add(0, owner, units)
        return normalize(sums, dim=1).to(parameter.dtype).clone()

    # ℓ over classes: prompts of one class share its weight.
    counts = torch.bincount(owner, minlength=len(names)).float()
    lengths = torch.zeros_like(counts).index_add(0, owner, hidden.norm(dim=1)) / counts
    return ClassText(class_mean(projected), class_mean(hidden), float(lengths.mean()))


def _prompts(names: list[Any], templates: Any) -> tuple[list[str], list[int]]:
    """Every prompt and the class it belongs to."""
    if not names:
        raise ValueError(f"{_NAME}: names must not be empty, got none; pass the class names")
    if isinstance(templates, str):
        templates = (templates,)
    if isinstance(templates, Mapping):
        lacking = [name for name in names if not templates.get(name)]
        if lacking:
            raise ValueError(
                f"{_NAME}: templates must hold prompts of every class, got none for {lacking[:5]}; add them"
            )
        pairs = [(prompt, i) for i, name in enumerate(names) for prompt in templates[name]]
    else:
        if not templates:
            raise ValueError(f"{_NAME}: templates must not be empty, got none; pass ('{{}}',)")
        for template in templates:
            if "{}" not in template:
                remedy = "as in 'a photo of a {}.'"
                raise ValueError(_errors.message(_NAME, "templates", "contain {}", template, remedy))
        pairs = [(t.replace("{}", str(name)), i) for i, name in enumerate(names) for t in templates]
    texts, owners = zip(*pairs, strict=True)
    return list(texts), list(owners)
