"""The orthogonal map between two models' features: its closed form, its optimum, both orders of widths."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.assertions import assert_close, assert_figures

F64 = torch.float64


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=F64)).Q


def test_a_rotation_is_found():
    x, q = torch.randn(50, 9, dtype=F64), rotation(9)
    found = sb.LinearMap.procrustes(x, x @ q)
    assert_close(found.matrix, q, "matrix")
    shifted = x @ q + 3
    found = sb.LinearMap.procrustes(x - 2, shifted, center=True)
    assert_close(found.matrix, q, "matrix")
    assert_close(found.with_norm(False)(x - 2), shifted, "matrix")


@pytest.mark.parametrize("k,m", [(7, 7), (9, 5), (5, 9)])
def test_it_is_the_polar_factor_and_the_best(k, m):
    x = torch.randn(40, k, dtype=F64)
    y = x @ torch.eye(k, m, dtype=F64) @ rotation(m) + 0.5 * torch.randn(40, m, dtype=F64)
    q = sb.LinearMap.procrustes(x, y).matrix
    # The polar factor by the square root of the Gram matrix.
    product = x.T @ y
    tall = product if k >= m else product.T
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    polar = tall @ (vectors / values.sqrt()) @ vectors.T
    assert_close(q, polar if k >= m else polar.T, "matrix")
    gram = q.T @ q if k >= m else q @ q.T
    assert_figures(gram, torch.eye(min(k, m), dtype=F64), "linear_map")
    best = float((x @ q * y).sum())
    for _ in range(20):
        near = rotation(k)[:, :m] if k >= m else rotation(m)[:k]
        small = 1e-3 * torch.randn(k, k, dtype=F64)
        turned = torch.linalg.matrix_exp(small - small.T) @ q
        assert float((x @ near * y).sum()) < best and float((x @ turned * y).sum()) < best


def test_queries_of_a_new_model_search_an_old_gallery():
    """Two models that see the same items with noise of their own."""
    items = torch.randn(400, 24)
    old = normalize(items @ torch.randn(24, 16) + 0.3 * torch.randn(400, 16), dim=1)
    new = normalize(items @ torch.randn(24, 20) + 0.3 * torch.randn(400, 20), dim=1)
    map_ = sb.LinearMap.procrustes(new[:200], old[:200])
    found = sb.topk(map_(new[200:]), old[200:], 1).indices[:, 0]
    assert float((found == torch.arange(200)).double().mean()) > 0.4
    unmapped = sb.topk(new[200:, :16].contiguous(), old[200:], 1).indices[:, 0]
    assert float((unmapped == torch.arange(200)).double().mean()) < 0.05


@pytest.mark.parametrize(
    "x,y,kind,told",
    [
        (torch.ones(3, 2), torch.ones(4, 2), ValueError, "Y must have 3 rows, as X"),
        (torch.ones(3), torch.ones(3, 2), ValueError, "X must be 2-D"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), TypeError, "X must be float32"),
        (torch.ones(3, 2), torch.full((3, 2), torch.nan), ValueError, "Y must be finite"),
    ],
)
def test_refused(x, y, kind, told):
    with pytest.raises(kind, match=rf"LinearMap\.procrustes: {told}"):
        sb.LinearMap.procrustes(x, y)
