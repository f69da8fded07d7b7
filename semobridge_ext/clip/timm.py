"""timm's VisionTransformer as the trunk of an open_clip model, with class-token or attention pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import Block, Linear, Tower
from semobridge_ext.clip.adapter import Projector, VisionInput
from semobridge_ext.clip.blocks import Blocks, Reader, alike, pooling_block


def is_trunk(visual: Any) -> bool:
    """Whether open_clip's vision tower is a TimmModel."""
    return hasattr(visual, "trunk")


def _layers(visual: Any) -> list[tuple[str, Any]]:
    """What computes something behind the trunk's features, by its path.

    timm's convolutional trunks keep pooling and norm in ``trunk.head``, which ends in ``fc``: what stands
    before that belongs to the trunk.
    """
    own = getattr(visual.trunk, "head", None)
    last = getattr(own, "fc", None)
    layers = [("trunk.head", own)] if last is None else [("trunk.head.fc", last)]
    layers += [(f"head.{name}", layer) for name, layer in visual.head.named_children()]
    return [(n, layer) for n, layer in layers if not isinstance(layer, (nn.Identity, nn.Dropout, type(None)))]


def image_projector(visual: Any) -> Projector | None:
    layers = _layers(visual)
    if len(layers) > 1:  # pooling and projection, or two projections
        return Projector("model.visual.head", visual.head)
    return Projector(f"model.visual.{layers[0][0]}", layers[0][1]) if layers else None


def patch_rows(visual: Any, images: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, U, V]
    return visual.trunk.patch_embed(images)


def _blocks(reader: Reader, blocks: Any) -> Blocks:
    found, heads, activations = [], [], []
    for b in blocks:
        attention = b.attn
        if type(b).__name__ != "Block" or type(attention).__name__ != "Attention":
            raise reader.refuse(f"{type(b).__name__} with {type(attention).__name__}")
        for name in ("q_norm", "k_norm", "norm", "gate"):
            reader.identity(getattr(attention, name, None), f"attn.{name}")
        reader.identity(getattr(b.mlp, "norm", None), "mlp.norm")
        found.append(
            Block(
                norm1=reader.needed_norm(b.norm1, "norm1"),
                qkv=reader.linear(attention.qkv, "attn.qkv"),
                out=reader.linear(attention.proj, "attn.proj", getattr(b, "ls1", None)),
                norm2=reader.needed_norm(b.norm2, "norm2"),
                fc=reader.linear(b.mlp.fc1, "mlp.fc1"),
                proj=reader.linear(b.mlp.fc2, "mlp.fc2", getattr(b, "ls2", None)),
            )
        )
        heads.append(attention.num_heads)
        activations.append(reader.activation(b.mlp.act))
    return alike(reader, found, heads, activations)


def _pooling_block(reader: Reader, trunk: Any, heads: int, activation: str) -> Block:
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
    return pooling_block(
        query,
        kv,
        norm1=reader.needed_norm(trunk.norm, "norm"),
        out=reader.linear(pool.proj, "attn_pool.proj"),
        norm2=reader.needed_norm(pool.norm, "attn_pool.norm"),
        fc=reader.linear(pool.mlp.fc1, "attn_pool.mlp.fc1"),
        proj=reader.linear(pool.mlp.fc2, "attn_pool.mlp.fc2"),
    )


def _head(reader: Reader, visual: Any) -> Linear | None:
    layers = [visual.trunk.head, *getattr(visual, "head", [])]
    layers = [m for m in layers if not isinstance(m, (nn.Identity, nn.Dropout))]
    if len(layers) > 1:
        raise reader.refuse(f"a head of {len(layers)} layers")
    return reader.linear(layers[0], "head") if layers else None


def read_vision(reader: Reader, visual: Any) -> tuple[Tower, VisionInput]:
    trunk = visual.trunk
    kind = type(trunk).__name__
    if kind != "VisionTransformer":
        raise reader.refuse(f"timm {kind}")
    if trunk.global_pool not in ("token", "map"):
        raise reader.refuse(f"timm {kind} with pooling {trunk.global_pool!r}")
    if trunk.pos_embed is None:
        raise reader.refuse(f"timm {kind} without a learned positional embedding")
    reader.identity(trunk.fc_norm, "fc_norm")
    blocks, heads, activation = _blocks(reader, trunk.blocks)
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
        projection=_head(reader, visual),
    )
    tokens = [reader.tensor(t)[0] for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    if mapped and tokens:
        raise reader.refuse(f"timm {kind} with attention pooling and class tokens")
    positions = reader.tensor(trunk.pos_embed)[0]
    prefix = torch.cat(tokens) if tokens else None
    if prefix is not None and trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(prefix), positions])
    return tower, VisionInput(prefix, positions, None if mapped else 0)
