"""The report: what stands in its matrices, final means and forgetting, against sums by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import semobridge_ext as sb
from tests.support.assertions import assert_figures

G = torch.Generator().manual_seed(0)
TESTS = [(torch.rand(n, k, generator=G) < 0.5).long() for n, k in ((20, 2), (30, 1), (25, 3))]
SCORES = [[torch.rand(y.shape, generator=G) for y in TESTS] for _ in range(3)]


def want(metric, t: int, j: int) -> float:
    return float(metric(TESTS[j].numpy(), SCORES[t][j].numpy(), average="macro"))


def test_matrices_means_and_forgetting():
    report = sb.incremental_report(TESTS, SCORES)
    for metric, found, final, lost in (
        (average_precision_score, report.mean_average_precision, report.final_average_precision,
         report.forgetting_average_precision),
        (roc_auc_score, report.roc_auc, report.final_auc, report.forgetting_auc),
    ):  # fmt: skip
        table = [[want(metric, t, j) for j in range(3)] for t in range(3)]
        assert_figures(found, table, "multilabel")
        assert_figures(final, sum(table[2]) / 3, "multilabel")
        best = [max(table[t][j] for t in range(j, 3)) - table[2][j] for j in range(2)]
        assert_figures(lost, sum(best) / 2, "multilabel")
        assert max(table[0][1], table[0][2]) > 0  # scored before their task: no part of the best


def test_the_best_begins_with_the_own_task():
    """A test that was better before its own task was forgotten by nobody."""
    y = torch.tensor([[1], [0]])
    right, wrong = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    early = [[right, right, right], [right, wrong, right], [wrong, wrong, right]]
    report = sb.incremental_report([y] * 3, early)
    assert report.roc_auc.tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 1]]
    assert report.forgetting_auc == 0.5 and report.final_auc == pytest.approx(1 / 3)


def test_what_was_not_scored_stays_empty():
    part = [[SCORES[0][0]], [None, SCORES[1][1], None], SCORES[2]]
    report = sb.incremental_report(TESTS, part)
    missing = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    assert torch.equal(report.roc_auc.isnan(), missing)
    assert torch.equal(report.mean_average_precision.isnan(), missing)
    lines = str(report).splitlines()
    assert len(lines) == 5 and lines[0].split("  ")[-1] == " test 3"
    cells = [f"{100 * want(average_precision_score, 2, j):.1f} / {100 * want(roc_auc_score, 2, j):.1f}"
             for j in range(3)]  # fmt: skip
    assert lines[3].startswith("after task 3") and lines[3].split("3", 1)[1].split("  ")[-1] == cells[2]
    assert all(cell in lines[3] for cell in cells) and lines[1].count("/") == 1
    assert lines[4].startswith("mean after the last task ") and ", forgotten " in lines[4]
    assert lines[1].index("/") == lines[3].index("/")


def test_one_task_forgets_nothing_and_the_report_is_frozen():
    report = sb.incremental_report(TESTS[:1], [SCORES[0][:1]])
    assert math.isnan(report.forgetting_auc) and "forgotten" not in str(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.final_auc = 1.0


BAD = {
    "rows": ((TESTS, SCORES[:2]), ValueError, "scores must have 3 rows, got 2; pass the scores after each"),
    "no task": (([], []), ValueError, "scores must be of at least one task, got 0"),
    "long row": ((TESTS[:1], [SCORES[0]]), ValueError, "scores must have up to 1 entries in row 0, got 3"),
    "own test": (
        (TESTS, [[None], *SCORES[1:]]), ValueError, "scores must hold scores, got none of test 0 after",
    ),
    "last row": (
        (TESTS, [*SCORES[:2], SCORES[2][:2]]), ValueError, "scores must hold scores, got none of test 2 aft",
    ),
    "shape": (
        (TESTS, [[SCORES[0][1]], *SCORES[1:]]), ValueError,
        r"test 0 after task 0: scores must be \[20, 2\], got a float32 tensor of shape \[30, 1\]",
    ),
    "labels": (
        ([TESTS[0] + 1, *TESTS[1:]], SCORES), ValueError, "test 0 after task 0: Y must hold 0, 1, NaN or −1",
    ),
    "texts": (([["a"]], [[[0.1]]]), TypeError, "test 0 after task 0: Y must hold numbers"),
    "no negative": (
        ([TESTS[0] * 0 + 1, *TESTS[1:]], SCORES), ValueError,
        "tests must hold a finding with a known positive and a known negative, got no such finding in test 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    given, kind, told = BAD[case]
    with pytest.raises(kind, match=f"^incremental_report: {told}"):
        sb.incremental_report(*given)
