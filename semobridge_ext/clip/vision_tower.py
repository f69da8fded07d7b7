"""The vision transformer of a CLIP model as plain tensors, with pseudo-patches as learned rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import Block, LearnedRows, Linear, Tower
from semobridge_ext.clip.blocks import Reader, hf_blocks, resblocks, timm_blocks

_NAME = "vision_tower"
_REMEDY = "use a vision transformer with class-token or attention pooling"


def _rows(prefix: Tensor | None, positions: Tensor, patches: int, num_patches: int) -> LearnedRows:
    """Class (and register) tokens, then patch u holding pseudo-patch ⌊u·P/U⌋."""
    constants = 0 if prefix is None else prefix.shape[0]
    base = positions.clone()
    if prefix is not None:
        base[:constants] += prefix
    source = [-1] * constants + [u * num_patches // patches for u in range(patches)]
    return LearnedRows(base, tuple(source), 0 if constants else None)


def _open_clip(reader: Reader, visual: Any, num_patches: int) -> tuple[Tower, LearnedRows]:
    kind = type(visual).__name__
    if getattr(visual, "attn_pool", None) is not None:
        raise reader.refuse(f"{kind} with an attentional pooler (CoCa)")
    if getattr(visual, "pool_type", "tok") != "tok":
        raise reader.refuse(f"{kind} with pooling {visual.pool_type!r}")
    blocks, heads, activation = resblocks(reader, visual.transformer.resblocks)
    tower = Tower(
        name=kind,
        heads=heads,
        activation=activation,
        causal=False,
        blocks=blocks,
        norm_pre=reader.norm(visual.ln_pre, "ln_pre"),
        norm_final=reader.norm(visual.ln_post, "ln_post"),
        projection=None if visual.proj is None else Linear(reader.tensor(visual.proj), None),
    )
    positions = reader.tensor(visual.positional_embedding)
    prefix = reader.tensor(visual.class_embedding).reshape(1, -1)
    return tower, _rows(prefix, positions, positions.shape[0] - 1, num_patches)


def _hugging_face(reader: Reader, model: Any, num_patches: int) -> tuple[Tower, LearnedRows]:
    vision, kind = model.vision_model, type(model).__name__
    if not hasattr(vision, "pre_layrnorm") or not hasattr(vision.embeddings, "class_embedding"):
        raise reader.refuse(kind)
    blocks, heads, activation = hf_blocks(reader, vision.encoder.layers)
    tower = Tower(
        name=kind,
        heads=heads,
        activation=activation,
        causal=False,
        blocks=blocks,
        norm_pre=reader.norm(vision.pre_layrnorm, "pre_layrnorm"),
        norm_final=reader.norm(vision.post_layernorm, "post_layernorm"),
        projection=reader.linear(model.visual_projection, "visual_projection"),
    )
    positions = reader.tensor(vision.embeddings.position_embedding.weight)
    prefix = reader.tensor(vision.embeddings.class_embedding).reshape(1, -1)
    return tower, _rows(prefix, positions, positions.shape[0] - 1, num_patches)


def _pooling_block(reader: Reader, trunk: Any, heads: int, activation: str) -> Block:
    """timm's attention pooling (MAP): one constant query over all rows, then an MLP."""
    pool = trunk.attn_pool
    if type(pool).__name__ != "AttentionPoolLatent" or pool.latent_len != 1 or pool.mlp is None:
        raise reader.refuse(f"attention pooling {type(pool).__name__}")
    if pool.pos_embed is not None or pool.num_heads != heads or pool.pool != "token":
        raise reader.refuse("attention pooling with positions, other heads or other pooling")
    for name in ("q_norm", "k_norm"):
        reader.identity(getattr(pool, name), f"attn_pool.{name}")
    if reader.activation(pool.mlp.act) != activation:
        raise reader.refuse("attention pooling with another activation than the blocks")
    kv = reader.linear(pool.kv, "attn_pool.kv")
    width = kv.weight.shape[0]
    if kv.weight.shape[1] != 2 * width:
        raise reader.refuse("attention pooling of another width than the trunk")
    with torch.no_grad():
        query = reader.tensor(pool.q(pool.latent)).reshape(-1)
    bias = None if kv.bias is None else torch.cat([torch.zeros_like(query), kv.bias])
    return Block(
        norm1=reader.needed_norm(trunk.norm, "norm"),
        qkv=Linear(torch.cat([torch.zeros_like(kv.weight[:, :width]), kv.weight], 1), bias),
        out=reader.linear(pool.proj, "attn_pool.proj"),
        norm2=reader.needed_norm(pool.norm, "attn_pool.norm"),
        fc=reader.linear(pool.mlp.fc1, "attn_pool.mlp.fc1"),
        proj=reader.linear(pool.mlp.fc2, "attn_pool.mlp.fc2"),
        query=query,
    )


def _timm_head(reader: Reader, visual: Any, trunk: Any) -> Linear | None:
    layers = [trunk.head, *getattr(visual, "head", [])]
    layers = [m for m in layers if not isinstance(m, (nn.Identity, nn.Dropout))]
    if len(layers) > 1:
        raise reader.refuse(f"a head of {len(layers)} layers")
    return reader.linear(layers[0], "head") if layers else None


def _timm(reader: Reader, visual: Any, num_patches: int) -> tuple[Tower, LearnedRows]:
    trunk = getattr(visual, "trunk", visual)
    kind = type(trunk).__name__
    if kind != "VisionTransformer":
        raise reader.refuse(f"timm {kind}")
    if trunk.global_pool not in ("token", "map"):
        raise reader.refuse(f"timm {kind} with pooling {trunk.global_pool!r}")
    if trunk.pos_embed is None:
        raise reader.refuse(f"timm {kind} without a learned positional embedding")
    reader.identity(trunk.fc_norm, "fc_norm")
    blocks, heads, activation = timm_blocks(reader, trunk.blocks)
    mapped = trunk.global_pool == "map"
    if mapped:
        blocks = (*blocks, _pooling_block(reader, trunk, heads, activation))
    tower = Tower(
        name=f"timm {kind}",
        heads=heads,
        activation=activation,
        causal=False,
        blocks=blocks,
        norm_pre=reader.norm(trunk.norm_pre, "norm_pre"),
        norm_final=None if mapped else reader.norm(trunk.norm, "norm"),
        projection=_timm_head(reader, visual, trunk),
    )
    patches = trunk.patch_embed.num_patches
    tokens = [reader.tensor(t)[0] for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    if mapped and tokens:
        raise reader.refuse(f"timm {kind} with attention pooling and class tokens")
    positions = reader.tensor(trunk.pos_embed)[0]
    prefix = torch.cat(tokens) if tokens else None
    if prefix is not None and trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(prefix), positions])
    return tower, _rows(prefix, positions, patches, num_patches)


def vision_tower(model: Any, *, num_patches: int = 1) -> tuple[Tower, LearnedRows]:
    """The vision transformer of a CLIP model with ``num_patches`` learned pseudo-patches.

    Args:
        model: open_clip model with a ``VisionTransformer`` or a timm trunk (SigLIP), OpenAI ``clip``
            with a ViT, Hugging Face ``CLIPModel``.
        num_patches: P; patch u of U holds pseudo-patch ⌊u·P/U⌋ (nearest interpolation).

    Returns:
        The tower in float32 (float64 for a float64 model), and its rows.

    Raises:
        NotImplementedError: ResNets and other towers (the message names what was found).
        TypeError: not a model. ValueError: more pseudo-patches than patches.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{_NAME}: model must be a CLIP model (torch.nn.Module), got {type(model).__name__}; "
            "open_clip.create_model_and_transforms returns it first"
        )
    double = next(model.parameters()).dtype == torch.float64
    reader = Reader(_NAME, torch.float64 if double else torch.float32, _REMEDY)
    if hasattr(model, "vision_model"):
        tower, rows = _hugging_face(reader, model, num_patches)
    else:
        visual: Any = getattr(model, "visual", None)
        if visual is None:
            raise reader.refuse(type(model).__name__)
        if hasattr(visual, "trunk"):
            tower, rows = _timm(reader, visual, num_patches)
        elif hasattr(visual, "class_embedding") and hasattr(visual, "ln_pre"):
            tower, rows = _open_clip(reader, visual, num_patches)
        else:
            raise reader.refuse(type(visual).__name__)
    patches = sum(s >= 0 for s in rows.source)
    if num_patches > patches:
        raise ValueError(
            f"{_NAME}: num_patches must be at most the model's {patches} patches, got {num_patches}; "
            "1 to 4 is usual"
        )
    return tower, rows
