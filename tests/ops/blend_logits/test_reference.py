"""The blend of docs/methods.md §1 against NumPy loops written from the formulas."""

from __future__ import annotations

import math

import numpy as np
import torch

from semobridge_ext import reference
from tests.support.assertions import assert_close

C, D, N = 5, 7, 6


def unit_rows(rows: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, D, dtype=torch.float64), dim=1)


def test_prototypes_are_normalised_means_of_unnormalised_rows():
    features = torch.randn(9, D, dtype=torch.float64) * torch.arange(1, 10, dtype=torch.float64)[:, None]
    labels = torch.tensor([0, 2, 2, 0, 1, 2, 0, 1, 0])
    got = reference.prototypes(features, labels, 4)
    for c in range(3):
        mean = np.mean([f for f, y in zip(features.numpy(), labels, strict=True) if y == c], axis=0)
        assert_close(got[c], torch.from_numpy(mean / math.sqrt((mean**2).sum())), "reference")
    assert (got[3] == 0).all()  # a class without rows


def test_class_weights_against_loops():
    raw, text = unit_rows(C), unit_rows(C)
    got, want = reference.class_weights(raw, text, s=0.7), torch.empty(C, dtype=torch.float64)
    for c in range(C):
        scores = [float(raw[c] @ text[j]) for j in range(C)]
        p = math.exp(scores[c]) / sum(math.exp(x) for x in scores)
        divergence = math.log2((1 + 1e-6) / (p + 1e-6))
        want[c] = math.exp(0.7 * divergence)
    assert_close(got, want, "reference")
    assert (got > 1).all() and got.std() > 0


def test_class_weights_are_one_without_s():
    assert torch.equal(
        reference.class_weights(unit_rows(C), unit_rows(C)), torch.ones(C, dtype=torch.float64)
    )


def test_blend_against_loops():
    z1, z2, z3 = (torch.rand(N, C, dtype=torch.float64) * 2 - 1 for _ in range(3))
    weights = torch.rand(C, dtype=torch.float64) + 0.5
    lambdas = (0.9, 0.4, 0.2)
    got = reference.blend_logits(z1, z2, z3, weights=weights, alpha=2.0, beta=3.0, gamma=5.0, lambdas=lambdas)
    want = torch.empty(N, C, dtype=torch.float64)
    for n in range(N):
        for c in range(C):
            support = lambdas[1] * math.exp(-3.0 * (1 - z2[n, c])) + lambdas[2] * math.exp(
                -5.0 * (1 - z3[n, c])
            )
            want[n, c] = lambdas[0] * math.exp(-2.0 * (1 - z1[n, c])) + weights[c].item() * support
    assert_close(got, want, "reference")


def test_blend_defaults_are_equal_weights():
    z1, z2, z3 = (torch.rand(N, C, dtype=torch.float64) for _ in range(3))
    expected = (z1 - 1).exp() + (z2 - 1).exp() + (z3 - 1).exp()
    assert_close(reference.blend_logits(z1, z2, z3), expected, "reference")
    assert_close(reference.blend_logits(z3, z1, z2), expected, "reference", context="swapped")
