"""The text tower of a CLIP model as plain tensors, with a template's placeholder as learned rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import LearnedRows, Linear, Tower
from semobridge_ext.clip.blocks import Reader, hf_blocks, resblocks
from semobridge_ext.clip.template import default_tokenizer, template_ids

_NAME = "text_tower"
_REMEDY = "use a CLIP or SigLIP-style text transformer, or reference.oti"


class _Parts(NamedTuple):
    """Where one kind of model keeps its text tower."""

    kind: str
    embedding: Tensor  # [words, T]
    positions: Tensor  # [L, T]
    pool: str  # argmax, eos or last
    eos: int | None
    pad: int | None  # padding that is masked out


def _openai_mask(owner: Any) -> Tensor | None:
    if hasattr(owner, "attn_mask"):
        return owner.attn_mask
    return owner.transformer.resblocks[0].attn_mask  # OpenAI's clip keeps it in the blocks


def _is_causal(reader: Reader, mask: Tensor | None) -> bool:
    if mask is None:
        return False
    expected = torch.full_like(mask, float("-inf")).triu(1)
    if not torch.equal(mask, expected):
        raise reader.refuse("an attention mask that is neither causal nor absent")
    return True


def _projection(reader: Reader, value: Any) -> Linear | None:
    if value is None:
        return None
    if isinstance(value, nn.Linear):
        return reader.linear(value, "text_projection")
    return Linear(reader.tensor(value), None)


def _read_open_clip(reader: Reader, model: Any) -> tuple[Tower, _Parts]:
    owner = model.text if hasattr(model, "text") else model
    kind = f"{type(model).__name__}" if owner is model else f"{type(model).__name__}.{type(owner).__name__}"
    if not hasattr(owner, "token_embedding") or not hasattr(owner, "ln_final"):
        raise reader.refuse(kind)
    if getattr(owner, "cls_emb", None) is not None:
        raise reader.refuse(f"{kind} with a class embedding (CoCa)")
    blocks, heads, activation = resblocks(reader, owner.transformer.resblocks)
    causal = _is_causal(reader, _openai_mask(owner))
    tower = Tower(
        name=kind,
        heads=heads,
        activation=activation,
        causal=causal,
        blocks=blocks,
        norm_final=reader.norm(owner.ln_final, "ln_final"),
        projection=_projection(reader, owner.text_projection),
    )
    pool = getattr(owner, "pool_type", getattr(owner, "text_pool_type", "argmax"))
    if pool not in ("argmax", "eos", "last", "first"):
        raise reader.refuse(f"{kind} with text pooling {pool!r}")
    padded = getattr(owner, "use_pad_mask", False)
    return tower, _Parts(
        kind,
        owner.token_embedding.weight,
        owner.positional_embedding,
        pool,
        getattr(owner, "eos_id", getattr(owner, "text_eos_id", None)),
        owner.pad_id if padded else None,
    )


def _read_hugging_face(reader: Reader, model: Any) -> tuple[Tower, _Parts]:
    text, kind = model.text_model, type(model).__name__
    if not hasattr(text, "final_layer_norm") or hasattr(text, "head"):
        raise reader.refuse(kind)
    blocks, heads, activation = hf_blocks(reader, text.encoder.layers)
    tower = Tower(
        name=kind,
        heads=heads,
        activation=activation,
        causal=True,
        blocks=blocks,
        norm_final=reader.norm(text.final_layer_norm, "final_layer_norm"),
        projection=_projection(reader, model.text_projection),
    )
    eos = text.eos_token_id
    embeddings = text.embeddings
    return tower, _Parts(
        kind,
        embeddings.token_embedding.weight,
        embeddings.position_embedding.weight,
        "argmax" if eos == 2 else "eos",  # configurations from before the id was corrected say 2
        eos,
        None,
    )


def _read(model: Any) -> tuple[Tower, _Parts]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{_NAME}: model must be a CLIP model (torch.nn.Module), got {type(model).__name__}; "
            "open_clip.create_model_and_transforms returns it first"
        )
    double = next(model.parameters()).dtype == torch.float64
    reader = Reader(_NAME, torch.float64 if double else torch.float32, _REMEDY)
    if hasattr(model, "text_model"):
        return _read_hugging_face(reader, model)
    if hasattr(model, "text") or hasattr(model, "token_embedding"):
        return _read_open_clip(reader, model)
    raise reader.refuse(type(model).__name__)


def _pool_position(parts: _Parts, ids: Tensor) -> int:
    if parts.pool == "argmax":
        return int(ids.argmax())
    if parts.pool == "eos":
        return int(torch.eq(ids, -1 if parts.eos is None else parts.eos).int().argmax())
    return 0 if parts.pool == "first" else len(ids) - 1


def text_tower(
    model: Any,
    template: str = "a photo of {}",
    *,
    num_tokens: int = 1,
    tokenizer: Any = None,
) -> tuple[Tower, LearnedRows]:
    """The text tower of a CLIP model with ``num_tokens`` learned rows in place of ``{}``.

    Args:
        model: open_clip ``CLIP`` or ``CustomTextCLIP``, OpenAI ``clip``, Hugging Face ``CLIPModel``.
        template: contains ``{}`` once, anywhere.
        tokenizer: of the model; CLIP's own where the vocabulary is CLIP's.

    Returns:
        The tower in float32 (float64 for a float64 model), and its rows: constants with their
        positional embedding, and which positions are learned.

    Raises:
        NotImplementedError: a tower that computes something else (the message names it).
        TypeError: not a model. ValueError: template or tokenizer do not fit.
    """
    tower, parts = _read(model)
    if tokenizer is None:
        tokenizer = default_tokenizer(_NAME, parts.embedding.shape[0])
    context = parts.positions.shape[0]
    ids, learned = template_ids(_NAME, tokenizer, template, num_tokens, context)
    ids = ids.to(parts.embedding.device)
    pool = _pool_position(parts, ids)
    base = parts.embedding.detach()[ids].to(tower.dtype)
    base[learned] = 0
    base = base + parts.positions.detach()[: len(ids)].to(tower.dtype)
    source = [learned.index(i) if i in learned else -1 for i in range(len(ids))]
    if parts.pad is not None:
        keep = [i for i in range(len(ids)) if ids[i] != parts.pad or i in learned]
        if pool not in keep:
            raise Reader(_NAME, tower.dtype, _REMEDY).refuse(f"{parts.kind} that pools a padding token")
        base, source, pool = base[keep], [source[i] for i in keep], keep.index(pool)
    return tower, LearnedRows(base, tuple(source), pool)
