"""_ops/blend_logits: cosines, logits and labels against float64 from the rounded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import reference
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from tests.support.assertions import assert_close, assert_same_bits
from tests.support.conversions import Conversions
from tests.support.samples import DTYPES

PARAMS = BlendParams(0.7, 3.0, 5.0, 2.0, 0.9, 0.6, 0.8)
# Queries, classes, width: one of each, odd tails, several panels and blocks of queries.
SHAPES = [(1, 1, 3), (5, 7, 20), (33, 65, 48), (300, 129, 33)]


def operand(classes: int, width: int, bridged: bool = True) -> BlendOperand:
    def unit() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(classes, width, dtype=torch.float64), dim=1)

    exponents = torch.rand(classes, dtype=torch.float64) * 2
    if not bridged:
        return BlendOperand(unit(), unit(), unit(), exponents)
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0][:, : max(1, width // 2)]
    return BlendOperand(unit(), unit(), unit(), exponents, basis @ basis.T, basis)


def oracle(op: BlendOperand, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines as docs/methods.md §1 writes them, one after another."""
    f = x.double()
    crossed = f if op.projector is None else f @ op.projector
    unit, bridged = reference.scale_rows(f), reference.scale_rows(crossed)
    return unit @ op.text.T, unit @ op.bridged.T, bridged @ op.raw.T


def blended(op: BlendOperand, x: Tensor, p: BlendParams) -> Tensor:
    return reference.blend_logits(
        *oracle(op, x), weights=torch.exp(p.s * op.exponents), alpha=p.alpha, beta=p.beta, gamma=p.gamma,
        lambdas=(p.lambda1, p.lambda2, p.lambda3),
    )  # fmt: skip


def conditioned(
    n: int, classes: int, width: int, bridged: bool, dtype: torch.dtype
) -> tuple[BlendOperand, Tensor]:
    """Operand and queries [n, D] that the table's bound speaks of: shares of a row's largest value.

    A lone cosine, or a lone logit of several that cancel, may be zero but for rounding, and what the
    projector leaves of a row that lies across it is normalised with its rounding. In three dimensions one
    draw of a hundred is such a one; it is drawn again.
    """
    while True:
        op, x = operand(classes, width, bridged), (torch.randn(n, width) * 9).to(dtype)
        found = [*oracle(op, x), blended(op, x, PARAMS)]
        kept = x.double() if op.projector is None else x.double() @ op.projector
        if (kept.norm(dim=1) >= x.double().norm(dim=1) / 4).all() and all(
            bool((values.abs().amax(dim=1) >= 0.1).all()) for values in found
        ):
            return op, x


def exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bridged", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cosines_and_logits_match_the_oracle(shape: tuple, bridged: bool, dtype: torch.dtype, isa: str):
    n, classes, width = shape
    op, x = conditioned(n, classes, width, bridged, dtype)
    for got, want in zip(op.similarities(x), oracle(op, x), strict=True):
        assert got.dtype is exact(dtype)
        assert_close(got, want, "op", context=f"{shape} {isa}")
    got = op.logits(x, PARAMS)
    assert got.dtype is exact(dtype)
    assert_close(got, blended(op, x, PARAMS), "op", context=f"logits {shape} {isa}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_labels_are_the_best_logits(dtype: torch.dtype, isa: str):
    op, x = operand(65, 48), torch.randn(300, 48).to(dtype)
    logits = op.logits(x, PARAMS)
    labels = op.labels(x, PARAMS)
    assert labels.dtype is torch.int64 and len(labels.unique()) > 5
    assert torch.equal(labels, logits.argmax(1))


def test_the_lower_class_wins_a_tie(isa: str):
    op = operand(12, 20)
    twins = BlendOperand(
        *(torch.cat([t, t]) for t in (op.text, op.bridged, op.raw, op.exponents)), op.projector, op.factor
    )  # fmt: skip
    labels = twins.labels(torch.randn(200, 20), PARAMS)
    assert int(labels.max()) < 12 and len(labels.unique()) > 3


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_rows_do_not_depend_on_their_batch_or_the_threads(threads: int, isa: str):
    op, x = operand(65, 48), torch.randn(130, 48)
    torch.set_num_threads(1)
    want = op.logits(x, PARAMS)
    torch.set_num_threads(threads)
    assert_same_bits(op.logits(x, PARAMS), want)
    assert_same_bits(torch.cat([op.logits(part, PARAMS) for part in x.split(9)]), want)
    order = torch.randperm(130)
    assert_same_bits(op.logits(x[order], PARAMS), want[order])


def test_no_rows_strided_rows_and_a_zero_row(isa: str):
    op, x = operand(7, 20), torch.randn(30, 20)
    assert op.logits(x[:0], PARAMS).shape == (0, 7) and op.labels(x[:0], PARAMS).shape == (0,)
    wide = torch.full((30, 27), float("nan"))
    wide[:, 4:24] = x
    assert_same_bits(op.logits(wide[:, 4:24], PARAMS), op.logits(x, PARAMS))
    x[3] = 0
    assert all((z[3] == 0).all() and (z[4] != 0).any() for z in op.similarities(x))


def test_nan_stays_in_its_row(isa: str):
    op, x = operand(7, 20), torch.randn(30, 20)
    clean = op.logits(x, PARAMS)
    x[5, 2] = float("nan")
    spoilt = op.logits(x, PARAMS)
    keep = torch.arange(30) != 5
    assert spoilt[5].isnan().all()
    assert_same_bits(spoilt[keep], clean[keep])


def test_the_eager_backend_is_the_same_formula():
    op, x = operand(65, 48), torch.randn(40, 48)
    native = op.logits(x, PARAMS)
    with sb.backend("eager"):
        assert_close(op.logits(x, PARAMS), blended(op, x, PARAMS), "op")
        assert torch.equal(op.labels(x, PARAMS), native.argmax(1))


def test_plain_operands_are_made_once():
    """On a GPU each of these copies waited for the device, and no graph could hold it."""
    op, x = conditioned(5, 7, 20, True, torch.float32)
    with sb.backend("eager"):
        want = op.logits(x, PARAMS)
        assert_close(want, blended(op, x, PARAMS), "op")
        with Conversions() as again:
            assert_same_bits(op.logits(x, PARAMS), want)
            assert torch.equal(op.labels(x, PARAMS), want.argmax(1))
        assert again.count == 0
        other = PARAMS._replace(s=0.2)
        assert_close(op.logits(x, other), blended(op, x, other), "op")
        assert_close(op.logits(x, other._replace(s=0.0)), blended(op, x, other._replace(s=0.0)), "op")
        assert_same_bits(op.logits(x, PARAMS), want)
