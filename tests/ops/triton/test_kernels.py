"""The Triton kernels: right in the interpreter, broken ones noticed, compiled for real architectures."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.comparer import note
from tests.support.fresh import run_script
from tests.support.own_kernels import tables
from tests.support.scripts import load_script
from tests.support.source_tree import ROOT, need_source
from tests.support.triton_kernels import FILES, all_files

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
HERE = Path(__file__).parent
SMALLEST_SHARED = 99 << 10  # of a block on sm_86, 89 and 120


def interpret(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(HERE / "interpret.py", *arguments, loaded="torch", TRITON_INTERPRET="1")


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """The worst error of each result; those of each family go into this run's table."""
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    for family, dtype, error in report["families"]:
        note(family, dtype, error)
    for name, error in report["worst"].items():
        print(f"  {name}: {error:.1e}")
    return report["worst"]


# File: how many results its check compares, one for each kind of output and dtype.
RESULTS = {
    "support_logits": 4, "support_logits_bwd": 12, "topk": 1,
    "bridge_training": 4, **tables("TRITON_RESULTS"),
}  # fmt: skip
KERNELS = {
    name for path in all_files() for name in re.findall(r"@triton\.jit.*\ndef (\w+_kernel)", path.read_text())
}


def test_every_kernel_is_interpreted():
    assert len(FILES) == len(all_files()) >= 4 and set(RESULTS) == set(FILES) and len(KERNELS) >= 7


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("topk", "support_logits_bwd") else n for n in RESULTS],
)
def test_interpreted_kernel_meets_the_oracle(name: str):
    assert len(report_of(interpret("", name))) == RESULTS[name]


def test_public_functions_reach_the_kernels():
    done = run_script(HERE / "dispatch.py", loaded="torch", TRITON_INTERPRET="1")
    worst = report_of(done)
    assert {"topk/float32", "support_logits gradient of keys/float16"} <= set(worst)


# name: file, text, what stands there instead
MUTATIONS = {
    "keys of later classes are counted": ("support_logits", "(at >= start) & (at < stop)", "at >= start"),
    "keys of earlier classes are counted": ("support_logits", "valid & (at >= start)", "valid"),
    "keys past a split are counted": (
        "support_logits",
        "tl.minimum((split + 1) * split_keys",
        "tl.minimum((split + 2) * split_keys",
    ),
    "columns past the row are counted": (
        "support_logits",
        "live[:, None] & (cols < d)",
        "live[:, None] & (cols <= d)",
    ),
    "half of the row is left out": ("support_logits", "tl.dot(q1, tl.trans(k)", "tl.dot(0 * q1, tl.trans(k)"),
    "a cut class forgets where it began": (
        "support_logits",
        "tl.where(continued, split * 0, ",
        "tl.where(start < 0, split * 0, ",
    ),
    "a cut class lacks its last split": ("support_logits", "tl.cdiv(stop, split_keys)", "stop // split_keys"),
    "a cut class ends at its first border": ("support_logits", "range(split + 1,", "range(split + 2,"),
    "a class's sum goes on in the next": (
        "support_logits",
        "total = tl.zeros((BLOCK_N,), dtype=tl.float32)\n                continued",
        "continued",
    ),
    "the sharpness is forgotten": ("support_logits", "tl.exp(beta * (acc - 1.0))", "tl.exp(acc - 1.0)"),
    "the order is ignored": ("support_logits", "if HAS_ORDER else at", "* 0 + at if HAS_ORDER else at"),
    "owned rows that stay lack a part": (
        "support_logits_bwd",
        "tl.dot(a1, tl.trans(b1)",
        "tl.dot(a1, 0 * tl.trans(b1)",
    ),
    "streaming rows that stay are others": (
        "support_logits_bwd",
        "b = b0.to(tl.float32)  #",
        "b = 2 * b0.to(tl.float32)  #",
    ),
    "a gradient misses its sharpness": ("support_logits_bwd", "total *= beta", "total *= 1.0"),
    "the weight is forgotten in grad_q": ("support_logits_bwd", "HAS_WEIGHTS and not OWN_KEYS", "False"),
    "the weight is forgotten in grad_k": ("support_logits_bwd", "HAS_WEIGHTS and OWN_KEYS", "False"),
    "splits write the same place": ("support_logits_bwd", "split * a_rows + rows", "0 * a_rows + rows"),
    "labels out of range count": ("support_logits_bwd", "own_labels < classes", "own_labels <= classes"),
    "NaN rounds to a number": ("support_logits_bwd", "tl.where(x == x, bits", "tl.where(x != 7e30, 0 * bits"),
    "ties go to the higher row": ("topk", "(0x7FFFFFFF - rows)", "rows"),
    "NaN ranks first": ("topk", 'float("-inf"), scores', 'float("inf"), scores'),
    "the excluded row is found": ("topk", "rows != excluded", "rows >= 0"),
    "a tile gives one candidate": ("topk", "while high > worst:", "if high > worst:"),
    "a row past the gallery is found": ("topk", "(at < end) & (rows", "(at <= end) & (rows"),
    "earlier chunks are forgotten": (
        "topk",
        "best = tl.load(list_at)",
        "best = _NONE + 1 + slots.to(tl.int64)",
    ),
    "a chunk's rows begin at 0": ("topk", "rows = first + at", "rows = at"),
    "lists are merged past k": ("topk", "places % SLOTS < k", "places % SLOTS < k + 1"),
    "the running maximum is kept": ("bridge_training", "total * factor", "total"),
    "the moment is not rescaled": ("bridge_training", "first_moment * factor", "first_moment"),
    "the target's gradient is missing": (
        "bridge_training",
        "cols[None, :] == labels[:, None], 1.0",
        "cols[None, :] == labels[:, None], 0.0",
    ),
    "the row's scale enters once": (
        "bridge_training",
        "coefficient * p * scale[:, None]",
        "coefficient * p",
    ),
    "a class's first rows are lost": (
        "bridge_training",
        "(places == 0)[:, None], carry",
        "(places < 0)[:, None], carry",
    ),
    "splits begin at the first row": (
        "bridge_training",
        "tl.load(bounds_ptr + split), ",
        "tl.load(bounds_ptr), ",
    ),
    **tables("TRITON_MUTATIONS"),
}


@pytest.mark.slow
@pytest.mark.campaign
def test_broken_kernels_are_noticed(tmp_path: Path):
    names = {}
    for number, (name, (file, text, replacement)) in enumerate(MUTATIONS.items()):
        folder = tmp_path / f"{number}-{file}"
        folder.mkdir()
        source = FILES[file].read_text()
        assert source.count(text) == 1, f"{file} holds {source.count(text)} times: {text!r}"
        (folder / f"{file}.py").write_text(source.replace(text, replacement))
        names[folder.name] = name
    done = interpret("--each", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {names[key]: code for key, code in json.loads(done.stdout.splitlines()[-1]).items()}
    assert found == dict.fromkeys(MUTATIONS, 1), {name: code for name, code in found.items() if code != 1}


def checked(compiled: Any) -> None:
    assert compiled.spills == 0 and compiled.registers <= 255, compiled
    assert compiled.shared <= (compiled.bound or SMALLEST_SHARED), f"pruning relies on less: {compiled}"
    half = compiled.dtype != "fp32"
    assert compiled.tensor_cores == (half and compiled.multiplies), (
        f"products of half types alone belong on tensor cores: {compiled}"
    )
    assert compiled.rounds or not (half and compiled.stores_input_type), compiled


@pytest.mark.slow
def test_kernels_compile_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    need_source()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    resources = load_script("gpu/triton_resources")
    with ThreadPoolExecutor(2) as pool:
        found = [
            *pool.map(
                lambda job: resources.compile_case(*job),
                [
                    (case, resources.tiles(case, architecture)[0], architecture)
                    for case in resources.cases()
                    for architecture in resources.SHARED
                    if case.dtype != "fp16" and not re.search(r"\b768\b", case.shape)
                ],
            )
        ]
    assert {c.architecture for c in found} == {80, 90, 100} and {c.kernel for c in found} == KERNELS
    for compiled in found:
        checked(compiled)


@pytest.mark.slow
def test_kernels_compile_where_sizes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Triton makes an argument that is 1 a constant; the interpreter does not."""
    need_source()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    resources = load_script("gpu/triton_resources")
    first = {case.kernel.function.fn.__name__: case for case in reversed(resources.cases())}
    assert set(first) == KERNELS
    for case in first.values():
        done = resources.compile_one(case, resources.tiles(case, 90)[0], 90, ones=True)
        assert done.asm["cubin"]


def test_every_tile_serves_somewhere():
    """No tile of a list is dead, and what is taken unmeasured fits every device."""
    need_source()
    resources = load_script("gpu/triton_resources")
    cases = resources.cases()
    for kernel in {id(case.kernel): case.kernel for case in cases}.values():
        mine = [resources.arguments(case) for case in cases if case.kernel is kernel]
        limits = (SMALLEST_SHARED, *resources.SHARED.values())
        used = [c for a in mine for limit in limits for c in kernel.usable(a, limit)]
        assert all(c in used for c in kernel.configs), kernel.function.fn.__name__
        for a in mine:
            assert kernel.shared(kernel.unmeasured(a, SMALLEST_SHARED), a) <= SMALLEST_SHARED, a


def test_the_document_holds_every_kernel():
    need_source()
    document = (ROOT / "docs" / "gpu.md").read_text()
    part = document.split("<!-- triton:")[1].split("<!-- end of triton -->")[0]
    for kernel in sorted(KERNELS):
        rows = [line for line in part.splitlines() if line.startswith(f"| `{kernel}`")]
        assert rows and all(cell.endswith("/ 0 ") for row in rows for cell in row.split("|")[5:-1]), rows
