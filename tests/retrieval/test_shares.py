"""group_shares against a plain sort, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from semobridge_ext.retrieval import group_shares
from tests.support.assertions import assert_figures

G = torch.Generator().manual_seed(0)
QUERY, GALLERY = torch.randn(30, 8, generator=G), torch.randn(50, 8, generator=G)
GROUPS = torch.randint(0, 3, (50,), generator=G)


def by_sorting(query: torch.Tensor, gallery: torch.Tensor, same_set: bool, at: tuple[int, ...]) -> np.ndarray:
    scores = (query.double() @ gallery.double().T).numpy()
    if same_set:
        np.fill_diagonal(scores, -np.inf)
    ranked = GROUPS.numpy()[np.argsort(-scores, axis=1, kind="stable")]
    return np.array([[(ranked[:, :k] == c).mean() for c in range(3)] for k in at])


@pytest.mark.parametrize("same_set", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sort_agrees(same_set: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    query, gallery = (GALLERY if same_set else QUERY).to(dtype), GALLERY.to(dtype)
    want = by_sorting(query, gallery, same_set, (7, 1, 49))
    for block in (1 << 20, 60):  # all queries at once, and one at a time
        monkeypatch.setattr("semobridge_ext.retrieval.shares._BLOCK", block)
        got = group_shares(query, gallery, GROUPS, at=(7, 1, 49), same_set=same_set)
        assert_figures(got, want, "multilabel")
        assert_figures(got.sum(dim=1), np.ones(3), "multilabel")


def test_ties_stand_in_the_order_of_rows():
    got = group_shares(torch.ones(2, 1), torch.ones(4, 1), torch.tensor([1, 0, 0, 1]), at=(1, 3))
    assert_figures(got, [[0, 1], [2 / 3, 1 / 3]], "multilabel")
    assert group_shares(QUERY, GALLERY, GROUPS, at=()).shape == (0, 3)


BAD: dict[str, tuple[dict[str, Any], type, str]] = {
    "dtype": ({"groups": GROUPS.float()}, TypeError, "groups must be whole numbers, got a float32 tensor"),
    "length": ({"groups": GROUPS[1:]}, ValueError, r"groups must be \[50\] codes from 0, got a int64 tensor"),
    "negative": ({"groups": GROUPS - 1}, ValueError, r"groups must be \[50\] codes from 0"),
    "k": ({"at": (1, 51)}, ValueError, r"at must lie in 1\.\.50, got int 51"),
    "k, itself": ({"at": (50,), "query": GALLERY, "same_set": True}, ValueError, r"at must lie in 1\.\.49"),
    "real k": ({"at": (1.0,)}, TypeError, "at must hold ints, got float 1.0"),
    "same set": ({"same_set": True}, ValueError, r"query must be the gallery, \[50, 8\], under same_set"),
    "width": ({"query": QUERY[:, 1:]}, ValueError, "query must have width 8"),
    "NaN": ({"query": QUERY / 0 * 0}, ValueError, "query must hold no NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    changed, kind, told = BAD[case]
    given = {"query": QUERY, "gallery": GALLERY, "groups": GROUPS, **changed}
    with pytest.raises(kind, match=f"^group_shares: {told}"):
        group_shares(given.pop("query"), given.pop("gallery"), given.pop("groups"), **given)
