"""Lays out the project that kernel-builder builds for Hugging Face's `kernels`, and its two variants.

    python .ci/hf_kernel.py [--out build/hf-kernel]

`.ci/hf_kernel/` holds what belongs to that project alone: build.toml, flake.nix, CARD.md, and a few modules
that stand in place of the package's. Everything else is the package's own source: the operators below and all
that they import, with imports made relative and operators registered under the build's own name, since
`kernels` loads several builds into one process. No kernel has a second source.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # until Python 3.10 is no longer served
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OWN = Path(__file__).resolve().with_suffix("")
PACKAGE = "semobridge_ext"
OPERATORS = ("support_logits", "symmetric_kl", "topk")  # those with Triton kernels
# kernel-builder writes a module `_ops.py` beside ours; a folder of that name would hide it.
FOLDERS = {"_ops": "operators"}

OPS = '''"""The names of this build's operators: another build may live in the same process."""

import torch

_NAME = "{name}"
ops = getattr(torch.ops, _NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_NAME}}::{{op_name}}"
'''


def place(module: str) -> Path:
    """Where a module of the package stands in the project."""
    names = [FOLDERS.get(name, name) for name in module.split(".")[1:]]
    folder = ROOT.joinpath(*module.split(".")).is_dir()
    return Path(*names, "__init__.py") if folder else Path(*names).with_suffix(".py")


def source(module: str) -> Path | None:
    """A module's file in the tree; None: there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def imports(text: str) -> set[str]:
    """The modules of the package that a source imports, at its head or in a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if source(inner) else str(node.module))
    return found


def closure(replaced: set[Path]) -> dict[str, str]:
    """Module to source of the operators and of all that they import, but for what the project has itself."""
    found: dict[str, str] = {}
    waiting = [f"{PACKAGE}._ops.{op}.op" for op in OPERATORS]
    while waiting:
        module = waiting.pop()
        path = source(module)
        if module in found or path is None or place(module) in replaced:
            continue
        found[module] = path.read_text(encoding="utf-8")
        parent = module.rpartition(".")[0]
        waiting += [*imports(found[module]), *([parent] if parent != PACKAGE else [])]
    return found


def rewritten(text: str, depth: int) -> str:
    """A source with imports relative to the project, `depth` folders below its top."""
    top = "." * (depth + 1)
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line == "from __future__ import annotations"), None)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE:
            continue
        names = [FOLDERS.get(name, name) for name in str(node.module).split(".")[1:]]
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(
            f"from {node.module} import", f"from {top}{'.'.join(names)} import"
        )
    whole = "\n".join(lines) + "\n"
    whole = whole.replace(
        f'importlib.import_module("{PACKAGE}._C")', f'importlib.import_module("{top}_C", __package__)'
    )
    registered = re.sub(r'"semobridge::(\w+)"', r'add_op_namespace_prefix("\1")', whole)
    registered = registered.replace("torch.ops.semobridge.", "ops.")
    if registered != whole and head is not None:
        lines = registered.splitlines()
        lines.insert(head + 1, f"\nfrom {top}_ops import add_op_namespace_prefix, ops")
        return "\n".join(lines) + "\n"
    return registered


def sources(own: Path) -> dict[Path, str]:
    """Every module of the project: its own, and the package's rewritten."""
    files = {p.relative_to(own): p.read_text(encoding="utf-8") for p in sorted(own.rglob("*.py"))}
    for module, text in closure(set(files)).items():
        to = place(module)
        files[to] = rewritten(text, len(to.parts) - 1)
    return dict(sorted(files.items()))


def write(folder: Path, files: dict[Path, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def variant(folder: Path, general: dict[str, object], backend: str, files: dict[Path, str]) -> None:
    """What kernel-builder makes of a project without native code, for one backend."""
    module = str(general["name"]).replace("-", "_")
    whole = "".join(f"{name}\0{text}\0" for name, text in files.items())
    name = f"_{module}_{backend}_{hashlib.sha256(whole.encode()).hexdigest()[:7]}"
    files = files | {Path("_ops.py"): OPS.format(name=name)}
    digests = {
        path.as_posix(): base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for path, text in sorted(files.items())
    }
    metadata = {
        "name": general["name"], "id": name, "version": general["version"], "license": general["license"],
        "python-depends": [], "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }  # fmt: skip
    write(folder, files | {Path("metadata.json"): json.dumps(metadata, indent=2) + "\n"})


def lay_out(out: Path) -> None:
    """The whole project in `out`, which is emptied before."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copyfile(OWN / name, out / name)
    shutil.copyfile(ROOT / "LICENSE", out / "LICENSE")
    general = tomllib.loads((out / "build.toml").read_text(encoding="utf-8"))["general"]
    module = str(general["name"]).replace("-", "_")
    files = sources(OWN / "torch-ext" / module)
    write(out / "torch-ext" / module, files)
    for backend in general["backends"]:
        variant(out / "build" / f"torch-{backend}", general, backend, files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "hf-kernel")
    out = parser.parse_args().out
    if out.exists() and not (out / "build.toml").is_file():
        parser.error(f"--out must be new or an earlier layout, got {out}; name another folder")
    lay_out(out)
    print(f"{out}: {len(list((out / 'torch-ext').rglob('*.py')))} modules")


if __name__ == "__main__":
    main()
