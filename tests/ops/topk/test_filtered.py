"""topk by way of 8-bit codes: the bits of the plain path, whatever the rows; most rows stay unread."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semobridge_ext._ops.quantize_rows.op import quantize_rows
from semobridge_ext._ops.topk import cpu, filtering
from semobridge_ext.ops import topk
from tests.support.assertions import assert_same_scores

KINDS = ("plain", "unit", "ties", "flat", "spike", "signs", "tiny", "mixed", "special", "clusters")


def rows_of(kind: str, n: int, width: int) -> Tensor:
    x = torch.randn(n, width)
    if kind == "unit":
        return torch.nn.functional.normalize(x, dim=1)
    if kind == "ties":
        return torch.randint(-2, 3, (n, width)).float()
    if kind == "flat":
        return torch.full((n, width), 0.37)
    if kind == "spike":
        x[:, width // 2] *= 1e4
    elif kind == "signs":
        x = 0.37 * (-1.0) ** torch.arange(width).expand(n, -1)
    elif kind == "tiny":
        x *= 1e-39
    elif kind == "mixed":
        x *= torch.logspace(-30, 15, n)[torch.randperm(n), None]
    elif kind == "special":
        for value in (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38):
            x[torch.rand(n, width) < 0.3 / width] = value
    elif kind == "clusters":
        x = 0.1 * x + torch.randn(8, width)[torch.randint(8, (n,))]
    return x


def assert_equal_to_plain(queries: Tensor, gallery: Tensor, k: int, **masks) -> dict[str, int]:
    rows = masks.get("rows")
    plain_masks = {"allow": masks.get("allow"), "rows": rows}
    want = without_codes(queries, gallery, k, masks.get("exclude"), **plain_masks)
    for coded in (quantize_rows(gallery), None):
        scores, indices, found = cpu.topk_filtered(
            queries, gallery, k, masks.get("exclude"), coded=coded, **plain_masks
        )
        assert torch.equal(indices, want[1])
        assert_same_scores(scores, want[0])
    return found


def without_codes(queries: Tensor, gallery: Tensor, k: int, exclude=None, **masks) -> tuple[Tensor, Tensor]:
    least, filtering.LEAST_ROWS = filtering.LEAST_ROWS, 1 << 40
    try:
        return cpu.topk(queries, gallery, k, exclude, **masks)
    finally:
        filtering.LEAST_ROWS = least


@given(
    st.integers(1, 40), st.integers(1, 3000), st.integers(1, 70), st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from((torch.float32, torch.float16, torch.bfloat16)), st.integers(0, 99),
)  # fmt: skip
def test_bits_of_the_plain_path(n, size, width, kind, of_queries, dtype, seed):
    torch.manual_seed(seed)
    gallery, queries = rows_of(kind, size, width).to(dtype), rows_of(of_queries, n, width)
    assert_equal_to_plain(queries, gallery, 1 + seed * (size - 1) // 99)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_instruction_set(kind: str, code_isa: str):
    queries, gallery = rows_of(kind, 30, 48), rows_of(kind, 7000, 48)
    for n in (1, 30):
        assert_equal_to_plain(queries[:n], gallery, 10)


def test_exclusions_masks_and_ranges(code_isa: str):
    gallery = rows_of("ties", 9000, 24)
    queries, own = gallery[:50] + 0.0, torch.arange(50)
    allow = torch.rand(9000) < 0.2
    assert_equal_to_plain(queries, gallery, 20, exclude=own)
    assert_equal_to_plain(queries, gallery, 20, allow=allow)
    assert_equal_to_plain(queries, gallery, 20, exclude=own, allow=allow, rows=range(13, 8111))
    far = torch.zeros(9000, dtype=torch.bool)
    far[-21:] = True
    assert_equal_to_plain(queries, gallery, 20, exclude=own, allow=far)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int, code_isa: str):
    torch.set_num_threads(threads)
    assert_equal_to_plain(rows_of("clusters", 300, 32), rows_of("clusters", 9000, 32).half(), 30)


def test_most_rows_are_never_scored(code_isa: str):
    centres = torch.nn.functional.normalize(torch.randn(100, 128), dim=1)
    gallery = centres[torch.randint(100, (30000,))] + 0.05 * torch.randn(30000, 128)
    found = assert_equal_to_plain(centres[:40] + 0.05 * torch.randn(40, 128), gallery, 10)
    assert found["scored"] + found["scored_early"] < 0.02 * 40 * 30000
    assert found["one_plane"] > 0 and found["float32"] == found["uncoded_queries"] == 0


def test_data_that_defeat_the_bound_take_the_plain_way(code_isa: str):
    torch.set_num_threads(1)
    found = assert_equal_to_plain(torch.randn(5, 40), rows_of("flat", 70000, 40), 10)
    assert found["one_plane"] > 0 and found["two_planes"] > 0 and found["float32"] > 0


def test_queries_that_cannot_be_coded(code_isa: str):
    queries = torch.randn(6, 40)
    queries[1], queries[2, 3], queries[4], queries[5] = 0, math.nan, queries[4] * 1e30, queries[5] * 1e-37
    assert assert_equal_to_plain(queries, torch.randn(9000, 40), 7)["uncoded_queries"] == 4
    assert assert_equal_to_plain(queries[[1, 2]], torch.randn(9000, 40), 7)["one_plane"] == 0


def test_denormals_flushed_or_not():
    gallery = torch.randn(9000, 40)
    gallery[::3] *= 1e-38
    with_them = topk(torch.randn(3, 40), gallery, 10)
    try:
        assert torch.set_flush_denormal(True)
        assert_equal_to_plain(torch.randn(300, 40) * 1e-3, gallery, 10)
        assert_equal_to_plain(torch.randn(300, 40) * 1e15, gallery, 10)
    finally:
        torch.set_flush_denormal(False)
    assert with_them.scores.isfinite().all()


def test_the_choice(monkeypatch):
    assert filtering.LEAST_ROWS <= 9000 and filtering.ON_THE_WAY <= 300
    queries, gallery = torch.randn(300, 64), torch.randn(9000, 64)
    calls = []
    real = cpu.topk_filtered
    monkeypatch.setattr(cpu, "topk_filtered", lambda *a, **k: calls.append(1) or real(*a, **k))

    def used(*args, **kwargs) -> bool:
        calls.clear()
        topk(*args, **kwargs)
        return bool(calls)

    from semobridge_ext.runtime import backend

    for isa, (_, runs) in backend._C.isa_table().items():
        if runs:
            backend._C.set_isa(isa)
            assert used(queries, gallery, 10) == isa.endswith("dot"), isa
    if not backend._C.active_dot():
        return
    assert not used(queries[:10], gallery, 10), (
        "quantising the gallery for ten queries costs more than it saves"
    )
    assert not used(queries, gallery[:1000], 10) and not used(queries, gallery, 1000)
    assert not used(queries.double(), gallery, 10)
    assert not used(queries[:, :16].contiguous(), gallery[:, :16], 10)
