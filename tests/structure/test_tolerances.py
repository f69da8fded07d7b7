"""One comparer, one table: no test brings a bound of its own, and every family of the table is used.

Read from the source, the programs in strings too. What a test may write as a number is a claim about the
method, such as a gain or a spread; how far rounding may lead stands in tests/support/tolerances.py alone.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT, plant

HOME = ("tests", "support")
# Comparers with bounds of their own, given or by default; `torch.testing` is one with both.
FOREIGN = {"allclose", "isclose", "assert_allclose", "assert_almost_equal", "assert_array_almost_equal",
           "assertAlmostEqual"}  # fmt: skip
BOUNDS = {"rtol", "atol"}
# The cut of singular values is an argument of the method, not a tolerance of a test.
CUTS = {"pinv", "matrix_rank", "Bridge", "from_clip"}
LEAST_CLAIM = 0.01  # what is asserted to be smaller than less than this is a tolerance


def sources(root: Path) -> Iterable[tuple[str, ast.AST]]:
    """Each file outside the home of tolerances, and each program in its strings: place and tree."""
    return _own_sources() if root == ROOT else _sources(root)


@cache
def _own_sources() -> list[tuple[str, ast.AST]]:
    """Of this repository, which every rule looks at and none changes."""
    return list(_sources(ROOT))


def _sources(root: Path) -> Iterator[tuple[str, ast.AST]]:
    for path in sorted((root / "tests").rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[:2] == HOME:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield f"{name}", tree
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
                try:
                    yield f"{name}:{node.lineno}, a program", ast.parse(textwrap.dedent(node.value))
                except SyntaxError:
                    continue


def _last(node: ast.AST) -> str:
    """The last part of a dotted name; of what is none, its text."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ast.unparse(node).rpartition(".")[2]


def _foreign_names(tree: ast.AST) -> set[str]:
    """What the file calls torch.testing's comparer, besides its full name."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("testing")
        for alias in node.names
    }


def comparers(root: Path) -> list[str]:
    """Comparers other than the one of tests/support/assertions.py, called or handed on."""
    wrong = []
    for place, tree in sources(root):
        foreign = FOREIGN | _foreign_names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Attribute, ast.Name)):
                continue
            last = _last(node)
            if last not in foreign and last != "assert_close":
                continue  # before it is written out, which takes long for all names of a tree
            text = ast.unparse(node)
            if last in foreign or text.endswith("testing.assert_close"):
                wrong.append(
                    f"{place}:{node.lineno}: {text}; use assert_close of tests/support/assertions.py"
                )
    return wrong


def bounds(root: Path) -> list[str]:
    """Bounds as arguments: rtol, atol, and approx with numbers of its own."""
    wrong = []
    for place, tree in sources(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            names = {keyword.arg for keyword in node.keywords}
            called = _last(node.func)
            found = names & BOUNDS if called not in CUTS else set()
            if called == "approx":
                found = names & {"rel", "abs"} or ({"rel"} if len(node.args) > 1 else set())
            wrong += [f"{place}:{node.lineno}: {called} is given {name}=" for name in sorted(found)]
    return wrong


def _numbers(node: ast.AST) -> Iterator[float]:
    """The literals of a bound such as `1e-5`, `1e-5 * scale` or `4 * 1e-5`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield node.value
    elif isinstance(node, ast.BinOp):
        yield from _numbers(node.left)
        yield from _numbers(node.right)


def comparisons(root: Path) -> list[str]:
    """`error < 1e-5` in an assertion, or `1e-5 > error`; a floor such as `signal > 1e-5` is none."""
    wrong = []
    for place, tree in sources(root):
        asserted = (n.test for n in ast.walk(tree) if isinstance(n, ast.Assert))
        for node in (n for test in asserted for n in ast.walk(test) if isinstance(n, ast.Compare)):
            sides = [node.left, *node.comparators]
            for left, kind, right in zip(sides, node.ops, sides[1:], strict=False):
                above = {ast.Lt: right, ast.LtE: right, ast.Gt: left, ast.GtE: left}.get(type(kind))
                if above is not None and any(0 < n < LEAST_CLAIM for n in _numbers(above)):
                    wrong.append(f"{place}:{node.lineno}: {ast.unparse(node)} compares with a number")
    return wrong


def unused(root: Path) -> list[str]:
    """Families of the table that no test names."""
    table = root.joinpath(*HOME, "tolerances.py")
    families = {
        key.elts[0].value
        for node in ast.walk(ast.parse(table.read_text(encoding="utf-8")))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Tuple) and isinstance(key.elts[0], ast.Constant)
    }
    left = set(families)
    for path in sorted((root / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path in (table, table.with_name("test_assertions.py")) or not any(f in text for f in left):
            continue
        left -= {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
    return [f"no test names the family {family!r}" for family in sorted(left)]


RULES = (comparers, bounds, comparisons, unused)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree(rule):
    assert not (wrong := rule(ROOT)), "\n" + "\n".join(wrong)


# -- the rules themselves ----------------------------------------------------------------------------


TORCH, NUMPY = "torch", "np"  # so that the texts below are not themselves found
TABLE = "tests/support/tolerances.py"
GOOD = {
    TABLE: 'TABLE = {("op", F64): Tolerance(0, 1e-13, 1e-15)}\nLIMITS = {("tower", F32): (1e-5, 1e-6)}\n',
    "tests/support/assertions.py": f"import numpy as np\nassert {NUMPY}.allclose(a, b, rtol=1e-5)\n",
    "tests/test_a.py": (
        "from tests.support.assertions import assert_close\n"
        'assert_close(got, want, "op", context="tower")\n'
        "w = torch.linalg.pinv(w, atol=0.3, rtol=0.0)\n"
        "b = sb.Bridge.from_clip(model, atol=0.8)\n"
        "assert x == pytest.approx(1 / 3)\n"
        "assert signal > 1e-6 and 1e-6 < signal and share < 0.05 and 0.014 < gain < 0.026\n"
        "near = scores.diff() < 1e-6\n"
    ),
}
BAD = {
    "torch's comparer": (comparers, "torch.testing.assert_close(a, b)", "torch.testing.assert_close; use"),
    "torch's comparer, imported": (
        comparers, f"from {TORCH}.testing import assert_close as near\nnear(a, b)", "test_b.py:2: near; use",
    ),
    "torch's comparer, handed on": (comparers, "check(torch.testing.assert_close)", "test_b.py:1: torch"),
    "torch.allclose": (comparers, "assert torch.allclose(a, b)", "torch.allclose; use"),
    "a method": (comparers, "assert a.allclose(b)", "a.allclose; use"),
    "isclose": (comparers, "assert math.isclose(a, b, rel_tol=0.1)", "math.isclose; use"),
    "numpy's comparer": (comparers, "np.testing.assert_allclose(a, b)", "np.testing.assert_allclose; use"),
    "in a program": (
        comparers, "CHILD = '''\nimport torch\ntorch.allclose(a, b)\n'''", "a program:3: torch.allclose; use",
    ),
    "rtol": (bounds, "compare(a, b, rtol=1e-5)", "test_b.py:1: compare is given rtol="),
    "atol by a name": (bounds, "close = functools.partial(compare, atol=NEAR)", "partial is given atol="),
    "approx with abs": (bounds, "assert a == pytest.approx(b, abs=1e-3)", "approx is given abs="),
    "approx with rel": (bounds, "assert a == approx(b, rel=0.1)", "approx is given rel="),
    "approx by place": (bounds, "assert a == approx(b, 0.1)", "approx is given rel="),
    "less than": (comparisons, "assert float(error) < 1e-5", "test_b.py:1: float(error) < 1e-05 compares"),
    "less than a share": (comparisons, "assert error <= 1e-5 * float(want.max())", "1e-05 * float"),
    "greater than": (comparisons, "assert 1e-5 > error", "1e-05 > error"),
    "in a chain": (comparisons, "assert 0 < error < 1e-5", "0 < error < 1e-05"),
    "inside a call": (comparisons, "assert all(e <= 2e-3 for e in errors)", "e <= 0.002"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_passes_a_good_tree(rule, tmp_path: Path):
    assert rule(plant(tmp_path, GOOD)) == []


@pytest.mark.parametrize("case", BAD)
def test_rule_refuses(case: str, tmp_path: Path):
    rule, text, told = BAD[case]
    wrong = rule(plant(tmp_path, GOOD | {"tests/ops/test_b.py": text}))
    assert len(wrong) == 1 and told in wrong[0], wrong


def test_a_family_that_nothing_names_is_told(tmp_path: Path):
    spare = {
        TABLE: GOOD[TABLE].replace("tower", "spare"),
        "tests/support/test_assertions.py": 'x = "spare"\n',
    }
    assert unused(plant(tmp_path, GOOD | spare)) == ["no test names the family 'spare'"]
