"""Attention of a prefix tree's nodes over their ancestors: a ViT-B/32 text tower's, 640 prompts.

The tree is that of 80 templates × 8 names, 12 tokens deep at most. Members: `eager` gathers keys and values
along every node's ancestors, `by prompt` those of every prompt once and runs causal attention over all its
positions, `native` follows the lists; `full` is what the tree saves: causal attention over 77 positions of
every prompt.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from semobridge_ext._ops.tree_attention import cpu, eager
from semobridge_ext._ops.tree_attention.reference import tree_attention as oracle
from semobridge_ext.clip.prefix_tree import Group, groups, sort_prompts

WIDTH, HEADS, TEMPLATES, NAMES, CONTEXT = 512, 8, 80, 8, 77


@cache
def tree() -> Group:
    """Templates of three to seven tokens that share their first ones in groups, names of one to three."""
    generator = torch.Generator().manual_seed(0)
    prompts, ends = [], []
    for t in range(TEMPLATES):
        head = [1, 2 + t // 40, 5 + t // 8, *([20 + t] * (1 + t % 4))]
        for n in range(NAMES):
            prompt = [*head, *([200 + n] * (1 + n % 3)), 900, 999]
            ends.append(len(prompt) - 1)
            prompts.append(prompt + [0] * (CONTEXT - len(prompt)))
    order = torch.randperm(len(prompts), generator=generator)
    sorted_ = sort_prompts(torch.tensor(prompts)[order], torch.tensor(ends)[order])
    (group,) = groups(sorted_, 1 << 20, torch.device("cpu"))
    return group


@cache
def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3 * WIDTH, generator=generator).chunk(3, dim=1)


@cache
def want() -> Tensor:
    return oracle(*(t.double() for t in rows(len(tree().tokens))), tree().paths, HEADS)


def by_prompt() -> Tensor:
    """Every prompt's path gathered once, queries of all its positions; the tree's own nodes picked out."""
    paths = tree().paths
    split = [
        t[paths.nodes.long()].unflatten(2, (HEADS, -1)).transpose(1, 2) for t in rows(len(tree().tokens))
    ]
    out = scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2)
    return out[paths.path_of.long(), paths.counts.long() - 1]


@pytest.mark.parametrize("member", ["eager", "by prompt", "native", "full"])
def test_tree(timed, member: str) -> None:
    group, count = tree(), len(tree().tokens)
    function, right = by_prompt, want()
    if member == "full":
        prompts = len(group.ends)
        full = rows(prompts * CONTEXT)
        split = [t.reshape(prompts, CONTEXT, HEADS, -1).transpose(1, 2) for t in full]
        right = scaled_dot_product_attention(*(t[:4].double() for t in split), is_causal=True).flatten(0, 2)

        def function() -> Tensor:
            return scaled_dot_product_attention(*split, is_causal=True)[:4].flatten(0, 2)
    elif member != "by prompt":
        run = cpu if member == "native" else eager

        def function() -> Tensor:
            return run.tree_attention(*rows(count), group.paths, HEADS)

    keys = int(group.paths.counts.sum())
    timed(
        function, group=f"tree_attention/{count} nodes x {WIDTH}/float32", member=member, oracle=right,
        bound=1e-5, flops=4.0 * keys * WIDTH, bytes_moved=8.0 * keys * WIDTH,
    )  # fmt: skip
