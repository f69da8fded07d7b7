"""clip/prefix_tree.py: the tree of prompts against a set of their beginnings, cut anywhere."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semobridge_ext.clip.prefix_tree import Group, groups, sort_prompts

CPU = torch.device("cpu")
PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=40)


def padded(prompts: list[list[int]], beyond: int) -> tuple[Tensor, Tensor]:
    """Ids with rubbish after the ends, which nothing may read."""
    ids = torch.full((len(prompts), max(map(len, prompts)) + 2), beyond)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])


def beginnings(prompts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(p[: i + 1]) for p in prompts for i in range(len(p))}


def spelt(group: Group) -> list[tuple[int, ...]]:
    """For every node the tokens of the rows that it sees."""
    found = []
    for path, count in zip(group.paths.path_of.tolist(), group.paths.counts.tolist(), strict=True):
        nodes = group.paths.nodes[path, :count].long()
        assert torch.equal(group.positions[nodes], torch.arange(count)), "an ancestor at another position"
        found.append(tuple(group.tokens[nodes].tolist()))
    return found


@given(PROMPTS, st.integers(0, 3))
def test_every_beginning_is_one_node(prompts: list[list[int]], beyond: int):
    tree = sort_prompts(*padded(prompts, beyond))
    (group,) = groups(tree, 1 << 20, CPU)
    nodes = spelt(group)
    assert len(set(nodes)) == len(nodes) == tree.rows and set(nodes) == beginnings(prompts)
    ends = [nodes[end] for end in group.ends.tolist()]
    assert [ends[i] for i in tree.inverse.tolist()] == [tuple(p) for p in prompts]
    assert len(ends) == len(set(map(tuple, prompts)))


@given(PROMPTS, st.integers(1, 60))
def test_groups_keep_to_the_rows(prompts: list[list[int]], most: int):
    """Each group holds all ancestors of its own; only a single prompt may be longer than asked for."""
    tree = sort_prompts(*padded(prompts, 0))
    ends: list[tuple[int, ...]] = []
    for group in groups(tree, most, CPU):
        nodes = spelt(group)
        own = [nodes[end] for end in group.ends.tolist()]
        assert set(nodes) == beginnings([list(p) for p in own])
        assert len(nodes) <= most or len(own) == 1
        ends += own
    assert [ends[i] for i in tree.inverse.tolist()] == [tuple(p) for p in prompts]


@given(PROMPTS, st.integers(1, 60))
def test_groups_are_no_smaller_than_needed(prompts: list[list[int]], most: int):
    tree = sort_prompts(*padded(prompts, 0))
    cut = list(groups(tree, most, CPU))
    for group, after in itertools.pairwise(cut):
        following = [tuple(after.tokens[after.paths.nodes[0, : int(after.ends[0]) + 1].long()].tolist())]
        nodes = set(spelt(group)) | beginnings([list(p) for p in following])
        assert len(nodes) > most, "the next prompt would have fitted"


def test_what_end_nodes_see():
    ids = torch.tensor([[5, 6, 9, 0], [5, 6, 7, 9]])
    (group,) = groups(sort_prompts(ids, torch.tensor([2, 3])), 100, CPU)
    paths = group.end_paths
    assert sorted(paths.counts.tolist()) == [3, 4] and len(group.tokens) == 5
    seen = {
        tuple(group.tokens[paths.nodes[p, :c].long()].tolist())
        for p, c in zip(paths.path_of.tolist(), paths.counts.tolist(), strict=True)
    }
    assert seen == {(5, 6, 9), (5, 6, 7, 9)}
