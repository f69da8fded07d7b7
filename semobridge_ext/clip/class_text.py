"""Class text features of a CLIP model, projected and un-projected, from prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext.clip.adapter import Adapter
from semobridge_ext.clip.affine import NonlinearError, with_one
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.projections import affine_text
from semobridge_ext.clip.texts import text_rows
from semobridge_ext.runtime.plain_modes import plain_device

_NAME = "class_text_features"


class ClassText(NamedTuple):
    """Text features of C classes.

    ``hidden`` and ``length`` are None where nothing linear stands between the tower and its features, so
    that features before it mean nothing to a bridge; ``reason`` says what stands there.
    """

    projected: Tensor  # [C, D] unit rows t_c
    hidden: Tensor | None  # [C, T] unit rows s_c, the same before the text projection
    length: float | None  # ℓ, the mean length of the un-projected prompt features
    reason: str | None = None  # why there is no s_c


@plain_device()
def class_text_features(
    model: Any,
    names: Any,  # C names
    templates: Any = ("a photo of a {}.",),
    *,
    tokenizer: Callable[[list[str]], Any] | None = None,
    batch_size: int = 256,
) -> ClassText:
    """Class text features ``t_c = norm(mean_p norm(prompt_p))``; the same before the projection.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists.
        names: C class names, in a list, an array or a generator; or one string.
        templates: prompts, an ensemble for all classes: texts with ``{}`` in the name's place or functions
            from a name to its prompt, one or several; or a mapping from every class name to its own whole
            prompts (any number each).
        tokenizer: a list of strings to token ids, or a Hugging Face tokenizer; None: CLIP's where the
            vocabulary is CLIP's.
        batch_size: prompts encoded at once, at the full length of the context.

    Returns:
        ClassText: ``projected`` [C, D] and ``hidden`` [C, T] unit rows in the model's dtype, on its
        device, and the text length ℓ for ``Bridge(text_length=...)``. Under a projection with a bias the
        rows before it have a one appended, as the bridge's have (T is one more). Where a nonlinear head ends
        the tower, or its pooling is unknown, hidden and length are None and ``reason`` says why.

    Raises:
        ValueError: no names, no prompts, a template without ``{}``, a class without prompts, or no
            tokenizer for a vocabulary other than CLIP's. TypeError: not a CLIP model, no names or templates
            in their place, or a function whose prompt is no string.

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
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        contract, remedy = "be class names", "pass a list of them"
        raise TypeError(_errors.message(_NAME, "names", contract, _errors.describe(names), remedy))
    if _inputs.is_unordered(names):
        contract, remedy = "be class names in an order", "rows of text stand in the order of a list"
        raise TypeError(_errors.message(_NAME, "names", contract, _errors.describe(names), remedy))
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        nan = isinstance(name, float) and name != name
        if name is None or nan or isinstance(name, bytes):  # a prompt would spell it out
            contract, remedy = "be names that a prompt can hold", "pass texts"
            raise TypeError(_errors.message(_NAME, "names", contract, _errors.describe(name), remedy))
    _numbers.check_number(_NAME, "batch_size", batch_size, least=1, whole=True, remedy="256 is the default")
    prompts, owners = _prompts(names, templates)
    adapter = adapter_of(_NAME, model)
    if tokenizer is None:
        tokenizer = adapter.default_tokenizer()
    parameter = next(model.parameters())
    projected, hidden, reason = _rows(adapter, tokenizer, prompts, batch_size)
    owner = torch.tensor(owners, device=parameter.device)

    def class_mean(rows: Tensor) -> Tensor:
        units = normalize(rows, dim=1)
        sums = units.new_zeros(len(names), units.shape[1]).index_add(0, owner, units)
        return normalize(sums, dim=1).to(parameter.dtype).clone()

    if hidden is None:
        return ClassText(class_mean(projected), None, None, reason)
    # ℓ over classes: prompts of one class share its weight.
    counts = torch.bincount(owner, minlength=len(names)).float()
    lengths = torch.zeros_like(counts).index_add(0, owner, hidden.norm(dim=1)) / counts
    return ClassText(class_mean(projected), class_mean(hidden), float(lengths.mean()))


def _rows(
    adapter: Adapter, tokenizer: Any, prompts: list[str], batch_size: int
) -> tuple[Tensor, Tensor | None, str | None]:  # [P, D], [P, T], why there is no [P, T]
    """Float32 features of all prompts behind and before the projection, with a one where it has a bias."""
    projector, constant = adapter.text_projector(), False
    try:
        if projector is not None:
            constant = affine_text(_NAME, adapter).bias is not None
        hidden, projected = text_rows(
            adapter, tokenizer, prompts, ("hidden", "projected"), batch_size=batch_size
        )
    except (NonlinearError, NotImplementedError) as error:
        (projected,) = text_rows(adapter, tokenizer, prompts, ("projected",), batch_size=batch_size)
        return projected.float(), None, str(error)
    hidden = hidden.float()
    return projected.float(), with_one(hidden) if constant else hidden, None


def _prompts(names: list[Any], templates: Any) -> tuple[list[str], list[int]]:
    """Every prompt and the class it belongs to."""
    if not names:
        raise ValueError(f"{_NAME}: names must not be empty, got none; pass the class names")
    if isinstance(templates, Mapping):
        own = [_own_prompts(templates, name) for name in names]
        lacking = [name for name, prompts in zip(names, own, strict=True) if not prompts]
        if lacking:
            raise ValueError(
                f"{_NAME}: templates must hold prompts of every class, got none for {lacking[:5]}; add them"
            )
        pairs = [(prompt, i) for i, prompts in enumerate(own) for prompt in prompts]
    else:
        several = _several(templates)
        pairs = [(_prompt(template, name), i) for i, name in enumerate(names) for template in several]
    texts, owners = zip(*pairs, strict=True)
    return list(texts), list(owners)


def _own_prompts(templates: Mapping, name: Any) -> list[str]:
    """The whole prompts of one class."""
    given = templates.get(name) if isinstance(name, Hashable) else None
    found = [given] if isinstance(given, str) else [] if given is None else given
    found = list(found) if isinstance(found, Iterable) and not isinstance(found, bytes) else [found]
    for prompt in found:
        if not isinstance(prompt, str):
            contract, got = f"hold prompts of {name!r}", _errors.describe(prompt)
            raise TypeError(_errors.message(_NAME, "templates", contract, got, "pass whole prompts as texts"))
    return found


def _several(templates: Any) -> list[Any]:
    """The templates of all classes, each a text with ``{}`` or a function."""
    if isinstance(templates, str) or callable(templates):
        templates = (templates,)
    if not isinstance(templates, Iterable):
        contract, remedy = "be texts with {} or functions", "as in 'a photo of a {}.'"
        raise TypeError(_errors.message(_NAME, "templates", contract, _errors.describe(templates), remedy))
    found = list(templates)
    if not found:
        raise ValueError(f"{_NAME}: templates must not be empty, got none; pass ('{{}}',)")
    for template in found:
        if not isinstance(template, str) and not callable(template):
            contract, remedy = "hold texts with {} or functions", "as in 'a photo of a {}.'"
            raise TypeError(_errors.message(_NAME, "templates", contract, _errors.describe(template), remedy))
        if isinstance(template, str) and "{}" not in template:
            remedy = "as in 'a photo of a {}.'"
            raise ValueError(_errors.message(_NAME, "templates", "contain {}", template, remedy))
    return found


def _prompt(template: Any, name: Any) -> str:
    if isinstance(template, str):
        return template.replace("{}", str(name))
    prompt = template(name)
    if not isinstance(prompt, str):
        contract, got = f"make a string of {name!r}", _errors.describe(prompt)
        raise TypeError(_errors.message(_NAME, "templates", contract, got, "return the whole prompt"))
    return prompt
