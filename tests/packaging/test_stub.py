"""python/_C.pyi is what python/write_stub.py writes of the module that was built."""

from __future__ import annotations

import ast
from types import ModuleType

import pytest

from semobridge_ext.runtime import backend as _backend
from tests.cuda_emulation.build import Emulation
from tests.cuda_emulation.run_cases import load
from tests.support.source_tree import ROOT, need_source


@pytest.fixture(scope="module")
def script() -> ModuleType:
    need_source()
    return load(str(ROOT / "python" / "write_stub.py"))


def test_the_stub_is_that_of_the_module(script: ModuleType):
    written = script.STUB.read_text()
    assert script.stub_of(_backend._C, kept=written) == written, "run python python/write_stub.py"
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in ast.parse(written).body if isinstance(node, kinds)}
    public = {n for n, value in vars(_backend._C).items() if callable(value) and not n.startswith("_")}
    assert public <= names and all("cuda" in name for name in names - public)


@pytest.mark.slow
def test_the_cuda_part_is_that_of_the_kernels_bindings(script: ModuleType, emulation: Emulation):
    emulated = load(str(emulation.module))
    part = script.part_of(emulated, cuda=True)
    assert part.count("def ") > 15
    assert script.STUB.read_text().partition(script.CUDA)[2] == part, "run python/write_stub.py --cuda"
    if _backend.HAS_CUDA:
        assert script.part_of(_backend._C, cuda=True) == part


def test_signatures_of_every_pybind11_read_the_same(script: ModuleType):
    old = "f(self: m._C.F, x: List[int], y: float = 0.5, z: Tuple[int, float] = (1, 2.0)) -> None"
    new = (
        "f(self: m._C.F, x: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "
        "y: typing.SupportsFloat | typing.SupportsIndex = 0.5, "
        "z: tuple[typing.SupportsInt, typing.SupportsFloat] = (1, 2.0)) -> None"
    )
    want = "    def f(self, x: list[int], y: float = 0.5, z: tuple[int, float] = (1, 2.0)) -> None: ...\n"
    assert script._function(old, "    ") == script._function(new, "    ") == want
    with pytest.raises(ValueError, match="overloaded"):
        script._signature(type("F", (), {"__doc__": "f(*args, **kwargs)\nOverloaded function."}))
