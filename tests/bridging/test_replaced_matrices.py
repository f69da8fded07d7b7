"""bridge_module.py: a bridge whose matrices were written or replaced computes with what it now holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from tests.support.assertions import assert_close
from tests.support.projections import OPTIONS, chain, with_rank

WIDTH, ROWS = 16, 16  # square, so that a transposed view fits


Maker = Callable[[], Tensor]


def freed(b: sb.Bridge) -> None:
    """Gives the matrix's memory back, so that the next one may lie at the same address."""
    b.inverse = nn.Parameter(torch.empty(1).expand(WIDTH, ROWS), requires_grad=False)


def set_data(b: sb.Bridge, make: Maker) -> None:
    b.inverse.data = torch.empty(0)
    b.inverse.data = make()


def new_parameter(b: sb.Bridge, make: Maker) -> None:
    freed(b)
    b.inverse = nn.Parameter(make(), requires_grad=False)


def assigned_state(b: sb.Bridge, make: Maker) -> None:
    freed(b)
    b.load_state_dict({**b.state_dict(), "inverse": make()}, assign=True)


def copied(b: sb.Bridge, make: Maker) -> None:
    with torch.inference_mode():
        b.inverse.copy_(make())


def transposed_view(b: sb.Bridge, make: Maker) -> None:
    b.inverse.copy_(make())
    outputs(b, torch.ones(1, WIDTH))
    b.inverse.data = b.inverse.data.T


REPLACEMENTS = [set_data, new_parameter, assigned_state, copied, transposed_view]


def outputs(b: sb.Bridge, f: Tensor) -> list[Tensor]:
    return [b(f, **options) for options in OPTIONS]


def check(b: sb.Bridge, f: Tensor) -> None:
    inverse, w = b.inverse.detach().clone(), b.text_projection.clone()
    for found, options in zip(outputs(b, f), OPTIONS, strict=True):
        assert_close(found, chain(f, w, inverse=inverse, **options), "bridge")


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_replaced_again_and_again(replace: Callable):
    """Freed memory comes back under the same address: one of many replacements would meet it."""
    f, b = torch.randn(3, WIDTH), sb.Bridge(with_rank(ROWS, WIDTH, 9))
    for _ in range(12):
        replace(b, lambda: torch.randn(WIDTH, ROWS))
        check(b, f)


def test_replaced_text_projection():
    f, b = torch.randn(3, WIDTH), sb.Bridge(with_rank(ROWS, WIDTH, 9))
    for _ in range(12):
        b.text_projection = torch.empty(0)
        b.text_projection = torch.randn(ROWS, WIDTH)
        check(b, f)


@pytest.mark.parametrize("matrix", ["inverse", "text_projection"])
@pytest.mark.parametrize("made", ["constructed", "assigned"])
def test_written_in_inference_mode(made: str, matrix: str):
    f = torch.randn(3, WIDTH)
    with torch.inference_mode():
        b = sb.Bridge(with_rank(ROWS, WIDTH, 9))
        if made == "assigned":
            b.load_state_dict({name: value.clone() for name, value in b.state_dict().items()}, assign=True)
            assert b.inverse.is_inference() and b.text_projection.is_inference()
        for _ in range(3):
            getattr(b, matrix).copy_(torch.randn(ROWS, WIDTH))
            check(b, f)


def test_first_called_in_inference_mode_and_then_trained():
    """What is derived there takes part in a gradient later: no inference tensor may stay behind."""
    with torch.inference_mode():
        b = sb.Bridge(with_rank(ROWS, WIDTH, 9))
        outputs(b, torch.randn(3, WIDTH))
        b.inverse.mul_(2)
        outputs(b, torch.randn(3, WIDTH))
    f = torch.randn(3, WIDTH, requires_grad=True)
    (f @ b.projector).sum().backward()
    assert f.grad is not None
    assert_close(f.grad, b.projector.detach().double().sum(1).expand(3, -1), "op_grad")
