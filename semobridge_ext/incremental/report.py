"""What was kept and what was forgotten: metrics of every task's test after every task's training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.incremental.metrics import average_precision, mean_of, roc_auc
from semobridge_ext.runtime.plain_modes import plain_device

_NAME = "incremental_report"


@dataclass(frozen=True)
class IncrementalReport:
    """What ``incremental_report`` finds, as fractions; printed, a table in per cent.

    Args:
        mean_average_precision: [T, T] float64; row t, column j: of task j's test after training task t, the
            mean over its findings; NaN where it was not scored.
        roc_auc: [T, T] float64, likewise.
        final_average_precision, final_auc: means over the tests after the last task.
        forgetting_average_precision, forgetting_auc: means over the tests but the last of best minus last,
            the best from its own task on; NaN with one task.

    Raises:
        dataclasses.FrozenInstanceError: on assignment to a field.

    Numerics: float64, as in ``incremental_report``.

    Memory: two [T, T] tables.

    Example:
        >>> import semobridge_ext as sb
        >>> y = [[1], [0]]
        >>> report = sb.incremental_report([y, y], [[[[0.9], [0.1]], None], [[[0.2], [0.3]], [[0.8], [0.1]]]])
        >>> report.final_average_precision, report.forgetting_average_precision
        (0.75, 0.5)
    """

    mean_average_precision: Tensor
    roc_auc: Tensor
    final_average_precision: float
    final_auc: float
    forgetting_average_precision: float
    forgetting_auc: float

    def __str__(self) -> str:
        """A row for each task trained, a column for each task's test: mAP / AUC in per cent."""
        count = len(self.roc_auc)
        lines = ["mAP / AUC, %   " + "".join(f"{f'test {j + 1}':>15}" for j in range(count))]
        for t in range(count):
            pairs = zip(self.mean_average_precision[t].tolist(), self.roc_auc[t].tolist(), strict=True)
            cells = [
                f"{100 * ap:.1f} / {100 * auc:.1f}" if ap == ap or auc == auc else "" for ap, auc in pairs
            ]
            lines.append(f"after task {t + 1:<4}" + "".join(f"{cell:>15}" for cell in cells).rstrip())
        final = f"{100 * self.final_average_precision:.1f} / {100 * self.final_auc:.1f}"
        lost = f"{100 * self.forgetting_average_precision:.1f} / {100 * self.forgetting_auc:.1f}"
        lines.append(f"mean after the last task {final}" + (f", forgotten {lost}" if count > 1 else ""))
        return "\n".join(lines)


@plain_device()
def incremental_report(tests: Sequence[Any], scores: Sequence[Sequence[Any]]) -> IncrementalReport:
    """Mean average precision and AUC of each task's test after each task, final means and forgetting.

    Args:
        tests: T labels, [n_j, k_j] of task j's test images and findings: 0 and 1, of any number dtype or
            bool; NaN or −1 is not known and left out.
        scores: T rows, one after each task's training, of up to T entries: [n_j, k_j] floating-point scores
            of test j (``predict_proba`` or ``decision_function``, the columns of its findings), or None
            where a test was not scored. The last row must score every test, and row t test t.

    Returns:
        An ``IncrementalReport``. ``print`` it for the table.

    Raises:
        TypeError: labels that are no numbers. ValueError: shapes that do not fit, NaN or infinite scores, an
            entry that is needed and missing, a test without a positive or a negative.

    Numerics: float64, as ``incremental.average_precision`` and ``incremental.roc_auc``. A finding without
        a known positive (for AUC also: negative) in a test has no part in that test's means.

    Memory: O(largest test) beside the input.

    Example:
        >>> import semobridge_ext as sb
        >>> y = [[1], [0]]
        >>> print(sb.incremental_report([y], [[[[0.9], [0.1]]]]))
        mAP / AUC, %            test 1
        after task 1     100.0 / 100.0
        mean after the last task 100.0 / 100.0
    """
    for name, value in (("tests", tests), ("scores", scores), *(("scores", row) for row in _rows(scores))):
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            contract, remedy = "be a list", "pass one entry per task"
            raise TypeError(_errors.message(_NAME, name, contract, _errors.describe(value), remedy))
    count = len(tests)
    if count == 0 or len(scores) != count:
        remedy = "pass the scores after each of the tasks"
        contract = f"have {count} rows" if count else "be of at least one task"
        raise ValueError(_errors.message(_NAME, "scores", contract, f"{len(scores)}", remedy))
    precision, auc = (torch.full((count, count), float("nan"), dtype=torch.float64) for _ in range(2))
    for t, row in enumerate(scores):
        if len(row) > count:
            remedy = "one entry per test"
            contract = f"have up to {count} entries in row {t}"
            raise ValueError(_errors.message(_NAME, "scores", contract, f"{len(row)}", remedy))
        for j in range(count):
            entry = row[j] if j < len(row) else None
            if entry is not None:
                precision[t, j], auc[t, j] = _of_test(j, tests[j], t, entry)
            elif j == t or t == count - 1:
                remedy = "score every test after its own task and after the last"
                got = f"none of test {j} after task {t}"
                raise ValueError(_errors.message(_NAME, "scores", "hold scores", got, remedy))
    return IncrementalReport(
        precision, auc, float(precision[-1].mean()), float(auc[-1].mean()), _lost(precision), _lost(auc)
    )


def _rows(scores: Any) -> Any:
    return scores if isinstance(scores, (list, tuple)) else ()


def _of_test(j: int, labels: Any, t: int, scores: Any) -> tuple[float, float]:
    try:
        found = mean_of(average_precision(labels, scores)), mean_of(roc_auc(labels, scores))
    except (TypeError, ValueError) as error:  # which do not know of tasks
        text = str(error).replace("average_precision", f"{_NAME}: test {j} after task {t}", 1)
        raise type(error)(text) from None
    if found[0] != found[0] or found[1] != found[1]:
        remedy = "leave such a test out"
        got = f"no such finding in test {j}"
        contract = "hold a finding with a known positive and a known negative"
        raise ValueError(_errors.message(_NAME, "tests", contract, got, remedy))
    return found


def _lost(values: Tensor) -> float:  # [T, T]
    """Mean over the tests but the last of the best since its own task, minus the last."""
    count = len(values)
    lost = [float(values[j:, j][~torch.isnan(values[j:, j])].max() - values[-1, j]) for j in range(count - 1)]
    return sum(lost) / len(lost) if lost else float("nan")
