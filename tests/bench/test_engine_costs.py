"""bench/studies/engine_costs.py: its tables stand in the page, and agree with what they are made of."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.support.source_tree import ROOT

SCRIPT, PAGE = ROOT / "bench" / "studies" / "engine_costs.py", ROOT / "docs" / "guides" / "engines.md"
if not SCRIPT.is_file() or not PAGE.is_file():
    pytest.skip("the bench and docs folders are not beside these tests", allow_module_level=True)
spec = importlib.util.spec_from_file_location("engine_costs", SCRIPT)
assert spec is not None and spec.loader is not None
costs = importlib.util.module_from_spec(spec)
sys.modules["engine_costs"] = costs
spec.loader.exec_module(costs)


def test_the_page_holds_what_the_script_prints(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "engines.md"
    copy.write_text(page, encoding="utf-8")
    costs.write_between(copy, costs.MARKS, costs.text())
    assert copy.read_text(encoding="utf-8") == page


def test_measured_rows_are_those_of_topk():
    """86 ms and 5.3 s on ten million rows, 879 ms on 200 000: docs/ops/topk.md."""
    text = (ROOT / "docs" / "ops" / "topk.md").read_text(encoding="utf-8")
    assert "86 ms a query" in text and "5.3 s for 1000" in text and "| 879 ms |" in text
    gallery, flat, gpu, _ = costs.ENGINES
    assert costs._time(costs.seconds(gallery, 10**7, 1)) == "86 ms"
    assert costs._time(costs.seconds(gallery, 10**7, 1000)) == "5.3 s"
    assert costs._time(flat.seconds(2e5, 1000)) == "879 ms"
    # 10⁹ rows of 1024 bytes on GPUs with room for 72 GB.
    assert costs.machines(gpu, 10**9) == 15
