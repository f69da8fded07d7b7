"""Imports go downward, in no circle; products leave oracles alone; tests import no test.

Read from the source, those inside functions too; what stands under TYPE_CHECKING is no import.
"""

from __future__ import annotations

import ast
import itertools
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.source_tree import ROOT, plant

PACKAGE = "semobridge_ext"
# From the ground up: a module imports from its own layer and those before it.
LAYERS = (
    (
        "_C",
        "_arrays",
        "_checkpoint",
        "_checksum",
        "_digest",
        "_errors",
        "_files",
        "_inputs",
        "_locks",
        "_numbers",
        "_parameters",
        "_schema",
        "_version",
    ),
    ("runtime",),
    ("_ops",),
    ("_engines",),
    ("clip",),
    (
        "bridging",
        "inversion",
        "linear_maps",
        "fewshot",
        "retrieval",
        "diagnostics",
        "discovery",
        "incremental",
        "prompts",
    ),
    ("data", "cli", "handover", "ops", "ray", "reference", "sklearn", ""),  # "": the package's own __init__
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


class Import(NamedTuple):
    place: str  # file:line
    importer: str  # dotted names
    target: str


# -- reading -----------------------------------------------------------------------------------------


def modules_below(folder: Path, root: Path) -> dict[str, Path]:
    """Dotted name → file; a package is its __init__.py."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if _is_type_checking(node):
            for other in node.orelse:  # type: ignore[attr-defined]
                yield other
                yield from _nodes(other)
            continue
        yield node
        yield from _nodes(node)


def _called_import(node: ast.AST) -> str | None:
    """The name in import_module("…")."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    called = ast.unparse(node.func).rpartition(".")[2]
    name = node.args[0].value
    return name if called in ("import_module", "__import__") and isinstance(name, str) else None


def imports_of(
    name: str, path: Path, known: dict[str, Path], tree: ast.AST | None = None
) -> Iterator[Import]:
    """Of one module; `from package import x` is an import of package.x where that is a module."""
    tree = ast.parse(path.read_text(encoding="utf-8")) if tree is None else tree
    here = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _nodes(tree):
        place = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(place, name, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = here.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(place, name, inner if inner in known or inner.endswith("._C") else base)
        elif called := _called_import(node):
            yield Import(place, name, called)


@cache
def product_imports(root: Path) -> tuple[dict[str, Path], list[Import]]:
    """Every import of the package by the package."""
    known = modules_below(root / PACKAGE, root)
    found = [i for name, path in known.items() for i in imports_of(name, path, known)]
    return known, [i for i in found if i.target == PACKAGE or i.target.startswith(f"{PACKAGE}.")]


# -- the rules ---------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def upward(root: Path) -> list[str]:
    known, found = product_imports(root)
    nowhere = sorted({room_of(name) for name in known} - set(RANK))
    wrong = [f"{PACKAGE}/{room} stands in no layer" for room in nowhere]
    for place, importer, target in found:
        low, high = RANK.get(room_of(importer), 99), RANK.get(room_of(target), 99)
        if low < high:
            wrong.append(f"{place}: {importer} imports {target}, which lies above it")
    return wrong


def circles(root: Path) -> list[str]:
    """One line a circle of modules, each with the places that close it."""
    known, found = product_imports(root)
    below: dict[str, dict[str, str]] = {name: {} for name in known}
    for place, importer, target in found:
        if target in known and target != importer:
            below[importer].setdefault(target, place)
    state: dict[str, int] = {}
    trail: list[str] = []
    wrong = []

    def visit(name: str) -> None:
        state[name] = 1
        trail.append(name)
        for target in below[name]:
            if state.get(target) == 1:
                loop = [*trail[trail.index(target) :], target]
                steps = [f"{a} → {b} ({below[a][b]})" for a, b in itertools.pairwise(loop)]
                wrong.append("; ".join(steps))
            elif target not in state:
                visit(target)
        trail.pop()
        state[name] = 2

    for name in known:
        if name not in state:
            visit(name)
    return wrong


def is_oracle(module: str) -> bool:
    return module.startswith(PACKAGE) and module.endswith(".reference")


DOORS = (PACKAGE, f"{PACKAGE}.reference")  # the package names its door, and that one gathers the oracles


def oracles_in_products(root: Path) -> list[str]:
    _, found = product_imports(root)
    return [
        f"{place}: {importer} imports the oracle {target}"
        for place, importer, target in found
        if is_oracle(target) and importer not in DOORS and not is_oracle(importer)
    ]


def products_in_oracles(root: Path) -> list[str]:
    """An oracle takes other oracles and the `spec` of its data."""
    _, found = product_imports(root)
    return [
        f"{place}: the oracle {importer} imports {target}"
        for place, importer, target in found
        if is_oracle(importer) and importer not in DOORS
        and not (is_oracle(target) and target not in DOORS) and not target.endswith(".spec")
    ]  # fmt: skip


def _programs(tree: ast.AST) -> Iterator[tuple[int, ast.AST]]:
    """Python in strings: what a test hands to a process of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield node.lineno, ast.parse(textwrap.dedent(node.value))
            except SyntaxError:
                continue


def shared_tests(root: Path) -> list[str]:
    known = modules_below(root / "tests", root)
    wrong = []
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [(i.place, i.target) for i in imports_of(name, path, known, tree)]
        for line, program in _programs(tree):
            found += [(f"{path}:{line}", i.target) for i in imports_of(name, path, known, program)]
        for place, target in found:
            last = target.rpartition(".")[2]
            if target.startswith("tests.") and (last.startswith("test_") or last == "conftest"):
                wrong.append(f"{place}: {name} imports {target}; what is shared lies in tests/support")
    return wrong


RULES = (upward, circles, oracles_in_products, products_in_oracles, shared_tests)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree(rule):
    if rule is not shared_tests and not (ROOT / PACKAGE).is_dir():
        pytest.skip("the tests run outside the source tree; needed: semobridge_ext/")
    wrong = rule(ROOT)
    assert not wrong, "\n" + "\n".join(sorted(set(wrong))).replace(f"{ROOT}/", "")


# -- the rules themselves ----------------------------------------------------------------------------


TESTS = "tests"  # so that the texts below are not themselves found
BAD = {
    "upward, inside a function": (
        upward,
        {"semobridge_ext/runtime/a.py": "def f():\n    from semobridge_ext.fewshot import b\n",
         "semobridge_ext/fewshot/b.py": ""},
        "runtime/a.py:2: semobridge_ext.runtime.a imports semobridge_ext.fewshot.b",
    ),
    "upward, by a relative import": (
        upward,
        {"semobridge_ext/_ops/topk/op.py": "from ..._engines import step\n",
         "semobridge_ext/_engines/step.py": ""},
        "semobridge_ext._ops.topk.op imports semobridge_ext._engines.step",
    ),
    "upward, by name": (
        upward,
        {"semobridge_ext/_ops/op.py": "import importlib\nimportlib.import_module('semobridge_ext.cli')\n",
         "semobridge_ext/cli/__init__.py": ""},
        "op.py:2: semobridge_ext._ops.op imports semobridge_ext.cli",
    ),
    "the package's own door": (
        upward,
        {"semobridge_ext/bridging/a.py": "import semobridge_ext as sb\n"},
        "semobridge_ext.bridging.a imports semobridge_ext, which",
    ),
    "a room without a layer": (upward, {"semobridge_ext/attic/a.py": ""}, "attic stands in no layer"),
    "a circle": (
        circles,
        {"semobridge_ext/clip/a.py": "from semobridge_ext.clip import b\n",
         "semobridge_ext/clip/b.py": "def f():\n    from semobridge_ext.clip.c import x\n",
         "semobridge_ext/clip/c.py": "from semobridge_ext.clip.a import y\n"},
        "clip.c → semobridge_ext.clip.a (",
    ),
    "an oracle in a product": (
        oracles_in_products,
        {"semobridge_ext/fewshot/a.py": "from semobridge_ext._ops.topk.reference import topk\n",
         "semobridge_ext/_ops/topk/reference.py": ""},
        "fewshot/a.py:1: semobridge_ext.fewshot.a imports the oracle",
    ),
    "the door of oracles in a product": (
        oracles_in_products,
        {"semobridge_ext/fewshot/a.py": "from semobridge_ext import reference\n",
         "semobridge_ext/reference.py": ""},
        "fewshot/a.py:1:",
    ),
    "a product in an oracle": (
        products_in_oracles,
        {"semobridge_ext/_ops/topk/reference.py": "from semobridge_ext._ops.topk import op\n",
         "semobridge_ext/_ops/topk/op.py": ""},
        "the oracle semobridge_ext._ops.topk.reference imports semobridge_ext._ops.topk.op",
    ),
    "a test in a test": (
        shared_tests,
        {"tests/ops/test_a.py": f"from {TESTS}.ops.test_b import helper\n", "tests/ops/test_b.py": ""},
        "test_a.py:1: tests.ops.test_a imports tests.ops.test_b",
    ),
    "a conftest in a test": (
        shared_tests,
        {"tests/test_a.py": f"from {TESTS}.conftest import helper\n", "tests/conftest.py": ""},
        "tests.conftest",
    ),
    "a test in a program of a test": (
        shared_tests,
        {"tests/test_a.py": f"CHILD = '''\nimport sys\nfrom {TESTS}.test_a import helper\n'''\n"},
        "test_a.py:1: tests.test_a imports tests.test_a",
    ),
}  # fmt: skip
GOOD = {
    "semobridge_ext/__init__.py": "from semobridge_ext import reference\nfrom semobridge_ext.clip import a\n",
    "semobridge_ext/reference.py": "from semobridge_ext._ops.topk.reference import topk\n",
    "semobridge_ext/_ops/topk/reference.py": "from semobridge_ext._ops.topk.spec import Spec\nimport torch\n",
    "semobridge_ext/_ops/topk/spec.py": "",
    "semobridge_ext/runtime/backend.py": "from semobridge_ext import _C\n",
    "semobridge_ext/clip/a.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from semobridge_ext.cli import b\n"
        "from . import c\nfrom semobridge_ext.runtime.backend import x\n"
    ),
    "semobridge_ext/clip/c.py": "",
    "semobridge_ext/cli/b.py": "from semobridge_ext.clip import a\n",
    "tests/support/helper.py": "",
    "tests/test_a.py": "from tests.support.helper import x\nimport pytest\n",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_passes_a_good_tree(rule, tmp_path: Path):
    assert rule(plant(tmp_path, GOOD)) == []


@pytest.mark.parametrize("case", BAD)
def test_rule_refuses(case: str, tmp_path: Path):
    rule, files, told = BAD[case]
    wrong = rule(plant(tmp_path, GOOD | files))
    assert len(wrong) == 1 and told in wrong[0], wrong
