"""Class text features of a CLIP model, projected and un-projected, from prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from semobridge_ext import _errors

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
        model: open_clip ``CLIP``, OpenAI ``clip`` or Hugging Face ``CLIPModel``.
        names: C class names.
        templates: prompts with ``{}`` in the name's place, an ensemble for all classes; or a mapping
            from every class name to its own whole prompts (any number each).
        tokenizer: a list of strings to token ids; None: open_clip's standard one.
        batch_size: prompts encoded at once.

    Returns:
        ClassText: ``projected`` [C, D] and ``hidden`` [C, T] unit rows in the model's dtype, on its
        device, and the text length ℓ for ``Bridge(text_length=...)``.

    Raises:
        ValueError: no names, no prompts, a template without ``{}``, a class without prompts.
        TypeError: a model of another kind.

    Memory: O(batch_size) activations beside the result.

    Example:
        >>> import semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> prompts = ["{}", "an icon of {}"]
        >>> text = sb.class_text_features(model, ["star", "house"], prompts, tokenizer=tokenizer)
        >>> text.projected.shape, text.hidden.shape
        (torch.Size([2, 192]), torch.Size([2, 192]))
    """
    prompts, owners = _prompts(list(names), templates)
    if tokenizer is None:
        tokenizer = _standard_tokenizer()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    projected: list[Tensor] = []
    hidden: list[Tensor] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(prompts), batch_size):
                before, after = _encode(model, tokenizer(prompts[start : start + batch_size]), device)
                hidden.append(before.float())
                projected.append(after.float())
    finally:
        model.train(was_training)
    owner = torch.tensor(owners, device=device)
    dtype = next(model.parameters()).dtype

    def class_mean(rows: Tensor) -> Tensor:
        units = normalize(rows, dim=1)
        sums = units.new_zeros(len(names), units.shape[1]).index_add(0, owner, units)
        return normalize(sums, dim=1).to(dtype).clone()

    every = torch.cat(hidden)
    # ℓ over classes: prompts of one class share its weight.
    counts = torch.bincount(owner, minlength=len(names)).float()
    lengths = torch.zeros_like(counts).index_add(0, owner, every.norm(dim=1)) / counts
    return ClassText(class_mean(torch.cat(projected)), class_mean(every), float(lengths.mean()))


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


def _standard_tokenizer() -> Callable[[list[str]], Any]:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"{_NAME}: tokenizer must be given where open_clip is missing; pip install open_clip_torch"
        ) from error
    return open_clip.get_tokenizer("ViT-B-32")


def _encode(model: Any, tokens: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features [P, T] before and [P, D] after the text projection."""
    if hasattr(model, "text_model") and hasattr(model, "text_projection"):  # Hugging Face CLIPModel
        inputs = tokens if isinstance(tokens, Mapping) else {"input_ids": torch.as_tensor(tokens)}
        inputs = {name: torch.as_tensor(value).to(device) for name, value in inputs.items()}
        pooled = model.text_model(**inputs).pooler_output
        return pooled, model.text_projection(pooled)
    tower = getattr(model, "text", None)
    tower = tower if isinstance(tower, nn.Module) else model
    known = isinstance(getattr(tower, "ln_final", None), nn.Module) and hasattr(model, "encode_text")
    if not known or getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax")) != "argmax":
        raise TypeError(
            f"{_NAME}: model must be a CLIP that pools text at the end-of-text token, got "
            f"{type(model).__name__}; compute t_c and s_c yourself and pass them to the classifier"
        )
    held: list[Tensor] = []
    norm: Any = tower.ln_final
    hook = norm.register_forward_hook(lambda module, inputs, output: held.append(output))
    try:
        tokens = torch.as_tensor(tokens).to(device)
        after = model.encode_text(tokens)
    finally:
        hook.remove()
    x = held[0]
    if x.shape[0] != len(tokens):  # OpenAI's clip keeps [L, B, T] inside its transformer
        x = x.transpose(0, 1)
    return x[torch.arange(len(tokens), device=device), tokens.argmax(dim=-1)], after
