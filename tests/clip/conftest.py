"""Fixtures of the tests of clip/."""

from __future__ import annotations

import pytest

from semobridge_ext.clip import texts


@pytest.fixture
def tree_only(monkeypatch):
    """The model's own pass may run for the comparison of one text, not for all."""

    def refuse(*_, **__):
        raise AssertionError("the model's own pass ran")

    monkeypatch.setattr(texts, "_by_model", refuse)
