"""All that RETune keeps between two tasks, and how it grows by findings."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.incremental import adaptors
from semobridge_ext.incremental.adaptors import Form
from semobridge_ext.incremental.prompts import joined


class Model(NamedTuple):
    form: Form
    parameters: adaptors.Parameters
    names: list[Hashable]
    prompts: Tensor  # [L, 2, D] unit rows
    tasks: int  # that were trained


def grown(
    where: str, form: Form, seed: int, before: Model | None, names: list[Hashable], prompts: Tensor | None
) -> Model:
    """With the new ones among the findings; a first model begins as the frozen one."""
    if prompts is not None and len(prompts) != len(names):
        remedy = "pass a positive and a negative row per finding"
        contract = f"be [{len(names)}, 2, D]"
        raise ValueError(_errors.message(where, "prompt_features", contract, prompts, remedy))
    if before is None:
        if prompts is None:
            remedy = "pass [k, 2, D], see incremental.encode_findings"
            raise ValueError(_errors.message(where, "prompt_features", "be given", "None", remedy))
        return Model(form, adaptors.initial(form, prompts.shape[2], seed), names, prompts, 0)
    for name, was in before.form._asdict().items():
        if (now := getattr(form, name)) != was:
            remedy = "set it back, or begin anew with fit"
            contract = f"stay {was!r} from task to task"
            raise ValueError(_errors.message(where, name, contract, repr(now), remedy))
    if prompts is None:
        return before
    all_names, all_prompts = joined(where, before.names, before.prompts, names, prompts)
    return before._replace(names=all_names, prompts=all_prompts)


def unnamed(where: str) -> ValueError:
    remedy = "name the columns: None stands for the findings that are known"
    return ValueError(_errors.message(where, "findings", "be given with prompt_features", "None", remedy))


def check_labels(
    where: str,
    codes: Tensor,  # [n, k] int8
    rows: int,
    names: list[Hashable],
) -> None:
    """As many rows as features, as many columns as findings."""
    if len(codes) != rows:
        remedy = "pass one row of labels per row of X"
        raise ValueError(_errors.message(where, "Y", f"have {rows} rows", f"{len(codes)}", remedy))
    if codes.shape[1] != len(names):
        remedy = "pass findings, one name per column"
        contract = f"have {len(names)} columns"
        raise ValueError(_errors.message(where, "Y", contract, f"{codes.shape[1]}", remedy))


def check_task(where: str, codes: Tensor, names: list[Hashable]) -> None:
    """Something to learn of every finding."""
    blank = [name for name, known in zip(names, (codes >= 0).any(dim=0).tolist(), strict=True) if not known]
    if blank:
        remedy = "leave the column out of this task"
        contract = "hold a known label of every finding"
        raise ValueError(_errors.message(where, "Y", contract, f"none of {blank[0]!r}", remedy))
