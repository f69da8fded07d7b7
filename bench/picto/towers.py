"""open_clip's towers for training on a CPU: the same weights and formulas, bfloat16 products.

A CPU with avx512_bf16 multiplies bfloat16 more than twice as fast as float32, but its bfloat16
attention is three times slower; so the linear layers run in bfloat16 and attention in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Bf16Linear(torch.autograd.Function):
    """y = x W^T + b with bfloat16 operands; float32 weight gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias.bfloat16())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        flat, grad = x.flatten(0, 1), grad.bfloat16()
        rows = grad.flatten(0, 1)
        return grad @ weight, (rows.T @ flat).float(), rows.sum(0, dtype=torch.float32)


def run_block(block: torch.nn.Module, x: torch.Tensor, causal: bool) -> torch.Tensor:
    """One ResidualAttentionBlock on [B, L, D]."""
    attention, heads = block.attn, block.attn.num_heads
    qkv = Bf16Linear.apply(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).float()
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    x = x + Bf16Linear.apply(mixed, attention.out_proj.weight, attention.out_proj.bias)
    hidden = F.gelu(Bf16Linear.apply(block.ln_2(x), block.mlp.c_fc.weight, block.mlp.c_fc.bias))
    return x + Bf16Linear.apply(hidden, block.mlp.c_proj.weight, block.mlp.c_proj.bias)


def encode_image(model: torch.nn.Module, images: torch.Tensor, keep: int) -> torch.Tensor:
    """[B, 3, H, W] to [B, D], on `keep` random patches of each image (FLIP's patch dropout)."""
    visual = model.visual
    size, grid = visual.conv1.stride[0], visual.grid_size
    patches = images.unflatten(3, (grid[1], size)).unflatten(2, (grid[0], size))  # [B, 3, gy, size, gx, size]
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(len(images), grid[0] * grid[1], -1)
    if keep < patches.shape[1]:
        chosen = torch.rand(patches.shape[:2]).argsort(1)[:, :keep]
        patches = patches[torch.arange(len(patches))[:, None], chosen]
        places = F.embedding(chosen + 1, visual.positional_embedding)
    else:
        places = visual.positional_embedding[1:]
    x = F.linear(patches, visual.conv1.weight.flatten(1)) + places
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], 1))
    for block in visual.transformer.resblocks:
        x = run_block(block, x, causal=False)
    return visual.ln_post(x[:, 0]) @ visual.proj


def encode_text(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """[B, L] to [B, D] for any L up to the model's context; exact, since the tower is causal."""
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    for block in model.transformer.resblocks:
        x = run_block(block, x, causal=True)
    return model.ln_final(x[torch.arange(len(x)), tokens.argmax(1)]) @ model.text_projection
