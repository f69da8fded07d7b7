"""Offsets of Triton's pointers: what multiplies a row's number is counted in 64 bits.

An argument below 2³¹ arrives in 32 bits, and so does every product that is made of it. A row times its
columns passes 2³¹ long before the rows do, and Triton says nothing: it reads and writes elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.scripts import load_script
from tests.support.source_tree import need_source

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
LINE = re.compile(r"\s*(%[\w#:]+) = ([\w.]+) (.*?) : (.*?)(?: loc\(.*)?$")
NAME = re.compile(r"%[\w#]+")
PROGRAMS = {"tt.get_program_id", "arith.remsi", "arith.divsi"}  # its number, or one of its axes


def narrow_products(ttir: str) -> list[str]:
    """Lines of a kernel that multiply two numbers in 32 bits on their way to a pointer's 32-bit offset.

    A program's number times its block's size is the number of a row or a column, and stays in 32 bits.
    """
    made = {m[1].split(":")[0]: m for m in map(LINE.match, ttir.splitlines()) if m}
    found = []
    for name, line in made.items():
        if line[2] != "tt.addptr" or not re.search(r", (tensor<[\dx]*xi32>|i32)(?!\w)", line[4]):
            continue
        waiting, seen = [NAME.findall(line[3])[1]], set()
        while waiting:
            at = waiting.pop()
            if at in seen or at not in made:
                continue
            seen.add(at)
            operands = NAME.findall(made[at][3])
            if made[at][2] == "arith.muli":
                makers = {made[o][2] if o in made else "argument" for o in operands}
                if "arith.constant" not in makers or not makers & PROGRAMS:
                    found.append(f"{name}: {made[at][0].strip()}")
                continue
            waiting += operands
    return found


def test_the_search_sees_what_it_looks_for():
    """A made-up kernel that writes six numbers a row, and one that widens the row first."""
    text = """
    %c6 = arith.constant dense<6> : tensor<4xi32> loc(#loc)
    %p = tt.get_program_id x : i32 loc(#loc)
    %c4 = arith.constant 4 : i32 loc(#loc)
    %first = arith.muli %p, %c4 : i32 loc(#loc)
    %s = tt.splat %first : i32 -> tensor<4xi32> loc(#loc)
    %r = tt.make_range {end = 4 : i32, start = 0 : i32} : tensor<4xi32> loc(#loc)
    %rows = arith.addi %s, %r : tensor<4xi32> loc(#loc)
    %six = arith.muli %rows, %c6 : tensor<4xi32> loc(#loc)
    %at = tt.addptr %ptr, %six : tensor<4x!tt.ptr<f32>>, tensor<4xi32> loc(#loc)
    """
    assert len(narrow_products(text)) == 1
    assert narrow_products(text.replace("%ptr, %six", "%ptr, %rows")) == []
    assert narrow_products(text.replace(", tensor<4xi32> loc", ", tensor<4xi64> loc")) == []


def test_offsets_of_rows_are_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    need_source()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    resources = load_script("gpu/triton_resources")
    first = {case.kernel.function.fn.__name__: case for case in reversed(resources.cases())}
    assert len(first) >= 7
    for name, case in first.items():
        compiled = resources.compile_one(case, resources.tiles(case, 90)[0], 90)
        assert narrow_products(compiled.asm["ttir"]) == [], name
