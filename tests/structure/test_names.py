"""One name, one room: an op's name leads to its kernel, binding, tests, bench and page, and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT

SHARED = {"core"}  # of csrc: what the ops' kernels have in common
HARNESSES = {"triton"}  # of tests/ops: checks that run all Triton kernels in one process


def rooms(root: Path, folder: str) -> set[str]:
    return {p.parent.name for p in (root / folder).glob("*/*") if p.suffix in (".py", ".h", ".cpp", ".cu")}


def _has(root: Path, *patterns: str) -> bool:
    return any(any(root.glob(pattern)) for pattern in patterns)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def lacking(root: Path) -> list[str]:
    """What each op and engine of the package lacks elsewhere."""
    wrong = []
    for kind, head in (("ops", "op.py"), ("engines", "step.py")):
        for name in sorted(rooms(root, f"semobridge_ext/_{kind}")):
            room = f"semobridge_ext/_{kind}/{name}"
            needed = {
                f"{room}/{head}": (f"{room}/{head}",),
                f"{room}/reference.py, the oracle": (f"{room}/reference.py",),
                f"csrc/{name}/{name}.h": (f"csrc/{name}/{name}.h",),
                f"csrc/{name}/cpu.cpp or cpu_kernel.cpp": (
                    f"csrc/{name}/cpu.cpp", f"csrc/{name}/cpu_kernel.cpp",
                ),
                f"csrc/{name}/bind.cpp": (f"csrc/{name}/bind.cpp",),
                f"tests/{kind}/{name}/test_*.py": (f"tests/{kind}/{name}/test_*.py",),
                f"bench/{kind}/bench_{name}.py": (f"bench/{kind}/bench_{name}.py",),
                f"docs/{kind}/{name}.md": (f"docs/{kind}/{name}.md",),
            }  # fmt: skip
            if (root / room / "cuda.py").is_file():
                needed[f"csrc/{name}/cuda*.cu"] = (f"csrc/{name}/cuda*.cu",)
            called = re.search(r"\b_C\.\w+_cuda\(", _text(root / room / head))  # a small op calls it itself
            if _has(root, f"csrc/{name}/cuda*.cu") and not called:
                needed[f"{room}/cuda.py, which calls the kernel"] = (f"{room}/cuda.py",)
            wrong += [f"{room} lacks {what}" for what, where in needed.items() if not _has(root, *where)]
    return wrong


def stray(root: Path) -> list[str]:
    """Folders and files named like no op or engine."""
    ops, engines = (rooms(root, f"semobridge_ext/_{kind}") for kind in ("ops", "engines"))
    places = {
        "csrc/*": (rooms(root, "csrc"), ops | engines | SHARED),
        "tests/ops/*": (rooms(root, "tests/ops"), ops | HARNESSES),
        "tests/engines/*": (rooms(root, "tests/engines"), engines),
        "bench/ops/bench_*.py": ({p.stem[6:] for p in root.glob("bench/ops/bench_*.py")}, ops),
        "bench/engines/bench_*.py": ({p.stem[6:] for p in root.glob("bench/engines/bench_*.py")}, engines),
        "docs/ops/*.md": ({p.stem for p in root.glob("docs/ops/*.md")}, ops | {"index"}),
        "docs/engines/*.md": ({p.stem for p in root.glob("docs/engines/*.md")}, engines | {"index"}),
    }
    return [
        f"{place.replace('*', name)} belongs to no op or engine"
        for place, (found, known) in places.items()
        for name in sorted(found - known)
    ]


@pytest.mark.parametrize("rule", [lacking, stray], ids=lambda rule: rule.__name__)
def test_tree(rule):
    if not (ROOT / "csrc").is_dir() or not (ROOT / "bench").is_dir():
        pytest.skip("the tests run outside the source tree; needed: csrc/, bench/ and docs/")
    assert len(rooms(ROOT, "semobridge_ext/_ops")) >= 6 and len(rooms(ROOT, "semobridge_ext/_engines")) >= 2
    assert not (wrong := rule(ROOT)), "\n" + "\n".join(wrong)


# -- the rules themselves ----------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in which every rule holds."""
    for kind, name, head in (("ops", "topk", "op"), ("engines", "descent", "step")):
        for file in (
            f"semobridge_ext/_{kind}/{name}/{head}.py", f"semobridge_ext/_{kind}/{name}/reference.py",
            f"semobridge_ext/_{kind}/{name}/cuda.py", f"csrc/{name}/{name}.h", f"csrc/{name}/cpu.cpp",
            f"csrc/{name}/cuda.cu", f"csrc/{name}/bind.cpp", f"tests/{kind}/{name}/test_op.py",
            f"bench/{kind}/bench_{name}.py", f"docs/{kind}/{name}.md", "csrc/core/view.h",
        ):  # fmt: skip
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
    assert lacking(tmp_path) == stray(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    "file",
    ["semobridge_ext/_ops/topk/op.py", "semobridge_ext/_ops/topk/reference.py", "csrc/topk/topk.h",
     "semobridge_ext/_engines/descent/step.py", "semobridge_ext/_ops/topk/cuda.py",
     "csrc/topk/cpu.cpp", "csrc/topk/cuda.cu", "csrc/topk/bind.cpp", "csrc/descent/bind.cpp",
     "tests/ops/topk/test_op.py", "tests/engines/descent/test_op.py", "bench/ops/bench_topk.py",
     "bench/engines/bench_descent.py", "docs/ops/topk.md", "docs/engines/descent.md"],
)  # fmt: skip
def test_what_is_missing_is_named(file: str, tree: Path):
    (tree / file).unlink()
    told = lacking(tree)
    assert len(told) == 1 and told[0].split(" lacks ")[0] in (
        "semobridge_ext/_ops/topk", "semobridge_ext/_engines/descent"
    )  # fmt: skip


def test_a_small_op_calls_its_cuda_kernel_itself(tree: Path):
    (tree / "semobridge_ext/_ops/topk/cuda.py").unlink()
    (tree / "semobridge_ext/_ops/topk/op.py").write_text("_C.topk_cuda(view(x))")
    assert lacking(tree) == []


@pytest.mark.parametrize(
    "file",
    ["csrc/spare/spare.h", "tests/ops/spare/test_op.py", "tests/engines/spare/test_op.py",
     "bench/ops/bench_spare.py", "bench/engines/bench_spare.py", "docs/ops/spare.md",
     "docs/engines/spare.md"],
)  # fmt: skip
def test_what_belongs_to_nothing_is_named(file: str, tree: Path):
    (tree / file).parent.mkdir(parents=True, exist_ok=True)
    (tree / file).touch()
    assert len(stray(tree)) == 1 and "spare" in stray(tree)[0]
