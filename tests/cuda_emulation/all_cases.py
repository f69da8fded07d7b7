"""The cases of every kernel, by name."""

from __future__ import annotations

from tests.cuda_emulation import (
    cases,
    cases_few_rows,
    cases_halves,
    cases_scores,
    cases_step,
    cases_train,
)
from tests.support import own_kernels

CASES = {
    name.removeprefix("case_"): function
    for module in (cases, cases_few_rows, cases_halves, cases_scores, cases_step, cases_train)
    for name, function in vars(module).items()
    if name.startswith("case_")
} | own_kernels.functions("case_")
