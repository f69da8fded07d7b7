"""The Triton kernels: right in the interpreter, broken ones noticed, compiled for real architectures."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import semobridge_ext.ops.triton
from tests.source_tree import ROOT, environment, need_source, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
HERE = Path(__file__).parent
KERNELS = Path(semobridge_ext.ops.triton.__path__[0])


def interpret(*folder: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, HERE / "interpret.py", *folder, env=environment(TRITON_INTERPRET="1"))


def test_interpreted_kernels_meet_the_oracle():
    done = interpret()
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 7
    for name, error in worst.items():
        print(f"  {name}: {error:.1e}")
        assert error <= 1e-5, name


# name: file, text, what stands there instead
MUTATIONS = {
    "rows past the end are stored": (
        "project_normalize",
        "mask=(rows < n)[:, None] & (cols < m)[None, :],\n    )\n\n\ndef",
        "mask=(rows + 1 < n)[:, None] & (cols < m)[None, :],\n    )\n\n\ndef",
    ),
    "the product's tail is skipped": (
        "project_normalize",
        "(inner < k)[:, None]",
        "(inner < k - 1)[:, None]",
    ),
    "no guard for overflowing squares": (
        "project_normalize",
        "tl.where(largest > 0, largest, 1.0)",
        "tl.where(largest > 0, 1.0, 1.0)",
    ),
    "keys of the next class are counted": ("support_logits", "valid = at < end", "valid = at <= end"),
    "the sharpness is forgotten": ("support_logits", "tl.exp(beta * (acc - 1.0))", "tl.exp(acc - 1.0)"),
    "the order is ignored": ("support_logits", "if HAS_ORDER else at", "* 0 + at if HAS_ORDER else at"),
}


def test_broken_kernels_are_noticed(tmp_path: Path):
    def status(item: tuple[int, str]) -> int:
        folder = tmp_path / str(item[0])
        folder.mkdir()
        file, text, replacement = MUTATIONS[item[1]]
        for path in KERNELS.glob("*.py"):
            source = path.read_text()
            if path.stem == file:
                assert source.count(text) == 1, f"{file} holds {source.count(text)} times: {text!r}"
                source = source.replace(text, replacement)
            (folder / path.name).write_text(source)
        done = interpret(folder)
        assert done.returncode in (0, 1), done.stderr[-2000:]
        assert done.returncode == 0 or "AssertionError" in done.stderr, done.stderr[-2000:]
        return done.returncode

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(MUTATIONS, pool.map(status, enumerate(MUTATIONS)), strict=True))
    assert all(found.values()), f"not noticed: {[name for name, code in found.items() if code == 0]}"


def test_kernels_compile_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    need_source()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tests.bench.scripts import load_script

    resources = load_script("triton_resources")
    found = resources.compile_all()
    assert {c.architecture for c in found} == {80, 90, 100}
    for compiled in found:
        assert compiled.spills == 0 and compiled.registers <= 255, compiled
        assert compiled.shared <= 160 << 10, compiled
        assert compiled.tensor_cores, f"the product is not on tensor cores: {compiled}"
        assert compiled.rounds or compiled.kernel.startswith("support"), compiled


def test_the_document_holds_every_kernel():
    need_source()
    document = (ROOT / "docs" / "gpu.md").read_text()
    part = document.split("<!-- triton:")[1].split("<!-- end of triton -->")[0]
    for path in KERNELS.glob("*.py"):
        for kernel in re.findall(r"@triton.jit\ndef (\w+)", path.read_text()):
            rows = [line for line in part.splitlines() if line.startswith(f"| `{kernel}`")]
            assert rows and all(cell.endswith("/ 0 ") for row in rows for cell in row.split("|")[4:-1]), rows
