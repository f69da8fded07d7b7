"""The two projections of a small model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.isoclip import WIDTH, T, V


@pytest.fixture
def matrices() -> tuple[Tensor, Tensor]:
    return torch.randn(V, WIDTH), torch.randn(T, WIDTH)
