from __future__ import annotations

from collections.abc import Iterator

import pytest

from semobridge_ext import _backend

ISAS = [name for name, (_, runs) in _backend._C.isa_table().items() if runs]


@pytest.fixture(params=ISAS)
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _backend._C.active_isa()
    _backend._C.set_isa(request.param)
    yield request.param
    _backend._C.set_isa(before)
