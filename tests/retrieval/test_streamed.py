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
