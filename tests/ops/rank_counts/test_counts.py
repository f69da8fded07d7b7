"""rank_counts itself, query by query, against the oracle's comparison of every pair."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext._ops.rank_counts.op import Marked, rank_counts
from semobridge_ext._ops.rank_counts.reference import rank_counts as oracle


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_counts(isa: str, dtype: torch.dtype, exclude: bool):
    # Small whole numbers: products are exact in any order, and tie.
    queries = torch.randint(-2, 3, (9, 6)).to(dtype)
    gallery = torch.randint(-2, 3, (300, 6)).to(dtype)
    gallery[7] = float("nan")
    lists = [torch.randperm(300)[:size] for size in (1, 40, 0 if not exclude else 2, 300, 17, 64)]
    rows = torch.tensor([3, 0, 8, 8, 1, 5])
    end = torch.tensor([len(part) for part in lists]).cumsum(0)
    begin = end - torch.tensor([len(part) for part in lists])
    out = torch.stack([part[0] for part in lists]) if exclude else None
    got = rank_counts(queries, gallery, rows, Marked(torch.cat(lists), begin, end, out))
    counted = 0
    for i, part in enumerate(lists):
        left = None if out is None else int(out[i])
        want = oracle(queries[rows[i]].double(), gallery.double(), part, exclude=left)
        mine = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        for name, found, expected in zip(("scores", "greater", "equal"), got[1:], want, strict=True):
            if name == "scores":  # the kernel's −∞ is the lowest number of its dtype
                expected = expected.clamp(min=torch.finfo(found.dtype).min)
            assert torch.equal(found[mine].double(), expected.double()), (i, name)
        counted += int((want[2] > 1).sum())
    assert counted > 100, "ties are what the counts are about"
