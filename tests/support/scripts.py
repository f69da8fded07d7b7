"""Loads a script of bench/, which is no package, as a module."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.support.source_tree import ROOT

BENCH = ROOT / "bench"


def load_script(name: str) -> ModuleType:
    if not BENCH.is_dir():
        pytest.skip("the bench folder is not beside these tests", allow_module_level=True)
    spec = importlib.util.spec_from_file_location(f"bench_{name.replace('/', '_')}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
