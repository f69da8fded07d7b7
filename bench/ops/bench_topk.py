"""topk beside FAISS's flat index, usearch's exact search, and the product with torch.topk; D = 512, k = 10.

`eager` is torch.topk(queries @ gallery.T), `mm` the bare product into a ready output, `half` ours with a
float16 gallery, `prepared` a Gallery, whose codes are there already, `float32` ours without codes. usearch
takes many times longer than the others and has a group of 100 queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from streams import BOUND, CHECKED, WIDTH, queries_of, rows_of_classes, time_few
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.topk import filtering

K, ROWS, CLASSES = 10, 200_000, 1000
GROUPS = {
    1000: ("eager", "float32", "native", "half", "prepared", "faiss", "mm"),
    100: ("eager", "native", "prepared", "faiss", "usearch", "mm"),
}
MILLION = 1_000_000


@lru_cache(maxsize=1)
def oracle(half: bool) -> Tensor:
    gallery = rows_of_classes(ROWS, CLASSES, 0)[0]
    gallery = gallery.half() if half else gallery
    queries = queries_of(1000, CLASSES)[:CHECKED].double()
    best = [torch.topk(queries @ part.double().T, K).values for part in gallery.split(1 << 15)]
    return torch.topk(torch.cat(best, 1), K).values


def program(member: str, n: int) -> tuple[Callable[[], Tensor], Tensor]:
    queries, gallery = queries_of(1000, CLASSES)[:n], rows_of_classes(ROWS, CLASSES, 0)[0]
    if member == "mm":
        out = torch.empty(n, ROWS)
        want = queries[:CHECKED].double() @ gallery[:100].double().T
        return lambda: torch.mm(queries, gallery.T, out=out)[:CHECKED, :100], want
    if member == "eager":
        return lambda: torch.topk(queries @ gallery.T, K).values[:CHECKED], oracle(False)
    if member == "native":
        return lambda: sb.topk(queries, gallery, K).scores[:CHECKED], oracle(False)
    if member == "float32":

        def without_codes() -> Tensor:
            least, filtering.LEAST_ROWS = filtering.LEAST_ROWS, ROWS + 1
            try:
                return sb.topk(queries, gallery, K).scores[:CHECKED]
            finally:
                filtering.LEAST_ROWS = least

        return without_codes, oracle(False)
    if member == "prepared":
        ready = sb.Gallery(gallery)
        return lambda: ready.topk(queries, K).scores[:CHECKED], oracle(False)
    if member == "half":
        halves = gallery.half()
        return lambda: sb.topk(queries, halves, K).scores[:CHECKED], oracle(True)
    if member == "faiss":
        faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(WIDTH)
        index.add(gallery.numpy())
        asked = queries.numpy()
        return lambda: torch.from_numpy(index.search(asked, K)[0])[:CHECKED], oracle(False)
    usearch = pytest.importorskip("usearch.index", reason="pip install usearch")
    rows, asked, kind = gallery.numpy(), queries.numpy(), usearch.MetricKind.IP

    def search() -> Tensor:
        found = usearch.search(rows, asked, K, kind, exact=True, threads=torch.get_num_threads())
        return 1 - torch.from_numpy(found.distances)[:CHECKED]

    return search, oracle(False)


@pytest.mark.parametrize(("n", "member"), [(n, m) for n, members in GROUPS.items() for m in members])
def test_topk(benchmark, n: int, member: str) -> None:
    function, want = program(member, n)
    time_few(
        benchmark, function, group=f"topk/{n}x{ROWS}x{WIDTH}/k{K}/float32", member=member, oracle=want,
        flops=2.0 * n * ROWS * WIDTH, rounds=7,
    )  # fmt: skip


@pytest.mark.parametrize("member", ["eager", "native", "mm"])
def test_one_query(timed, member: str) -> None:
    function, want = program(member, 1)
    timed(
        function, group=f"topk/1x{ROWS}x{WIDTH}/k{K}/float32", member=member, oracle=want[:1], bound=BOUND,
        flops=2.0 * ROWS * WIDTH, bytes_moved=4.0 * ROWS * WIDTH,
    )  # fmt: skip


@lru_cache(maxsize=1)
def million() -> tuple[Tensor, sb.Gallery]:
    rows = rows_of_classes(MILLION, CLASSES, 0)[0]
    return rows, sb.Gallery(rows)


@pytest.mark.parametrize(("n", "member"), [(n, m) for n in (1, 16) for m in ("eager", "native", "prepared")])
def test_a_million_rows(benchmark, n: int, member: str) -> None:
    rows, ready = million()
    queries = queries_of(1000, CLASSES)[:n]
    want = torch.cat([torch.topk(queries.double() @ r.double().T, K).values for r in rows.split(1 << 15)], 1)
    function = {
        "eager": lambda: torch.topk(queries @ rows.T, K).values,
        "native": lambda: sb.topk(queries, rows, K).scores,
        "prepared": lambda: ready.topk(queries, K).scores,
    }[member]
    time_few(
        benchmark, function, group=f"topk/{n}x{MILLION}x{WIDTH}/k{K}/float32", member=member,
        oracle=torch.topk(want, K).values, flops=2.0 * n * MILLION * WIDTH, rounds=15,
    )  # fmt: skip
