"""How a search on a GPU is cut, and which product its chunks take; fake CUDA tensors stand for a GPU's."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from semobridge_ext._ops.topk import chunks as cut
from semobridge_ext._ops.topk import cuda as topk_cuda
from semobridge_ext.runtime import half_products

H100 = 132  # multiprocessors
L2 = 40 << 20  # bytes of an A100's, the smaller one


@pytest.mark.parametrize("n", [1, 7, 1000, 4096, 5000, 100_000])
@pytest.mark.parametrize("g", [1, 300, 5000, 1 << 20])
def test_scores_of_a_chunk_stay_in_the_cache(n: int, g: int):
    parts = list(cut.blocks(n))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    for part in parts:
        size = part.stop - part.start
        width = cut.columns(size, g)
        assert 1 <= width <= g and 4 * size * width <= 24 << 20 < L2
        assert width == g or width % 512 == 0


def test_chunks_are_the_product_in_one_piece_of_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cut, "_SCORES", 1)  # chunks of 1024 rows
    q, gallery = torch.randint(-3, 4, (5, 6)).float(), torch.randint(-3, 4, (2501, 6)).bfloat16()
    places, found = set(), []
    for scores, first in cut.chunks(q, gallery):
        assert first == sum(part.shape[1] for part in found)
        assert scores.data_ptr() % 16 == 0 and scores.stride(0) % 4 == 0, "rows lie on 16-byte borders"
        places.add(scores.data_ptr())
        found.append(scores.clone())
    assert len(found) == 3 and len(places) == 1
    assert torch.equal(torch.cat(found, dim=1), q @ gallery.float().T)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "left,right,product",
    [
        (torch.float16, torch.float16, "aten.mm.dtype_out"),
        (torch.bfloat16, torch.bfloat16, "aten.mm.dtype_out"),
        (torch.float16, torch.bfloat16, "aten.mm.out"),
        (torch.float32, torch.float16, "aten.mm.out"),
        (torch.float32, torch.float32, "aten.mm.out"),
    ],
)
@pytest.mark.skipif(not hasattr(torch.ops.aten.mm, "dtype_out"), reason="needs PyTorch 2.8")
def test_half_types_are_multiplied_as_they_are(
    left: torch.dtype, right: torch.dtype, product: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(half_products, "_capable", lambda device, dtype: True)
    with FakeTensorMode(), Calls() as calls:
        q, gallery = (
            torch.empty(3, 8, device="cuda", dtype=left),
            torch.empty(90, 8, device="cuda", dtype=right),
        )
        ((scores, first),) = cut.chunks(q, gallery)
    assert scores.dtype is torch.float32 and scores.shape == (3, 90) and first == 0
    assert product in calls.names and ("aten._to_copy.default" in calls.names) is (left is not right)


@pytest.mark.parametrize("n,cols", [(1, 1 << 20), (16, 1 << 18), (1000, 6144), (4096, 1536)])
def test_ranges_fill_the_device(n: int, cols: int):
    splits = topk_cuda.split_count(n, cols, torch.device("cpu"))  # as an H100
    groups = -(-cols // 512)
    assert 1 <= splits <= groups
    warps = n * splits
    assert min(8 * H100 - n, n * groups) < warps + 1 and warps <= max(8 * H100, n)
