"""The Triton kernels are portable: nothing of one vendor in their source, and AMD's compiler takes them."""

from __future__ import annotations

import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.scripts import load_script
from tests.support.source_tree import need_source
from tests.support.triton_kernels import all_files

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
GFX942 = "gfx942"  # AMD's MI300
LDS = 64 << 10  # bytes of shared memory that its blocks may have
VENDORS = re.compile(
    r"inline_asm|libdevice|extra\.(cuda|hip)|nvvm|experimental|\btma\b|descriptor", re.IGNORECASE
)


@pytest.mark.parametrize("path", all_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_kernel_is_written_for_one_vendor(path: Path):
    found = [line for line in path.read_text().splitlines() if VENDORS.search(line)]
    assert found == []


def test_the_rule_sees_what_it_forbids():
    for text in ("tl.inline_asm_elementwise(", "libdevice.exp(x)", "tl.extra.cuda.num_threads()",
                 "tl.make_tensor_descriptor(p)"):  # fmt: skip
        assert VENDORS.search(text)


@pytest.mark.slow
def test_kernels_compile_for_another_vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tile that such a device takes unmeasured: its shared memory is the smallest of all."""
    from triton.backends import backends

    if "amd" not in backends:
        pytest.skip("this Triton has no compiler for AMD")
    need_source()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    resources = load_script("gpu/triton_resources")
    first = {
        (c.kernel.function.fn.__name__, c.dtype): c for c in reversed(resources.cases()) if c.dtype != "fp16"
    }

    def compiled(case):
        tile = case.kernel.unmeasured(resources.arguments(case), LDS)
        return case, resources.compile_one(case, tile, GFX942)

    with ThreadPoolExecutor(2) as pool:
        for case, done in pool.map(compiled, first.values()):
            name = case.kernel.function.fn.__name__
            assert done.asm["hsaco"] and done.metadata.shared <= LDS, (name, done.metadata.shared)
            if "tl.dot(" in case.kernel.function.src:
                assert "v_mfma" in done.asm["amdgcn"], f"{name}: no matrix instruction for {case.dtype}"
    assert len({name for name, _ in first}) >= 8
