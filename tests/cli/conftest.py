"""`fake_picto` puts the stand-in where the commands look for the embedded data."""

from __future__ import annotations

import pytest

from tests.support import fake_picto as fake


@pytest.fixture
def fake_picto(monkeypatch):
    return fake.install(monkeypatch)


@pytest.fixture
def small(fake_picto, monkeypatch):
    """The stand-in, and a demo with less to do."""
    fake.shrink_demo(monkeypatch)
    return fake_picto
