"""What .ci/hf_kernel.py lays out for Hugging Face's `kernels`, as its builder and its loader meet it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from semobridge_ext import reference
from tests.support.assertions import assert_close
from tests.support.source_tree import ROOT, environment, run

SCRIPT = ROOT / ".ci" / "hf_kernel.py"
if not SCRIPT.is_file():
    pytest.skip("the tests run outside the checkout; needed: .ci/hf_kernel.py", allow_module_level=True)

OPERATORS = {path.parent.name for path in (ROOT / "semobridge_ext" / "_ops").glob("*/triton.py")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "project"
    done = run(sys.executable, SCRIPT, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def package(project: Path) -> Path:
    return project / "torch-ext" / "semobridge_ops"


def trees(folder: Path) -> dict[Path, ast.Module]:
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.py"))}


def reached(path: Path, node: ast.ImportFrom) -> list[Path]:
    """Where the names of a relative import lie: each a module, or all in one."""
    folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
    own = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    inner = [folder / f"{alias.name}.py" for alias in node.names]
    return inner if folder.is_dir() and all(p.is_file() for p in inner) else [own]


def test_a_kernel_of_the_hub_imports_itself_and_torch_alone(project: Path):
    """The hub's rule: the standard library, PyTorch (Triton comes with it), and its own files, relatively."""
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    variant = project / "build" / "torch-cuda"
    seen = set()
    for path, tree in trees(variant).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {a.name.split(".")[0] for a in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in allowed, f"{path}: {node.module}"
            elif isinstance(node, ast.ImportFrom):
                seen |= set(reached(path, node))
    assert len(seen) > 20 and not [p for p in seen if not p.is_file()]
    # Nothing lies there that nobody imports.
    files = {p for p in variant.rglob("*.py") if p.name != "__init__.py"}
    assert files - seen == {variant / "_C.py"}, "of which backend.py asks by name"


def test_operators_are_registered_under_the_name_of_the_build(project: Path):
    prefixed = set()
    for path, tree in trees(package(project)).items():
        assert "semobridge::" not in path.read_text(encoding="utf-8"), path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("custom_op", "triton_op")):
                assert ast.unparse(node.args[0]).startswith("add_op_namespace_prefix("), path
                prefixed.add(ast.unparse(node.args[0]))
    assert len(prefixed) == 10
    ids = {name: ids_of(project / "build" / f"torch-{name}") for name in ("cpu", "cuda")}
    assert ids["cpu"] != ids["cuda"] and all(re.fullmatch(r"[a-z_]\w+", i) for i in ids.values())
    assert not (package(project) / "_ops").exists(), "it would hide the _ops.py that kernel-builder writes"


def ids_of(variant: Path) -> str:
    found = re.search(r'"id": "(\w+)"', (variant / "metadata.json").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def kernels_of(path: Path) -> dict[str, str]:
    return {
        node.name: ast.unparse(node)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list)
    }


def test_kernels_are_those_of_the_package(project: Path):
    """Every operator that has Triton kernels, under its public name, with the same kernels."""
    init = ast.parse((package(project) / "__init__.py").read_text(encoding="utf-8"))
    names = {alias.name for node in init.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert len(OPERATORS) >= 3 and names >= OPERATORS
    count = 0
    for op in OPERATORS:
        for path in (ROOT / "semobridge_ext" / "_ops" / op).glob("triton*.py"):
            laid = kernels_of(package(project) / "operators" / op / path.name)
            assert laid and laid == kernels_of(path)
            count += len(laid)
    assert count >= 7


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("kept")
    done = run(sys.executable, SCRIPT, "--out", tmp_path)
    assert done.returncode == 2 and "name another folder" in done.stderr and (tmp_path / "mine.txt").exists()


# -- loaded and called -------------------------------------------------------------------------------

# Without the package, which is barred; then beside it, and beside another build of the same kernels.
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.modules["semobridge_ext"] = None


def by_rule(variant):  # as `kernels` imports a variant
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_kernels(variant):
    from kernels import get_local_kernel
    return get_local_kernel(variant.parent.parent, backend="cpu")


project, folder = map(Path, sys.argv[1:3])
ops = {"rule": by_rule, "kernels": by_kernels}[sys.argv[3]](project / "build" / "torch-cpu")
given = load_file(folder / "given.safetensors")
q, keys, labels = given["queries"], given["keys"], given["labels"]
out = {}
for name in ("auto", "triton"):
    a, b = (given[x].clone().requires_grad_() for x in ("a", "b"))
    with ops.backend(name):
        out[f"{name} scores"], out[f"{name} rows"] = ops.topk(q, keys, 4, exclude=torch.arange(len(q)))
        out[f"{name} sums"] = ops.support_logits(q, keys, labels, 5, beta=3.0)
        loss = ops.symmetric_kl(a, b, temperature=0.5)
    loss.backward()
    out[f"{name} loss"], out[f"{name} grad"] = loss.detach(), a.grad
save_file({k: v.contiguous() for k, v in out.items()}, folder / "out.safetensors")


def refused(kind, words, *call, backend="auto"):
    try:
        with ops.backend(backend):
            ops.topk(*call)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"{words}: nothing was refused")


refused(ValueError, "k must lie in 0..60, got int 99", q, keys, 99)
refused(TypeError, "k must be an int", q, keys, 2.0)
refused(RuntimeError, "pip install semobridge-ext", q, keys, 1, backend="native")

rules = sys.modules[f"{ops.__name__}.runtime.rules"].RULES
names = {name for table in rules.values() for both in table.values() for steps in both for _, name in steps}
assert names == {"eager", "triton"} and rules[8, 0]["topk"] == ([(0, "triton")],) * 2, rules

if sys.argv[3] == "rule":
    other = by_rule(project / "build" / "torch-cuda")
    del sys.modules["semobridge_ext"]
    import semobridge_ext as sb
    found = [x.topk(q, keys, 4).indices for x in (ops, other, sb)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert sb.build_info()["native"] == "built"
"""


def call(project: Path, folder: Path, loader: str) -> dict[str, Tensor]:
    """What both of its programs, plain PyTorch and the interpreted kernels, make of `given`."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    given = {
        "queries": torch.nn.functional.normalize(torch.randn(9, 20, generator=generator)),
        "keys": torch.nn.functional.normalize(torch.randn(60, 20, generator=generator)),
        "labels": torch.arange(60) % 5,
        "a": torch.randn(6, 11, generator=generator),
        "b": torch.randn(6, 11, generator=generator),
    }
    save_file(given, folder / "given.safetensors")
    words = environment(TRITON_INTERPRET="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    done = run(sys.executable, "-c", PROGRAM, project, folder, loader, env=words, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "out.safetensors") | {f"given {k}": v for k, v in given.items()}


def meets_the_oracles(out: dict[str, Tensor]) -> None:
    q, keys, a, b = (out[f"given {x}"].double() for x in ("queries", "keys", "a", "b"))
    labels = out["given labels"]
    scores, rows = reference.topk(q, keys, 4, exclude=torch.arange(len(q)))
    sums = reference.support_logits(q, keys, labels, 5, beta=3.0)
    a.requires_grad_()
    loss = reference.symmetric_kl(a, b, temperature=0.5)
    (grad,) = torch.autograd.grad(loss, a)
    for name in ("auto", "triton"):
        assert torch.equal(out[f"{name} rows"], rows)
        assert_close(out[f"{name} scores"], scores, "kernel", context=f"topk, {name}")
        assert_close(out[f"{name} sums"], sums, "kernel", context=f"support_logits, {name}")
        assert_close(out[f"{name} loss"].view(1, 1), loss.detach().view(1, 1), "kernel", context=name)
        assert_close(out[f"{name} grad"], grad, "op_grad", context=f"symmetric_kl's gradient, {name}")


@pytest.mark.slow
def test_it_runs_without_the_package_and_beside_it(project: Path, tmp_path: Path):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; needed to interpret the kernels")
    meets_the_oracles(call(project, tmp_path, "rule"))


@pytest.mark.slow
def test_kernels_itself_loads_it(project: Path, tmp_path: Path):
    """The library's own reader of build.toml and metadata.json, its digests and its loader."""
    installed = {found.name for found in importlib.metadata.distributions()}
    if "kernels" not in installed or importlib.util.find_spec("triton") is None:
        pytest.skip(
            "kernels or Triton is not installed; needed to load it as a user does (pip install kernels)"
        )
    from kernels._rust import Build, Digest, DigestAlgorithm, Metadata

    assert [str(b) for b in Build.open(project).general.backends] == ["cpu", "cuda"]
    for backend in ("cpu", "cuda"):
        variant = project / "build" / f"torch-{backend}"
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert metadata.name.python_name == "semobridge_ops" and metadata.python_depends == []
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    meets_the_oracles(call(project, tmp_path, "kernels"))
