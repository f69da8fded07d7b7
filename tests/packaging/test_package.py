"""The package as a user meets it: import, names, docstrings, README."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.runtime import backend as _backend
from tests.support.fresh import Program, fresh_processes
from tests.support.places import runnable_isas

HEAVY = (
    "open_clip", "matplotlib", "torchvision", "triton", "transformers", "sklearn", "scipy", "optuna",
    "PIL", "safetensors", "huggingface_hub", "timm", "pandas", "faiss", "tqdm", "onnx", "onnxruntime",
    "pyarrow", "ray",
)  # fmt: skip


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Where PyTorch alone is loaded; warnings are errors."""
    return fresh_processes("torch", "-W", "error").run(Program(code), cwd=cwd)


# -- import ------------------------------------------------------------------------------------------

_IMPORT = """
import json, sys, time
import torch
before, cuda = set(sys.modules), torch.cuda.is_initialized()
begin = time.process_time()
import semobridge_ext
seconds = time.process_time() - begin
print(json.dumps({
    "seconds": seconds,
    "new": sorted({m.partition(".")[0] for m in set(sys.modules) - before}),
    "cuda": torch.cuda.is_initialized() and not cuda,
}))
"""


def test_import_is_lean():
    runs = []
    for _ in range(2):
        done = python(_IMPORT)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    new = set(runs[0]["new"])
    assert "semobridge_ext" in new
    assert not new & set(HEAVY), f"`import semobridge_ext` pulls in {sorted(new & set(HEAVY))}"
    assert not runs[0]["cuda"], "the import initialised CUDA"
    # Aim: 0.15 s more than torch. Processor time of the better run, three times that for slow machines.
    assert min(r["seconds"] for r in runs) <= 0.45, runs


def test_import_reads_no_weights_and_leaves_torch_alone(tmp_path: Path):
    code = (
        "import sys, torch\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "state = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()\n"
        "import semobridge_ext\n"
        "assert state == (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed())\n"
        "wrong = [p for p in opened if p.endswith(('.safetensors', '.png', '.npz', '.json'))]\n"
        "assert not wrong, wrong\n"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_one_openmp_runtime():
    code = (
        "import torch, semobridge_ext as sb\n"
        "torch.set_num_threads(2)\n"
        "sb.ops.project_normalize(torch.randn(300, 256), torch.randn(256, 256)) @ torch.randn(256, 256)\n"
        "paths = {l.split(None, 5)[5].strip() for l in open('/proc/self/maps') if l.count('/')}\n"
        "found = sorted(p for p in paths if any(n in p for n in ('libgomp', 'libomp', 'libiomp')))\n"
        "assert found == sb.build_info()['openmp'], (found, sb.build_info()['openmp'])\n"
        "print(*found, sep='\\n')\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, f"OpenMP runtimes in the process: {done.stdout}"


def test_native_module_links_neither_torch_nor_openmp():
    data = Path(_backend._C.__file__).read_bytes()
    for library in (b"libtorch", b"libc10", b"libgomp.so", b"libomp.so"):
        assert library not in data, f"_C needs {library.decode()}"


def test_build_info():
    info = sb.build_info()
    assert info["isa"] == _backend._C.active_isa() and info["isa_available"] == runnable_isas()
    assert info["native"] == "built" and info["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    assert re.match(r"(GNU|Clang|AppleClang) \d+\.\d+", info["compiler"])
    assert info["semobridge_ext"] == sb.__version__  # of the code that runs, not of an older installation
    for key in ("cuda", "triton", "platform", "python", "backend"):
        assert isinstance(info[key], str) and info[key], key
    json.dumps(info)  # a bug report can hold it


# -- names and documentation -------------------------------------------------------------------------


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(sb.__path__, "semobridge_ext.")]
    if importlib.util.find_spec("triton") is None:  # only kernel files need it
        found = [m for m in found if not m.endswith((".triton", ".triton_backward", ".triton_tuning"))]
    if importlib.util.find_spec("sklearn") is None:  # the door to it alone needs it
        found = [m for m in found if not m.startswith("semobridge_ext.sklearn")]
    return ["semobridge_ext", *(m for m in found if not m.endswith(("._C", ".__main__")))]


PUBLIC = {
    f"{owner.__name__}.{name}": getattr(owner, name)
    for owner in (sb, sb.ops)
    for name in owner.__all__
    if callable(getattr(owner, name))
}


def test_all_is_what_there_is():
    for name in sb.__all__:
        assert getattr(sb, name) is not None
    visible = {
        name for name in dir(sb) if not name.startswith("_") and not inspect.ismodule(getattr(sb, name))
    } - {"annotations", "TYPE_CHECKING", "Any"}
    modules = {"clip", "ops", "reference"}
    assert visible == set(sb.__all__) - modules, "public names and __all__ differ"
    assert sorted(sb.__all__) == list(sb.__all__)
    with pytest.raises(AttributeError, match=r"semobridge_ext.*no attribute 'brigde'"):
        sb.brigde  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_complete(name: str):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing)
    assert text, "no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", "``.", ":")) or "``" in first, f"the first line is no sentence: {first}"
    parameters = inspect.signature(thing).parameters
    wanted = ["Example:"]
    if parameters:
        wanted.append("Args:")
        if not (inspect.isclass(thing) and issubclass(thing, tuple)):  # a result checks nothing
            wanted.append("Raises:")
        for parameter in parameters:
            assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not described"
    is_context = hasattr(thing, "__wrapped__") and inspect.isgeneratorfunction(thing.__wrapped__)
    is_context = is_context or (inspect.isclass(thing) and issubclass(thing, AbstractContextManager))
    if not inspect.isclass(thing) and not is_context:
        wanted.append("Returns:")
    missing = [section for section in wanted if section not in text]
    assert not missing, f"docstring lacks {missing}"
    assert doctest.DocTestFinder(recurse=False).find(thing, name)[0].examples, "the example has no >>> lines"


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples fail (see captured output)"


def test_every_module_has_a_docstring():
    assert len(modules()) > 10
    for name in modules():
        assert importlib.import_module(name).__doc__, name


def test_submodules_do_not_hide_public_functions():
    """A module named like a public function would replace it at the first import of the module."""
    for name in modules()[1:]:
        importlib.import_module(name)
    for name in PUBLIC:
        owner, _, attribute = name.rpartition(".")
        assert not inspect.ismodule(getattr(sys.modules[owner], attribute)), name
