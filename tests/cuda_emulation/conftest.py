from __future__ import annotations

import pytest

from tests.cuda_emulation.build import Emulation


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    return Emulation(tmp_path_factory.mktemp("emulation")).build()
