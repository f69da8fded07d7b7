"""Top-k over parts against one product over the whole gallery."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext.retrieval.streamed import topk_over


@pytest.mark.parametrize("sizes", [[40], [1, 7, 0, 32], [13, 13, 14]])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_parts_are_searched_as_one_gallery(sizes: list[int], k: int):
    # Few integers: many equal scores, whose order is by row also across parts.
    gallery = torch.randint(-2, 3, (40, 6)).float()
    queries = torch.randint(-2, 3, (9, 6)).float()
    scores, rows = topk_over(queries, (p for p in gallery.split(sizes) if len(p)), k)
    want = (queries @ gallery.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(scores, want.values[:, :k]) and torch.equal(rows, want.indices[:, :k])
    assert scores.shape == (9, min(k, 40)) and len(set(scores[0].tolist())) < 40


def test_a_nan_score_ranks_last_across_parts():
    """As `topk` ranks it in one part."""
    gallery = torch.randint(-2, 3, (12, 4)).float()
    gallery[5], gallery[9, 0] = torch.nan, -torch.inf
    queries = torch.randint(1, 3, (3, 4)).float()
    scores, rows = topk_over(queries, gallery.split(4), 12)
    products = queries @ gallery.T
    want = products.nan_to_num(nan=-torch.inf, neginf=-torch.inf).sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, want.indices) and rows[:, -2:].tolist() == [[5, 9]] * 3
    assert scores.isnan().nonzero().tolist() == [[i, 10] for i in range(3)]
