"""Writes python/_C.pyi, the type stub of the native module, from the built module.

`python python/write_stub.py [--cuda MODULE]`. pybind11 puts each signature into a docstring; here it is
read, freed of what differs between versions of pybind11, and laid out as `ruff format` would.

A build without CUDA lacks the functions and constants whose names hold "cuda". `--cuda` names the file
of a module that has them, such as the emulation of tests/cuda_emulation; without it they are kept as
they stand.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

STUB = Path(__file__).resolve().with_name("_C.pyi")
HEAD = '''"""Type stub of the native module, written by python/write_stub.py from its docstrings.

csrc/<op>/<op>.h and csrc/<op>/cuda.h say what the functions compute. Addresses and sizes are int.
"""

# Address (0: none), dtype code, rows, columns, row stride in elements.
View = tuple[int, int, int, int, int]
# A right operand in panels: address, dtype code, rows and columns before packing.
Packed = tuple[int, int, int, int]

'''
CUDA = "\n# Only in builds with CUDA.\n"
WIDTH = 110
PLAIN = {
    "SupportsInt": "int", "SupportsFloat": "float", "Sequence": "list", "List": "list",
    "Tuple": "tuple", "Dict": "dict",
}  # fmt: skip


class _Plain(ast.NodeTransformer):
    """Annotations as every version of pybind11 would have them."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(PLAIN.get(node.attr, node.attr))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(PLAIN.get(node.id, node.id))

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        # A number, or what can be taken as an index: the second goes without saying.
        if ast.unparse(node.right) == "typing.SupportsIndex":
            return self.visit(node.left)
        return self.generic_visit(node)  # type: ignore[return-value]


def _function(signature: str, indent: str) -> str:
    """`name(a: int, b: int = 0) -> None` as a stub's lines."""
    node = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    arguments = node.args.args
    if arguments and arguments[0].arg == "self":
        arguments[0].annotation = None
    for argument in arguments:
        if argument.annotation is not None:
            argument.annotation = _Plain().visit(argument.annotation)
    words = [ast.unparse(a) for a in arguments]
    for i, default in enumerate(reversed(node.args.defaults), 1):
        words[-i] += f" = {ast.unparse(default)}"
    begin, end = f"{indent}def {node.name}(", f") -> {ast.unparse(_Plain().visit(node.returns))}: ..."
    inner = indent + "    "
    one_line = begin + ", ".join(words) + end
    if len(one_line) <= WIDTH:
        return one_line + "\n"
    if len(inner + ", ".join(words)) <= WIDTH:
        return f"{begin}\n{inner}{', '.join(words)}\n{indent}{end}\n"
    return begin + "\n" + "".join(f"{inner}{word},\n" for word in words) + f"{indent}{end}\n"


def _signature(function: object) -> str:
    text = (function.__doc__ or "").strip().splitlines()[0]
    if text.endswith("(*args, **kwargs)"):
        raise ValueError(f"write_stub: an overloaded function has no stub yet: {text}")
    return text


def _class(name: str, members: type) -> str:
    functions = [
        _function(_signature(function), "    ")
        for key, function in sorted(vars(members).items())
        if key == "__init__" or not key.startswith("_")
    ]
    return f"class {name}:\n" + "".join(functions)


def _entries(module: ModuleType) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in sorted(vars(module).items()) if not name.startswith("_"))


def part_of(module: ModuleType, *, cuda: bool) -> str:
    """The constants, then the functions, then the classes of one of the two parts, by name."""
    constants, functions, classes = "", "", ""
    for name, value in _entries(module):
        if ("cuda" in name.lower()) is not cuda:
            continue
        if isinstance(value, type):
            classes += "\n" + _class(name, value)
        elif callable(value):
            functions += _function(_signature(value), "")
        else:
            constants += f"{name}: {type(value).__name__}\n"
    return f"{constants}\n{functions}{classes}" if constants else functions + classes


def stub_of(module: ModuleType, cuda: ModuleType | None = None, kept: str | None = None) -> str:
    """The stub of `module`; what it lacks of CUDA is that of `cuda`, else that of the stub `kept`."""
    part = part_of(module if cuda is None else cuda, cuda=True)
    if not part and kept is not None:
        part = kept.partition(CUDA)[2]
    return HEAD + part_of(module, cuda=False) + CUDA + part


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).name.partition(".")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--cuda", metavar="MODULE", help="file of a module that holds the CUDA functions")
    options = parser.parse_args()
    # PyTorch first: it brings the OpenMP runtime that the module takes its symbols from.
    importlib.import_module("semobridge_ext")
    module = importlib.import_module("semobridge_ext._C")
    STUB.write_text(stub_of(module, load(options.cuda) if options.cuda else None, STUB.read_text()))


if __name__ == "__main__":
    main()
