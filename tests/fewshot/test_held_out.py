"""Accuracy without fixed parts against loops over rows."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from semobridge_ext.fewshot.held_out import nearest_mean_accuracy, nearest_text_accuracy, usable_shots


def test_nearest_mean_against_loops():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 7 + [3] * 5)[torch.randperm(23)]
    features = normalize(torch.randn(4, 6)[labels] + 2.0 * torch.randn(23, 6), dim=1)
    found = nearest_mean_accuracy(features, labels, [1, 4], 3)
    values = []
    for seed in range(3):
        usable = [i for i in range(23) if int(labels[i]) != 1]  # class 1 has too few rows for 4 shots
        order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = {c: [usable[j] for j in order if int(labels[usable[j]]) == c] for c in (0, 2, 3)}
        for k in (1, 4):
            means = {c: normalize(features[mine[:k]].sum(dim=0), dim=0) for c, mine in rows.items()}
            test = [i for mine in rows.values() for i in mine[4:]]
            hits = [max(means, key=lambda c: float(features[i] @ means[c])) == int(labels[i]) for i in test]
            assert found[k][seed] == torch.tensor(hits).float().mean()
            values.append(found[k][seed])
    assert min(values) < 1 and len(set(values)) > 2


def test_nearest_text_against_a_loop():
    texts, labels = normalize(torch.randn(5, 6), dim=1), torch.randint(0, 5, (60,))
    features = normalize(texts[labels] + 0.5 * torch.randn(60, 6), dim=1)
    hits = [int((texts @ f).argmax()) == int(y) for f, y in zip(features, labels, strict=True)]
    got = nearest_text_accuracy(features, labels, texts)
    assert 0.2 < got < 1 and got == torch.tensor(hits).float().mean()


def test_usable_shots():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 5)
    assert usable_shots(labels, [8, 4, 1, 4]) == ([1, 4], 2)
    assert usable_shots(labels, [9]) == ([], 0)
