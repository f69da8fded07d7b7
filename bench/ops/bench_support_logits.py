"""support_logits beside the ways it is computed today, D = 512, C = 1000.

Members: `eager` is Tip-Adapter's program ([N, S] affinities, then a product with the ready one-hot
matrix), `index_add` adds the affinities up by class instead, `native` sorts the labels on every call,
`set` is a prepared SupportSet, `half` one with float16 keys. `mm` is the bare [N, D]·[D, S] product
into a ready output, `mm_blocks` the same cut into blocks of 512 keys whose output stays in cache.
At 1 281 167 keys the [N, S] forms would need 5 GB more and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from streams import BOUND, CHECKED, WIDTH, product_in_blocks, queries_of, rows_of_classes, time_few
from torch import Tensor

import semobridge_ext as sb

CLASSES, BETA, IMAGENET = 1000, 5.5, 1_281_167
SIZES = [(1024, 16_000), (1024, 128_000), (1, 16_000)]
MEMBERS = ("eager", "index_add", "native", "set", "half", "mm", "mm_blocks")


def class_sums(queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    """float64, in blocks of keys."""
    total = torch.zeros(len(queries), CLASSES, dtype=torch.float64)
    for part in torch.arange(len(keys)).split(1 << 15):
        terms = torch.exp(BETA * (queries.double() @ keys[part].double().T - 1))
        total.index_add_(1, labels[part], terms)
    return total


@lru_cache(maxsize=2)
def oracle(n: int, s: int, half: bool) -> Tensor:
    keys, labels = rows_of_classes(s, CLASSES, 0)
    return class_sums(queries_of(n, CLASSES)[:CHECKED], keys.half() if half else keys, labels)


def program(member: str, n: int, s: int) -> tuple[Callable[[], Tensor], Tensor]:
    queries = queries_of(n, CLASSES)
    keys, labels = rows_of_classes(s, CLASSES, 0)
    if member in ("mm", "mm_blocks"):
        last = s - (s % 512 or 512)
        want = queries[:CHECKED].double() @ keys[last : last + 1 if member == "mm_blocks" else s].double().T
        if member == "mm_blocks":
            return product_in_blocks(queries, keys, 512), want
        out = torch.empty(n, s)
        return lambda: torch.mm(queries, keys.T, out=out)[:CHECKED, last:], want
    if member == "native":
        return lambda: sb.support_logits(queries, keys, labels, CLASSES, beta=BETA)[:CHECKED], oracle(
            n, s, False
        )
    if member in ("set", "half"):
        support = sb.SupportSet(keys.half() if member == "half" else keys, labels, CLASSES)
        return lambda: support.logits(queries, beta=BETA)[:CHECKED], oracle(n, s, member == "half")

    def affinities() -> Tensor:
        return (queries @ keys.T).sub_(1).mul_(BETA).exp_()

    if member == "index_add":
        return lambda: torch.zeros(n, CLASSES).index_add_(1, labels, affinities())[:CHECKED], oracle(
            n, s, False
        )
    values = torch.nn.functional.one_hot(labels, CLASSES).float()
    return lambda: (affinities() @ values)[:CHECKED], oracle(n, s, False)


@pytest.mark.parametrize(("n", "s", "member"), [(n, s, m) for n, s in SIZES for m in MEMBERS])
def test_support_logits(benchmark, timed, n: int, s: int, member: str) -> None:
    function, want = program(member, n, s)
    group, flops = f"support_logits/{n}x{s}/C1000/float32", 2.0 * n * s * WIDTH
    if s > 100_000:
        time_few(
            benchmark, function, group=group, member=member, oracle=want, flops=flops, rounds=7
        )  # fmt: skip
    else:
        timed(
            function, group=group, member=member, oracle=want, bound=BOUND, flops=flops,
            bytes_moved=4.0 * WIDTH * (n + s), rows=n, keys=s,
        )  # fmt: skip


@pytest.mark.parametrize("member", ["mapped", "native", "mm_blocks"])
def test_imagenet(benchmark, tmp_path, member: str) -> None:
    """1.28 million float16 keys: in memory, and mapped from a saved SupportSet."""
    n, queries = 1024, queries_of(1024, CLASSES)
    keys, labels = (torch.empty(IMAGENET, WIDTH, dtype=torch.float16), torch.arange(IMAGENET) % CLASSES)
    some = rows_of_classes(1 << 16, CLASSES, 0)[0].half()
    for part in torch.arange(IMAGENET).split(1 << 16):
        keys[part] = some[: len(part)].roll(int(part[0]) // (1 << 16), 1)
    if member == "mm_blocks":
        last = IMAGENET - (IMAGENET % 512 or 512)
        want = queries[:CHECKED].double() @ keys[last : last + 1].double().T
        function = product_in_blocks(queries, keys, 512)
    else:
        want = class_sums(queries[:CHECKED], keys, labels)
        if member == "native":

            def function() -> Tensor:
                return sb.support_logits(queries, keys, labels, CLASSES, beta=BETA)[:CHECKED]
        else:
            sb.SupportSet(keys, labels, CLASSES).save(tmp_path / "support.safetensors")
            support = sb.SupportSet.load(tmp_path / "support.safetensors")
            del keys

            def function() -> Tensor:
                return support.logits(queries, beta=BETA)[:CHECKED]

    time_few(
        benchmark, function, group=f"support_logits/{n}x{IMAGENET}/C1000/float16 keys",
        member={"mm_blocks": "mm"}.get(member, member), oracle=want, flops=2.0 * n * IMAGENET * WIDTH,
    )  # fmt: skip


@pytest.mark.parametrize("member", ["eager", "native"])
def test_backward(timed, member: str) -> None:
    """Forward and gradients of queries and keys, as Tip-Adapter-F's step needs."""
    n, s = 256, 16_000
    queries = queries_of(1024, CLASSES)[:n].clone().requires_grad_()
    keys, labels = rows_of_classes(s, CLASSES, 0)
    keys = keys.clone().requires_grad_()
    values = torch.nn.functional.one_hot(labels, CLASSES).float()
    weight = torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(2))

    def step(q: Tensor, k: Tensor, use: str) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            if use == "native":
                out = sb.support_logits(q, k, labels, CLASSES, beta=BETA)
            else:
                out = torch.exp(BETA * (q @ k.T - 1)) @ values.to(q.dtype)
            return torch.cat(torch.autograd.grad((out * weight.to(q.dtype)).sum(), (q, k)))[: n + CHECKED]

    want = step(queries.detach().double().requires_grad_(), keys.detach().double().requires_grad_(), "eager")
    timed(
        lambda: step(queries, keys, member), group=f"support_logits backward/{n}x{s}/C1000/float32",
        member=member, oracle=want, bound=BOUND, flops=8.0 * n * s * WIDTH, bytes_moved=8.0 * WIDTH * (n + s),
    )  # fmt: skip
