"""Prompts as the tree of their common beginnings, cut into groups that are computed one after another.

A row of a causal tower depends on the tokens up to its position alone. Prompts that begin alike share those
rows, and nothing after the end token matters: a node stands for (token, position, parent). Prompts are sorted
by their tokens, so that neighbours share most, and equal prompts are one.

Letters: B prompts as given · P different ones · L positions · N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext._ops.tree_attention.spec import Paths


class SortedPrompts(NamedTuple):
    """Different prompts in the order of their tokens; column l < L is position l."""

    tokens: np.ndarray  # [P, L] int64, −1 after the end
    ends: np.ndarray  # [P] int64, the position whose row is the feature
    shared: np.ndarray  # [P] int64, positions in common with the prompt before
    inverse: Tensor  # [B] int64: where a given prompt stands

    @property
    def rows(self) -> int:
        """N, the nodes of the whole tree."""
        return int((self.ends + 1 - self.shared).sum())


class Group(NamedTuple):
    """The part of the tree that some prompts need, ancestors included."""

    tokens: Tensor  # [N] int64
    positions: Tensor  # [N] int64
    paths: Paths  # of every node; one path a prompt
    ends: Tensor  # [P] int64, the node of each prompt's end

    @property
    def end_paths(self) -> Paths:
        """What the end nodes see."""
        return Paths(self.paths.nodes, *(t[self.ends] for t in self.paths[1:]))


def sort_prompts(
    ids: Tensor,  # [B, L] int64
    ends: Tensor,  # [B] int64
) -> SortedPrompts:
    last = ends.cpu().numpy()
    tokens = ids.cpu().numpy()[:, : int(last.max()) + 1]
    tokens = np.where(np.arange(tokens.shape[1]) <= last[:, None], tokens, -1)
    order = np.lexsort(tokens.T[::-1])
    tokens = tokens[order]
    differ = np.ones(tokens.shape, dtype=bool)
    differ[1:] = tokens[1:] != tokens[:-1]
    kept = differ.any(axis=1)
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = kept.cumsum() - 1
    shared = differ[kept].argmax(axis=1)  # the first place where they differ
    return SortedPrompts(tokens[kept], last[order][kept], shared, torch.from_numpy(inverse))


def _cuts(prompts: SortedPrompts, batch_rows: int) -> Iterator[tuple[int, int]]:
    """Runs of prompts with at most ``batch_rows`` nodes, or of one prompt."""
    shared = prompts.shared
    nodes = np.concatenate([[0], (prompts.ends + 1 - shared).cumsum()])
    begin = 0
    while begin < len(shared):
        # A group's first prompt computes all of its ancestors.
        most = batch_rows + nodes[begin] - shared[begin]
        end = max(begin + 1, int(np.searchsorted(nodes, most, side="right")) - 1)
        yield begin, end
        begin = end


def groups(prompts: SortedPrompts, batch_rows: int, device: torch.device) -> Iterator[Group]:
    """The tree in parts of at most ``batch_rows`` nodes, or one prompt; in the order of the prompts."""
    for begin, end in _cuts(prompts, batch_rows):
        ends = prompts.ends[begin:end]
        length = int(ends.max()) + 1
        tokens, shared = prompts.tokens[begin:end, :length], prompts.shared[begin:end].copy()
        shared[0] = 0
        places = np.arange(length)
        new = (places >= shared[:, None]) & (places <= ends[:, None])
        numbers = np.where(new, new.cumsum().reshape(new.shape) - 1, 0)
        # Nodes are numbered along the prompts, so the latest at a position is the path's own.
        nodes = np.maximum.accumulate(numbers, axis=0)
        path_of, positions = new.nonzero()
        paths = (a.astype(np.int32) for a in (nodes, path_of, positions + 1))
        yield Group(
            torch.from_numpy(tokens[new]).to(device),
            torch.from_numpy(positions).to(device),
            Paths(*(torch.from_numpy(a).to(device) for a in paths)),
            torch.from_numpy(nodes[np.arange(len(ends)), ends]).to(device),
        )
