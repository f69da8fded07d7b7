"""Features of a CLIP model's towers, behind or before their projections.

What stands before the projection is taken from the model's own forward pass: the input of the
projecting layer, or what the final layer norm gave where the projection is a bare matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from semobridge_ext.clip.projections import image_projection, image_projector, text_projection, text_projector


def _capture(
    module: nn.Module, run: Callable[[], Any], *, before: bool
) -> Tensor:  # input (before) or output of `module` in one run
    held: list[Tensor] = []
    hook = (
        module.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0]))
        if before
        else module.register_forward_hook(lambda _, inputs, output: held.append(output))
    )
    try:
        run()
    finally:
        hook.remove()
    return held[-1]


def _refuse(function: str, what: str) -> NotImplementedError:
    return NotImplementedError(
        f"{function}: model must pool its tokens in a known way, got {what}; take the features before the "
        "projection from the model yourself"
    )


def _image_rows(model: Any, images: Tensor) -> Tensor:  # [B, V]
    """Pre-projection features of one batch."""
    if hasattr(model, "vision_model"):  # Hugging Face
        return model.vision_model(pixel_values=images).pooler_output
    visual, (_, projector) = model.visual, image_projector(model)
    if isinstance(projector, nn.Linear):
        return _capture(projector, lambda: visual(images), before=True)
    if not hasattr(visual, "ln_post"):
        raise _refuse("encode_image", type(visual).__name__)
    x = _capture(visual.ln_post, lambda: visual(images), before=False)
    if x.dim() == 2:  # pooled before the norm: OpenAI's clip, final_ln_after_pool
        return x
    pool = getattr(visual, "pool_type", "tok")
    if pool not in ("tok", "avg") or getattr(visual, "attn_pool_contrastive", None) is not None:
        raise _refuse("encode_image", f"{type(visual).__name__} with pooling {pool!r}")
    return x[:, 0] if pool == "tok" else x[:, 1:].mean(dim=1)


def encode_image(
    model: Any,
    images: Tensor,  # [B, 3, H, W]
    *,
    project: bool = True,
    batch_size: int = 256,
) -> Tensor:  # [B, D], or [B, V] with project=False
    """Raw image features of a CLIP model, or what its projection reads.

    Args:
        model: open_clip model with a ViT or a timm trunk under a linear head, OpenAI ``clip`` with a
            ViT, Hugging Face ``CLIPModel``.
        images: [B, 3, H, W] preprocessed, on any device; moved to the model's device and dtype.
        project: False gives the pooled, normed features x before the projection A; ``x·A`` is what
            True gives.
        batch_size: images encoded at once.

    Returns:
        [B, D] or [B, V] in the model's dtype, not normalised, without gradient.

    Raises:
        TypeError: project=False and no linear projection. NotImplementedError: an unknown pooling.
    """
    if not project:
        image_projection(model)  # refuses in words where there is none
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = []
            for chunk in images.split(batch_size):
                rows = chunk.to(parameter.device, parameter.dtype)
                if project:
                    parts.append(_projected_image(model, rows))
                else:
                    parts.append(_image_rows(model, rows))
            return torch.cat(parts)
    finally:
        model.train(training)


def _projected_image(model: Any, images: Tensor) -> Tensor:
    if hasattr(model, "vision_model") and hasattr(model, "visual_projection"):
        return model.visual_projection(_image_rows(model, images))
    return model.encode_image(images)


def _text_rows(model: Any, ids: Any) -> Tensor:  # [B, T]
    """Pre-projection features of one batch."""
    if hasattr(model, "text_model"):  # Hugging Face
        inputs = dict(ids) if isinstance(ids, Mapping) else {"input_ids": ids}
        return model.text_model(**inputs).pooler_output
    _, projector = text_projector(model)
    if isinstance(projector, nn.Linear):
        return _capture(projector, lambda: model.encode_text(ids), before=True)
    tower = model.text if isinstance(getattr(model, "text", None), nn.Module) else model
    if not hasattr(tower, "ln_final"):
        raise _refuse("encode_text", type(tower).__name__)
    x = _capture(tower.ln_final, lambda: model.encode_text(ids), before=False)
    if x.dim() == 2:  # pooled before the norm (CoCa)
        return x
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", "argmax"))
    rows = torch.arange(len(x), device=x.device)
    if pool == "argmax":
        return x[rows, ids.argmax(dim=-1)]
    if pool == "eos":
        eos = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
        return x[rows, (ids == eos).int().argmax(dim=-1)]
    if pool in ("first", "last"):
        return x[:, 0 if pool == "first" else -1]
    raise _refuse("encode_text", f"{type(tower).__name__} with pooling {pool!r}")


def encode_text(
    model: Any,
    ids: Any,  # [B, L] int64, or a Hugging Face batch
    *,
    project: bool = True,
    batch_size: int = 256,
) -> Tensor:  # [B, D], or [B, T] with project=False
    """Raw text features of a CLIP model, or what its projection reads; see :func:`encode_image`.

    Args:
        model: as there.
        ids: [B, L] token ids, or a mapping of such tensors (Hugging Face tokenizers).
        project: False gives the pooled, normed features x before the projection W.
        batch_size: texts encoded at once.

    Returns:
        [B, D] or [B, T] in the model's dtype, not normalised, without gradient.

    Raises:
        TypeError: project=False and no linear projection. NotImplementedError: an unknown pooling.
    """
    if not project:
        text_projection(model)
    device = next(model.parameters()).device
    if isinstance(ids, Mapping):
        inputs = {name: torch.as_tensor(value).to(device) for name, value in ids.items()}
        count = len(inputs["input_ids"])
        batches: list[Any] = [
            {name: value[i : i + batch_size] for name, value in inputs.items()}
            for i in range(0, count, batch_size)
        ]
    else:
        batches = list(torch.as_tensor(ids).to(device).split(batch_size))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = []
            for batch in batches:
                rows = None if project and hasattr(model, "encode_text") else _text_rows(model, batch)
                if not project:
                    assert rows is not None
                    parts.append(rows)
                elif rows is None:
                    parts.append(model.encode_text(batch))
                else:
                    parts.append(model.text_projection(rows))
            return torch.cat(parts)
    finally:
        model.train(training)
