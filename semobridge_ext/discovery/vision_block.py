"""The last block of a vision tower, trained on what enters it, and the cache of that.

    K, V = LN1(x)·W + b for all L tokens        q = LN1(x_p)·W + b for the pooled token p alone
    y = x_p + attention(q, K, V)·Wo + b          f = LN_post(y + act(LN2(y)·W1 + b)·W2 + b)·P

The blocks before it are frozen, so its input is computed once an image and view, and a step costs one block.
Of this block only the pooled token's row reaches the feature: queries and MLP of the others are not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent.forward import run_block
from semobridge_ext._engines.tower_descent.spec import Linear, Norm, Tower
from semobridge_ext.clip.adapter import Adapter, VisionInput
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.families import adapter_of

_REMEDY = "use a vision transformer that pools a class token"


class Facts(NamedTuple):
    """What the block computes beside its tensors."""

    heads: int
    activation: str
    tokens: int  # L
    pooled: int  # p
    eps: tuple[float, float, float]  # of LN1, LN2 and LN_post


class VisionBlock(NamedTuple):
    """Tensors by name, ``block_…``; ``fixed`` ones, of LN_post and P, are not trained."""

    trained: dict[str, Tensor]
    fixed: dict[str, Tensor]
    facts: Facts

    @property
    def width(self) -> int:  # T
        return len(self.trained["block_norm1_weight"])

    @property
    def features(self) -> int:  # D
        found = self.fixed.get("block_projection_weight")
        return self.width if found is None else found.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> VisionBlock:
        """Copies: a training changes them."""

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {n: t.detach().to(device, dtype, copy=True).contiguous() for n, t in tensors.items()}

        return VisionBlock(copied(self.trained), copied(self.fixed), self.facts)


# -- from a model --------------------------------------------------------------------------------------


def tower_of(function: str, model: Any) -> tuple[Adapter, Tower, VisionInput]:
    """The vision tower as plain tensors, in float32 (float64 for a float64 model); refused by name."""
    adapter = adapter_of(function, model)
    double = next(model.parameters()).dtype == torch.float64
    reader = Reader(function, torch.float64 if double else torch.float32, _REMEDY)
    reader.no_hooks(adapter.vision_module, "the vision tower")
    tower, rows = adapter.read_vision(reader)
    if rows.pooled is None:
        raise reader.refuse(f"{tower.name} with a pooling block")
    return adapter, tower, rows


def block_of(function: str, model: Any) -> VisionBlock:
    """The last block of a model, and what stands behind it."""
    _, tower, rows = tower_of(function, model)
    last, pooled = tower.blocks[-1], rows.pooled
    assert pooled is not None
    trained: dict[str, Tensor] = {}
    for name in ("norm1", "qkv", "out", "norm2", "fc", "proj"):
        part: Norm | Linear = getattr(last, name)
        trained |= _named(name, part)
    fixed: dict[str, Tensor] = {}
    for name, end in (("final", tower.norm_final), ("projection", tower.projection)):
        fixed |= {} if end is None else _named(name, end)
    final = 1e-5 if tower.norm_final is None else tower.norm_final.eps
    eps = (last.norm1.eps, last.norm2.eps, final)
    return VisionBlock(trained, fixed, Facts(tower.heads, tower.activation, len(rows.positions), pooled, eps))


def _named(name: str, part: Norm | Linear) -> dict[str, Tensor]:
    found = {f"block_{name}_weight": part.weight}
    return found if part.bias is None else {**found, f"block_{name}_bias": part.bias}


def inputs_of(
    adapter: Adapter,
    tower: Tower,
    rows: VisionInput,
    images: Tensor,  # [B, 3, H, W]
) -> Tensor:  # [B, L, T]
    """What enters the last block."""
    parameter = next(adapter.model.parameters())
    patches = adapter.patch_rows(images.to(parameter.device, parameter.dtype)).to(tower.dtype)
    if rows.prefix is not None:
        patches = torch.cat([rows.prefix.expand(len(patches), -1, -1), patches], dim=1)
    if patches.shape[1] != len(rows.positions):
        got = f"{patches.shape[1]} tokens of images of {list(images.shape[2:])}"
        contract, remedy = f"give {len(rows.positions)} tokens", "preprocess them with the model's transform"
        raise ValueError(_errors.message(adapter.function, "images", contract, got, remedy))
    x = patches + rows.positions
    if tower.norm_pre is not None:
        norm = tower.norm_pre
        x = layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    for block in tower.blocks[:-1]:
        x = run_block(tower, block, x)[0]
    return x


# -- the forward pass ------------------------------------------------------------------------------------


def features(
    p: Mapping[str, Tensor],  # trained and fixed tensors
    facts: Facts,
    x: Tensor,  # [B, L, T]
) -> Tensor:  # [B, D]
    """The image features of a tower whose last block has these weights; differentiable in all of them."""
    count, _, width = x.shape

    def normed(rows: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(rows, rows.shape[-1:], p[f"block_{name}_weight"], p.get(f"block_{name}_bias"), eps)

    def product(rows: Tensor, name: str, columns: slice = slice(None)) -> Tensor:
        y, bias = rows @ p[f"block_{name}_weight"][:, columns], p.get(f"block_{name}_bias")
        return y if bias is None else y + bias[columns]

    def by_head(rows: Tensor) -> Tensor:  # [B, l, T] -> [B, heads, l, T/heads]
        return rows.reshape(count, -1, facts.heads, width // facts.heads).transpose(1, 2)

    y, h = x[:, facts.pooled], normed(x, "norm1", facts.eps[0])
    q = product(h[:, facts.pooled : facts.pooled + 1], "qkv", slice(0, width))
    k, v = product(h, "qkv", slice(width, 3 * width)).chunk(2, dim=2)
    seen = scaled_dot_product_attention(by_head(q), by_head(k), by_head(v))
    y = y + product(seen.transpose(1, 2).reshape(count, width), "out")
    hidden = product(normed(y, "norm2", facts.eps[1]), "fc")
    if facts.activation == "quick_gelu":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        hidden = gelu(hidden, approximate="tanh" if facts.activation == "gelu_tanh" else "none")
    y = y + product(hidden, "proj")
    if "block_final_weight" in p:
        y = normed(y, "final", facts.eps[2])
    return product(y, "projection") if "block_projection_weight" in p else y
