"""cpu.py: a call of `ops.Projection` checks what it is given; the core below takes addresses on trust."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import assert_close
from tests.support.fresh import Program, run_fresh

N, K, M = 3, 4, 6
BAD_CALLS: list[tuple[str, type[Exception], Callable]] = [
    (r"x must have width 4", ValueError, lambda p: p(torch.ones(N, 700))),
    (r"x must have width 4", ValueError, lambda p: p(torch.tensor(1.0))),
    (r"x must be float32", TypeError, lambda p: p(torch.ones(N, K, dtype=torch.int64))),
    (r"x must be a torch.Tensor", TypeError, lambda p: p([[1.0] * K])),
    (r"x must be on cpu", ValueError, lambda p: p(torch.ones(N, K, device="meta"))),
    (r"x must be of a dtype that is summed", TypeError, lambda p: p(torch.ones(N, K, dtype=torch.float64))),
    (r"bias must be \[6\] or \[3, 6\]", ValueError, lambda p: p(torch.ones(N, K), bias=torch.ones(K))),
    (r"bias must be \[6\] or \[3, 6\]", ValueError, lambda p: p(torch.ones(N, K), bias=torch.ones(2, M))),
    (r"bias must be torch.float32", TypeError, lambda p: p(torch.ones(N, K), bias=torch.ones(M).half())),
    (r"norms must be \[3\]", ValueError, lambda p: p(torch.ones(N, K), norms=torch.ones(2))),
    (r"norms must be contiguous", ValueError, lambda p: p(torch.ones(N, K), norms=torch.ones(6)[::2])),
    (r"out must be \[3, 6\]", ValueError, lambda p: p(torch.ones(N, K), out=torch.ones(N, K))),
    (r"out must be contiguous", ValueError, lambda p: p(torch.ones(N, K), out=torch.ones(M, N).T)),
    (r"out must be torch.float32", TypeError, lambda p: p(torch.ones(N, K), out=torch.ones(N, M).double())),
]  # fmt: skip
BAD_MATRICES: list[tuple[str, type[Exception], Callable]] = [
    (r"first must be 2-D", ValueError, lambda: sb.ops.Projection(torch.ones(K))),
    (r"first must be on cpu", ValueError, lambda: sb.ops.Projection(torch.ones(K, M, device="meta"))),
    (r"first must be float32", TypeError, lambda: sb.ops.Projection(torch.ones(K, M).long())),
    (r"second must be 2-D", ValueError, lambda: sb.ops.Projection(torch.ones(K, M), torch.ones(M))),
    (r"compute must be", TypeError, lambda: sb.ops.Projection(torch.ones(K, M), compute=torch.float16)),
    (r"residual must", ValueError, lambda: sb.ops.Projection(torch.ones(K, M), residual=True)),
]  # fmt: skip


@pytest.mark.parametrize("text,kind,call", BAD_CALLS)
def test_refused_call(text: str, kind: type[Exception], call: Callable):
    with pytest.raises(kind, match=text):
        call(sb.ops.Projection(torch.randn(K, M)))


@pytest.mark.parametrize("text,kind,make", BAD_MATRICES)
def test_refused_matrix(text: str, kind: type[Exception], make: Callable):
    with pytest.raises(kind, match=text):
        make()


def test_out_may_not_be_the_input():
    x = torch.randn(N, K)
    with pytest.raises(ValueError, match="out must lie apart from x"):
        sb.ops.Projection(torch.eye(K))(x, out=x)


def test_a_wrong_width_does_not_reach_the_heap():
    """Reading or writing past it ends some processes and spoils the others, so in one of its own."""
    code = """
import torch, semobridge_ext as sb
p = sb.ops.Projection(torch.randn(64, 64))
for width in (0, 1, 63, 65, 1000, 100_000):
    for rows in (1, 50):
        try:
            p(torch.ones(rows, width))
        except ValueError:
            continue
        raise SystemExit(f"width {width} was taken")
"""
    (done,) = run_fresh([Program(code)])
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


@pytest.mark.parametrize("shape", [(K,), (N, K), (2, N, K), (0, K)], ids=str)
def test_what_is_given_is_used(shape: tuple[int, ...]):
    first, x, bias = torch.randn(K, M), torch.randn(shape), torch.randn(M)
    n = x.numel() // K
    norms, out = torch.full((n,), -1.0), torch.full((*shape[:-1], M), -1.0)
    assert sb.ops.Projection(first)(x, bias=bias, norms=norms, out=out) is out
    want: Tensor = x.double() @ first.double() + bias.double()
    length = want.square().sum(-1, keepdim=True).sqrt()
    if n:
        assert_close(out, want / length, "op")
        assert_close(norms, length.reshape(n), "op")
