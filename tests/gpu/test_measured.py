"""`auto` on a GPU with measurements on file: the kernels that were chosen really run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import thresholds as _thresholds
from tests.support.assertions import assert_close
from tests.support.places import W, rows
from tests.support.projections import chain

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("chosen", ["native", "triton"])
def test_a_measured_choice_runs(chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if chosen == "native" and not _backend.HAS_CUDA:
        pytest.skip("the native module was built without CUDA kernels")
    monkeypatch.setenv("SEMOBRIDGE_THRESHOLDS", str(tmp_path / "own.json"))
    steps: list = [(1, "eager"), (50, chosen)]
    bridge_steps = steps if chosen == "native" else steps[:1]
    _thresholds.write(
        _thresholds.path(), torch.cuda.get_device_name(), sb.__version__,
        {"topk float32": steps, "prepared_projection float32": bridge_steps},
    )  # fmt: skip
    bridge, f = sb.Bridge(W).cuda(), rows(100, 48).cuda()

    def under(backend: str) -> list[torch.Tensor]:
        with sb.backend(backend), torch.no_grad():
            bridged = [bridge(f), bridge(f[:1])] if chosen == "native" else [f]
            return [*bridged, sb.topk(f, f, 5).scores]

    try:
        auto, asked = under("auto"), under(chosen)
    finally:
        _thresholds.measured.cache_clear()
    assert torch.equal(auto[0], asked[0]) and torch.equal(auto[-1], asked[-1])
    if chosen == "native":  # below the measured size: PyTorch, with the folded projector
        assert_close(auto[1].cpu(), chain(f[:1].cpu(), W), "bridge")


def test_an_unmeasured_gpu_takes_its_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if not _backend.HAS_CUDA or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no native kernels, or no rule for this architecture")
    monkeypatch.delenv("SEMOBRIDGE_THRESHOLDS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _thresholds.measured.cache_clear()
    bridge, f = sb.Bridge(W).cuda(), rows(100, 48).cuda()
    try:
        with torch.no_grad():
            auto = [bridge(f), bridge(f[:1]), sb.topk(f, f, 5).scores]
            with sb.backend("native"):
                asked = [bridge(f), bridge(f[:1]), sb.topk(f, f, 5).scores]
    finally:
        _thresholds.measured.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(auto, asked, strict=True))
    told = sb.build_info()["choices"]
    assert all("failed" not in words for words in told.values()), told
