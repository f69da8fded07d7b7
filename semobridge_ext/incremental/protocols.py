"""Sequences of tasks from a labelled multi-label set: new findings, new images, or both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers
from semobridge_ext._numbers import check_number
from semobridge_ext.incremental.labels import label_codes


class Task(NamedTuple):
    """What one task may see of a labelled set: ``X[rows]`` and, of Y, the known labels of some findings.

    Args:
        rows: [n] int64, ascending rows of the set.
        findings: [k] int64, ascending columns of Y.
        known: [n, k] bool, where Y holds a label.

    Example:
        >>> import torch
        >>> from semobridge_ext.incremental import label_incremental
        >>> y = torch.tensor([[1, 0], [0, 1], [1, -1]])
        >>> first, second = label_incremental(y, 2)
        >>> y[first.rows][:, first.findings].shape
        torch.Size([3, 1])
    """

    rows: Tensor
    findings: Tensor
    known: Tensor


def class_incremental(Y: Any, tasks: int | Sequence[Sequence[int]], *, seed: int = 0) -> list[Task]:
    """New findings on new images: findings and images are shared out among the tasks, each to one.

    An image goes to a task that it has a positive for, drawn among them with equal chance; an image
    without any known positive to a task that it has a known label for. A task knows the labels of its own
    findings alone.

    Args:
        Y: [N, L] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known.
        tasks: how many, at most L, the findings shared out evenly at random; or the columns of each task.
        seed: of all draws.

    Returns:
        A list of ``Task`` with disjoint rows and disjoint findings. Images without any known label are in
        none.

    Raises:
        TypeError: labels or tasks that are no numbers.
        ValueError: other labels; tasks that are too many, overlap, are empty or out of range; a finding
            that no image of its task shows.

    Numerics: none but the draws, from one CPU generator.

    Memory: O(N·L).

    Example:
        >>> from semobridge_ext.incremental import class_incremental
        >>> [t.rows.tolist() for t in class_incremental([[1, 0], [0, 1], [1, 0]], [[0], [1]])]
        [[0, 2], [1]]
    """
    where = "class_incremental"
    codes, generator = _checked(where, Y, seed)
    groups = _groups(where, tasks, codes.shape[1], generator)
    chance = torch.stack([(codes[:, group] == 1).any(dim=1) for group in groups], dim=1).double()
    lone = chance.sum(dim=1) == 0
    chance[lone] = torch.stack([(codes[lone][:, g] >= 0).any(dim=1) for g in groups], dim=1).double()
    usable = (chance.sum(dim=1) > 0).nonzero().flatten()
    place = torch.full((len(codes),), -1)
    if len(usable):
        place[usable] = torch.multinomial(chance[usable], 1, generator=generator).flatten()
    found = [_task(codes, (place == i).nonzero().flatten(), group) for i, group in enumerate(groups)]
    for number, task in enumerate(found):
        shown = (codes[task.rows][:, task.findings] == 1).any(dim=0)
        if not bool(shown.all()):
            got = f"none of column {int(task.findings[~shown][0])} in task {number}"
            remedy = "take another seed, fewer tasks, or put findings that occur together in one task"
            raise ValueError(_errors.message(where, "Y", "show every finding in its task", got, remedy))
    return found


def label_incremental(Y: Any, tasks: int | Sequence[Sequence[int]], *, seed: int = 0) -> list[Task]:
    """New findings on the same images: findings are shared out among the tasks, each to one.

    Args:
        Y: [N, L] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known.
        tasks: how many, at most L, the findings shared out evenly at random; or the columns of each task.
        seed: of the draw.

    Returns:
        A list of ``Task``; each has the images with a known label of its findings, and findings are disjoint.

    Raises:
        TypeError: labels or tasks that are no numbers.
        ValueError: other labels; tasks that are too many, overlap, are empty or out of range.

    Numerics: none but the draw, from one CPU generator.

    Memory: O(N·L).

    Example:
        >>> from semobridge_ext.incremental import label_incremental
        >>> [t.findings.tolist() for t in label_incremental([[1, 0, 1], [0, 1, 0]], [[0, 2], [1]])]
        [[0, 2], [1]]
    """
    where = "label_incremental"
    codes, generator = _checked(where, Y, seed)
    groups = _groups(where, tasks, codes.shape[1], generator)
    return [_task(codes, (codes[:, group] >= 0).any(dim=1).nonzero().flatten(), group) for group in groups]


def data_incremental(Y: Any, tasks: int, *, seed: int = 0) -> list[Task]:
    """New images of the same findings: images are shared out evenly at random, each to one task.

    Args:
        Y: [N, L] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known.
        tasks: how many, at most N.
        seed: of the draw.

    Returns:
        A list of ``Task`` with disjoint rows. A task's findings are those that its images have a known label
        of. Images without any known label are in none.

    Raises:
        TypeError: labels or tasks that are no numbers. ValueError: other labels, or more tasks than images.

    Numerics: none but the draw, from one CPU generator.

    Memory: O(N·L).

    Example:
        >>> from semobridge_ext.incremental import data_incremental
        >>> sorted(len(t.rows) for t in data_incremental([[1, 0], [0, 1], [1, 1]], 2))
        [1, 2]
    """
    where = "data_incremental"
    codes, generator = _checked(where, Y, seed)
    usable = (codes >= 0).any(dim=1).nonzero().flatten()
    remedy = "each takes at least one image with a label"
    check_number(where, "tasks", tasks, least=1, most=len(usable), whole=True, remedy=remedy)
    shuffled = usable[torch.randperm(len(usable), generator=generator)]
    found = []
    for rows in shuffled.tensor_split(tasks):
        findings = (codes[rows] >= 0).any(dim=0).nonzero().flatten()
        found.append(_task(codes, rows.sort().values, findings))
    return found


def _checked(where: str, Y: Any, seed: int) -> tuple[Tensor, torch.Generator]:
    remedy = "pass a whole number"
    check_number(where, "seed", seed, least=0, whole=True, remedy=remedy)
    return label_codes(where, "Y", Y), torch.Generator().manual_seed(_numbers.seed_of(seed))


def _task(codes: Tensor, rows: Tensor, findings: Tensor) -> Task:
    return Task(rows, findings, codes[rows][:, findings] >= 0)


def _groups(where: str, tasks: Any, columns: int, generator: torch.Generator) -> list[Tensor]:
    """Columns of each task, ascending."""
    if _numbers.is_real(tasks) or isinstance(tasks, bool):
        remedy = "each takes at least one finding"
        check_number(where, "tasks", tasks, least=1, most=columns, whole=True, remedy=remedy)
        order = torch.randperm(columns, generator=generator)
        return [part.sort().values for part in order.tensor_split(int(tasks))]
    if isinstance(tasks, (str, bytes)) or not isinstance(tasks, Iterable):
        contract, remedy = "be a number or the columns of each task", "pass for example 2 or [[0, 2], [1]]"
        raise TypeError(_errors.message(where, "tasks", contract, _errors.describe(tasks), remedy))
    groups = [list(_numbers.whole_numbers(where, "tasks", group, "[[0, 2], [1]]")) for group in tasks]
    flat = [c for group in groups for c in group]
    wrong = [c for c in flat if not 0 <= c < columns]
    if wrong:
        remedy = "columns count from 0"
        raise ValueError(_errors.message(where, "tasks", f"lie in 0..{columns - 1}", wrong[0], remedy))
    if len(set(flat)) != len(flat) or not all(groups) or not groups:
        remedy = "each column belongs to one task, and each task has one"
        raise ValueError(_errors.message(where, "tasks", "be disjoint and not empty", groups, remedy))
    return [torch.tensor(sorted(group)) for group in groups]
