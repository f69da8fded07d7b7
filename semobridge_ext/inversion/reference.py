"""Oracle of inversion: OTI and OVI as docs/methods.md §3 and §4 state them (arXiv 2502.04263).

Full context, autograd, torch.optim.AdamW, through the model's own forward: a hook replaces the output of
the embedding, at the placeholder's or the patches' positions, by the learned vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semobridge_ext.inversion.spec import Inversion


def descend(
    features_of: Callable[[Tensor], Tensor],  # [B, R, T] -> [B, D]
    init: Tensor,  # [B, R, T]
    targets: Tensor,  # [B, D]
    steps: int,
    lr: float,
    weight_decay: float,
    record_steps: tuple[int, ...],
) -> Inversion:
    """AdamW on ``mean_B(1 − cos(features_of(v), targets))``."""
    v = init.clone().requires_grad_()
    optimizer = torch.optim.AdamW([v], lr=lr, weight_decay=weight_decay)
    losses, recorded = [], {}
    for step in range(steps):
        features = features_of(v)
        if step in record_steps:
            recorded[step] = F.normalize(features.detach(), dim=-1)
        loss = (1 - F.cosine_similarity(features, targets, dim=-1)).mean()
        losses.append(loss.detach())
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
    with torch.no_grad():
        final = F.normalize(features_of(v), dim=-1)
    if steps in record_steps:
        recorded[steps] = final
    done = torch.full((len(v),), steps)
    return Inversion(v.detach(), final, torch.stack(losses) if losses else final.new_empty(0), recorded, done)


def _hooked(module: nn.Module, replace: Callable[[Tensor], Tensor], call: Callable[[], Any]) -> Tensor:
    handle = module.register_forward_hook(lambda _module, _inputs, output: replace(output))
    try:
        out = call()
    finally:
        handle.remove()
    return getattr(out, "pooler_output", out)  # Hugging Face wraps it from version 5 on


@cache  # reading its merges takes longer than most of what is inverted here
def _clip_tokenizer(words: int) -> Any:
    if words != 49408:
        raise ValueError(
            f"reference.oti: tokenizer must be given for a model with {words} words, got None; pass the one "
            "that belongs to the model"
        )
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def _token_ids(tokenizer: Any, text: str, context: int) -> list[int]:
    if hasattr(tokenizer, "convert_tokens_to_ids"):  # Hugging Face
        out = tokenizer([text], padding="max_length", truncation=True, max_length=context)["input_ids"]
    else:
        try:
            out = tokenizer([text], context_length=context)
        except TypeError:
            out = tokenizer([text])
    return torch.as_tensor(out[0]).tolist()


def placeholder(
    tokenizer: Any, template: str, num_tokens: int, context: int
) -> tuple[Tensor, list[int]]:  # [L] ids, the positions of the placeholder
    """Where the ids of the template with one word and with another differ."""
    for pair in ("xz", "£€", "*$"):  # words of one token in most vocabularies
        texts = [template.replace("{}", " ".join([word] * num_tokens)) for word in pair]
        one, other = (_token_ids(tokenizer, text, context) for text in texts)
        positions = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        longer = _token_ids(tokenizer, texts[0], context + 8)
        whole = one in (longer[: len(one)], longer[-len(one) :])  # padded on the right, or on the left
        if len(one) == len(other) <= context and len(positions) == num_tokens and whole:
            return torch.tensor(one), positions
    raise ValueError(
        f"reference.oti: template must keep {num_tokens} placeholder(s) as single tokens within {context}, "
        f"got {template!r}; set {{}} off with spaces, shorten the template or use fewer tokens"
    )


def text_features(
    model: Any, *, tokenizer: Any = None, template: str = "a photo of {}", num_tokens: int = 1
) -> tuple[Callable[[Tensor], Tensor], int]:
    """v [B, R, T] -> features [B, D] through ``model.encode_text``, all positions; and T."""
    owner = getattr(model, "text", model)
    if hasattr(model, "text_model"):  # Hugging Face
        embedding, encode = model.text_model.embeddings.token_embedding, model.get_text_features
        context = model.config.text_config.max_position_embeddings
    else:
        embedding, encode = owner.token_embedding, model.encode_text
        context = owner.positional_embedding.shape[0] - (getattr(owner, "cls_emb", None) is not None)
    ids, positions = placeholder(
        tokenizer or _clip_tokenizer(embedding.num_embeddings), template, num_tokens, context
    )

    def features_of(v: Tensor) -> Tensor:
        def replace(rows: Tensor) -> Tensor:
            rows = rows.clone()
            rows[:, positions] = v.to(rows.dtype)
            return rows

        return _hooked(embedding, replace, lambda: encode(ids.to(v.device).expand(len(v), -1)))

    return features_of, embedding.embedding_dim


def image_features(model: Any) -> tuple[Callable[[Tensor], Tensor], int]:
    """v [B, P, V] -> features [B, D] through ``model.encode_image``, all patches; and V."""
    visual = getattr(model, "visual", model)
    if hasattr(model, "vision_model"):
        patches, encode = model.vision_model.embeddings.patch_embedding, model.get_image_features
        size, width = model.config.vision_config.image_size, patches.weight.shape[0]
    elif hasattr(visual, "trunk"):
        patches, encode = visual.trunk.patch_embed, model.encode_image
        size, width = visual.image_size, visual.trunk.embed_dim
    else:
        patches, encode = visual.conv1, model.encode_image
        size, width = getattr(visual, "image_size", None) or visual.input_resolution, patches.weight.shape[0]
    height, breadth = size if isinstance(size, tuple) else (size, size)

    def features_of(v: Tensor) -> Tensor:
        def replace(out: Tensor) -> Tensor:  # [B, V, h, w], or [B, U, V] from timm
            count = out.shape[1] if out.dim() == 3 else out.shape[2] * out.shape[3]
            rows = F.interpolate(v.transpose(1, 2), size=count, mode="nearest").to(out.dtype)
            return rows.transpose(1, 2) if out.dim() == 3 else rows.reshape(out.shape)

        images = torch.zeros(len(v), 3, height, breadth).to(next(patches.parameters()))
        return _hooked(patches, replace, lambda: encode(images))

    return features_of, width


def _start(init: Tensor | None, feats: Tensor, vectors: int, width: int) -> Tensor:
    return torch.randn(len(feats), vectors, width).to(feats) * 0.02 if init is None else init


def oti(
    model: Any,
    img_feats: Tensor,  # [B, D]
    *,
    tokenizer: Any = None,
    template: str = "a photo of {}",
    num_tokens: int = 1,
    steps: int = 150,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    init: Tensor | None = None,  # [B, R, T]
    record_steps: tuple[int, ...] = (),
) -> Inversion:
    """Textual inversion through ``model.encode_text``, all positions, autograd.

    Args:
        model: a CLIP of open_clip, OpenAI or Hugging Face.
        img_feats: [B, D] floating point, the targets.
        tokenizer: that of the model; None takes open_clip's.
        template: text around ``{}``, where the learned vectors go.
        num_tokens: R.
        steps: steps of AdamW.
        lr: its rate.
        weight_decay: its decoupled decay.
        init: [B, R, T] start; None draws it with deviation 0.02.
        record_steps: steps whose unit features are kept.

    Returns:
        Inversion: tokens [B, R, T], unit features [B, D], losses, what was recorded, steps done.

    Raises:
        ValueError: the tokenizer does not keep the placeholders.

    Numerics: in the dtype of the model. The loss is the mean of 1 − cosine.

    Memory: autograd's record of the whole text tower.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model = sb.load_picto_clip()[0]
        >>> target = torch.ones(1, model.text_projection.shape[1])
        >>> sb.reference.oti(model, target, steps=2).losses.shape
        torch.Size([2])

    arXiv 2502.04263; docs/methods.md §3.
    """
    features_of, width = text_features(model, tokenizer=tokenizer, template=template, num_tokens=num_tokens)
    init = _start(init, img_feats, num_tokens, width)
    return descend(features_of, init, img_feats, steps, lr, weight_decay, tuple(record_steps))


def ovi(
    model: Any,
    txt_feats: Tensor,  # [B, D]
    *,
    num_patches: int = 1,
    steps: int = 1000,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    init: Tensor | None = None,  # [B, P, V]
    record_steps: tuple[int, ...] = (),
) -> Inversion:
    """Visual inversion through ``model.encode_image``, all patches, autograd.

    Args:
        model: a CLIP of open_clip, OpenAI or Hugging Face.
        txt_feats: [B, D] floating point, the targets.
        num_patches: P.
        steps: steps of AdamW.
        lr: its rate.
        weight_decay: its decoupled decay.
        init: [B, P, V] start; None draws it with deviation 0.02.
        record_steps: steps whose unit features are kept.

    Returns:
        Inversion: tokens [B, P, V], unit features [B, D], losses, what was recorded, steps done.

    Raises:
        RuntimeError: ``init`` does not fit the model (PyTorch's own message).

    Numerics: in the dtype of the model. The loss is the mean of 1 − cosine.

    Memory: autograd's record of the whole vision tower.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model = sb.load_picto_clip()[0]
        >>> target = torch.ones(1, model.text_projection.shape[1])
        >>> sb.reference.ovi(model, target, steps=2).losses.shape
        torch.Size([2])

    arXiv 2502.04263; docs/methods.md §4.
    """
    features_of, width = image_features(model)
    init = _start(init, txt_feats, num_patches, width)
    return descend(features_of, init, txt_feats, steps, lr, weight_decay, tuple(record_steps))
