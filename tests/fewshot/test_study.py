"""The few-shot study against NumPy loops; what may be drawn; what counts as noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semobridge_ext.fewshot import study
from semobridge_ext.fewshot.draws import sample_support

C, D, N = 4, 10, 30


def make_problem(each: int = 6) -> study.Problem:
    centres = torch.randn(C, D, dtype=torch.float64)
    labels = torch.arange(C).repeat_interleave(each)[torch.randperm(C * each)]
    query_labels = torch.randint(0, C, (N,))
    support, queries = (
        3 * (centres[y] + 1.2 * torch.randn(len(y), D, dtype=torch.float64)) for y in (labels, query_labels)
    )
    return study.Problem("made", (support, labels), None, (queries, query_labels))


class Methods:
    """Nearest class mean by loops, and what it was called with."""

    def __init__(self, problem: study.Problem) -> None:
        self.problem, self.calls = problem, []

    def __call__(self, rows: torch.Tensor, seed: int) -> dict[str, study.Outcome]:
        self.calls.append((rows.tolist(), seed))
        (x, y), (queries, targets) = self.problem.train, self.problem.test
        means = [np.mean([x[r].numpy() for r in rows if y[r] == c], axis=0) for c in range(C)]
        chosen = [int(np.argmin([np.linalg.norm(q - m) for m in means])) for q in queries.numpy()]
        right = torch.tensor(chosen) == targets
        return {"mean": study.Outcome(right), "wrong": study.Outcome(~right)}


def test_every_episode_stands_in_its_place():
    problem = make_problem()
    methods = Methods(problem)
    shots, seeds = (1, 3), (0, 7)
    right = study.run_episodes(problem, methods, shots=shots, seeds=seeds)
    assert list(right) == ["mean", "wrong"] and right["mean"].shape == (2, 2, N)
    for i, k in enumerate(shots):
        for j, seed in enumerate(seeds):
            rows = sample_support(problem.train[1], k, seed)
            assert methods.calls[2 * i + j] == (rows.tolist(), seed)
            expected = Methods(problem)(rows, seed)
            assert torch.equal(right["mean"][i, j], expected["mean"].right), (k, seed)
            assert torch.equal(right["wrong"][i, j], ~expected["mean"].right), (k, seed)
    assert 1 / C < right["mean"].double().mean() < 1
    assert not torch.equal(right["mean"][0, 0], right["mean"][1, 1])


def test_progress_wraps_the_episodes():
    seen: list[tuple[int, int]] = []

    def progress(steps, total):
        assert total == 4
        for step in steps:
            seen.append(step)
            yield step

    problem = make_problem()
    study.run_episodes(problem, Methods(problem), shots=(1, 2), seeds=(3, 5), progress=progress)
    assert seen == [(1, 3), (1, 5), (2, 3), (2, 5)]


def test_shots_that_half_of_the_classes_can_fill():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2 + [3])
    assert study.reachable(labels, [4, 2, 1, 3, 2]) == [1, 2, 3]  # 4, 3, 2 and 1 of four classes
    assert study.reachable(torch.tensor([0, 1]), [2, 8]) == []
    assert study.reachable(torch.tensor([0, 3]), [1]) == [1]  # classes without rows count


def test_averaged_over_sets():
    a, b = study.Difference(0.2, 0.03, 0.04, True), study.Difference(0.1, 0.04, 0.03, True)
    got = study.averaged([a, b])
    assert got.mean == pytest.approx(0.15)
    assert got.std == pytest.approx(0.025) and got.error == pytest.approx(0.025)
    assert got.beyond_noise and not study.averaged([a, b._replace(mean=-0.2)]).beyond_noise


# -- sampling ------------------------------------------------------------------------------------------


def test_support_has_k_rows_of_every_class_and_is_nested():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2])
    smaller: set[int] = set()
    for k in (1, 2, 3, 4):
        rows = sample_support(labels, k, seed=3)
        assert torch.equal(rows, rows.unique())
        assert torch.equal(labels[rows].bincount(), torch.full((3,), k))
        assert smaller <= set(rows.tolist())
        smaller = set(rows.tolist())


def test_a_small_class_gives_all_it_has():
    labels = torch.tensor([0] * 9 + [1] * 2 + [3])  # class 2 has none
    rows = sample_support(labels, 4, seed=0)
    assert labels[rows].bincount().tolist() == [4, 2, 0, 1]


def test_support_is_reproducible():
    labels = torch.arange(5).repeat(20)
    # Written down once: the draw of a seed must not change between releases or machines.
    assert sample_support(labels, 2, seed=0).tolist() == [
        2, 24, 26, 54, 55, 73, 75, 86, 92, 93,
    ]  # fmt: skip
    draws = {tuple(sample_support(labels, 2, seed=s).tolist()) for s in range(20)}
    assert len(draws) == 20


def test_every_drawing_has_the_same_chance():
    labels = torch.arange(2).repeat_interleave(10)
    counts = torch.zeros(20)
    draws = 600
    for seed in range(draws):
        counts[sample_support(labels, 3, seed)] += 1
    spread = (draws * 0.3 * 0.7) ** 0.5
    assert ((counts - draws * 0.3).abs() < 4.5 * spread).all()
    assert counts.std() > 0.2 * spread  # drawn, not dealt out in turn


def test_shots_below_one_are_refused():
    with pytest.raises(ValueError, match="shots must be ≥ 1, got 0"):
        sample_support(torch.zeros(3, dtype=torch.long), 0, seed=0)


# -- paired differences --------------------------------------------------------------------------------


def test_compare_against_hand_figures():
    ours = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)
    other = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    got = study.compare(ours, other)
    assert got.mean == pytest.approx(0.25)
    assert got.std == pytest.approx(math.sqrt(0.125))  # by seed: 0.5 and 0
    # by image: 0, 0.5, 0, 0.5, variance 1/12
    assert got.error == pytest.approx(math.sqrt(0.125 / 2 + (1 / 12) / 4))
    assert not got.beyond_noise
    by_accuracy = study.paired([0.75, 0.5], [0.25, 0.5])
    assert by_accuracy == (pytest.approx(got.mean), pytest.approx(got.std))
    back = study.compare(other, ours)
    assert back.mean == -got.mean and back.error == got.error


def test_equal_methods_are_no_difference():
    hits = torch.rand(5, 40) < 0.5
    assert study.compare(hits, hits) == (0.0, 0.0, 0.0, False)


def test_noise_is_told_from_a_difference():
    false_alarms = 0
    for _ in range(200):
        ours, other = torch.rand(5, 300) < 0.4, torch.rand(5, 300) < 0.4
        false_alarms += study.compare(ours, other).beyond_noise
    assert false_alarms <= 6
    assert study.compare(torch.rand(5, 300) < 0.6, torch.rand(5, 300) < 0.4).beyond_noise


def test_one_image_more_in_every_seed_is_noise():
    """The seeds agree perfectly, but they share the test drawings."""
    other = torch.rand(5, 400) < 0.5
    ours = other.clone()
    ours[:, int((~other[0]).nonzero()[0])] = True
    got = study.compare(ours, other)
    assert got.mean > 0 and not got.beyond_noise


def test_one_seed_has_no_spread_but_an_error():
    got = study.compare(torch.rand(1, 50) < 0.9, torch.rand(1, 50) < 0.2)
    assert got.std == 0 and 0 < got.error < 1 and got.beyond_noise
