"""The few-shot study against NumPy loops; what may be drawn; what counts as noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semobridge_ext import Bridge
from semobridge_ext.fewshot import study
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.fewshot.study_cosines import METHODS, CosineMethods

C, D, T, N = 4, 10, 8, 30


def make_problem(each: int = 6) -> tuple[study.Problem, Bridge, np.ndarray]:
    centres = torch.randn(C, D, dtype=torch.float64)
    labels = torch.arange(C).repeat_interleave(each)[torch.randperm(C * each)]
    query_labels = torch.randint(0, C, (N,))
    support, queries = (
        3 * (centres[y] + 1.2 * torch.randn(len(y), D, dtype=torch.float64)) for y in (labels, query_labels)
    )
    text = torch.nn.functional.normalize(centres + torch.randn(C, D, dtype=torch.float64), dim=1)
    # Two of eight singular values lie under the cut of 0.3.
    u, _ = torch.linalg.qr(torch.randn(T, T, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(D, T, dtype=torch.float64))
    w = (u * torch.linspace(0.1, 2.0, T, dtype=torch.float64)) @ v.T
    problem = study.Problem("made", (support, labels), None, (queries, query_labels), text)
    return problem, Bridge(w, text_length=2.5), w.numpy()


def naive_predictions(problem: study.Problem, w: np.ndarray, rows: np.ndarray) -> dict[str, list[int]]:
    """Every method one query and one class at a time, from docs/methods.md §1."""
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    kept = s > 0.3
    inverse = vt[kept].T @ np.diag(1 / s[kept]) @ u[:, kept].T

    def norm(x):
        return x / math.sqrt(sum(v * v for v in x))

    def bridged(f):
        return 2.5 * norm(f @ inverse) @ w

    support, labels = (part.numpy()[rows] for part in problem.train)
    raw, hat = [], []
    for c in range(C):
        members = [f for f, y in zip(support, labels, strict=True) if y == c]
        raw.append(norm(np.mean(members, axis=0)))
        hat.append(norm(np.mean([bridged(f) for f in members], axis=0)))
    chosen: dict[str, list[int]] = {name: [] for name in METHODS}
    for f in problem.test[0].numpy():
        z1 = [float(norm(f) @ t) for t in problem.text.numpy()]
        z_direct = [float(norm(f) @ p) for p in raw]
        z2 = [float(norm(f) @ p) for p in hat]
        z3 = [float(norm(bridged(f)) @ p) for p in raw]
        scores = {
            "text": z1,
            "direct": z_direct,
            "bridged_prototypes": z2,
            "bridged_queries": z3,
            "blend": [sum(math.exp(z[c] - 1) for z in (z1, z2, z3)) for c in range(C)],
            "blend_unbridged": [math.exp(z1[c] - 1) + 2 * math.exp(z_direct[c] - 1) for c in range(C)],
        }
        for name, values in scores.items():
            chosen[name].append(int(np.argmax(values)))
    return chosen


def test_every_method_against_loops():
    problem, bridge, w = make_problem()
    shots, seeds = (1, 3), (0, 7)
    right = study.run_episodes(problem, CosineMethods(problem, bridge), shots=shots, seeds=seeds)
    assert set(right) == set(METHODS)
    for i, k in enumerate(shots):
        for j, seed in enumerate(seeds):
            rows = sample_support(problem.train[1], k, seed).numpy()
            expected = naive_predictions(problem, w, rows)
            for name in METHODS:
                hits = torch.tensor(expected[name]) == problem.test[1]
                assert torch.equal(right[name][i, j], hits), (name, k, seed)
    # The comparison must be able to fail: the methods disagree with one another somewhere.
    assert not torch.equal(right["direct"], right["bridged_prototypes"])
    assert not torch.equal(right["direct"], right["bridged_queries"])
    assert not torch.equal(right["blend"], right["blend_unbridged"])
    assert 0 < right["direct"].double().mean() < 1


def test_text_ignores_shots_and_seeds():
    problem, bridge, _ = make_problem()
    text = study.run_episodes(problem, CosineMethods(problem, bridge), shots=(1, 2), seeds=(0, 1))["text"]
    assert torch.equal(text, text[:1, :1].expand_as(text))


def test_a_class_without_shots_is_refused():
    problem, bridge, _ = make_problem()
    keep = problem.train[1] != 2
    holed = problem._replace(train=(problem.train[0][keep], problem.train[1][keep]))
    with pytest.raises(ValueError, match=r"cover classes 0\.\.3, got 3 classes"):
        CosineMethods(holed, bridge)


def test_progress_wraps_the_episodes():
    problem, bridge, _ = make_problem()
    seen: list[tuple[int, int]] = []

    def progress(steps, total):
        assert total == 4
        for step in steps:
            seen.append(step)
            yield step

    methods = CosineMethods(problem, bridge)
    study.run_episodes(problem, methods, shots=(1, 2), seeds=(3, 5), progress=progress)
    assert seen == [(1, 3), (1, 5), (2, 3), (2, 5)]


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
