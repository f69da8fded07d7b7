"""bridging.py: copies, conversions, files, the default bridge, what is refused."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import semobridge_ext as sb
from semobridge_ext.bridging import default as bridging
from tests.support.assertions import assert_close, assert_row_relative, assert_same_bits
from tests.support.fresh import Program, run_fresh
from tests.support.projections import OPTIONS, chain, with_rank
from tests.support.source_tree import run


@pytest.fixture
def bridge() -> sb.Bridge:
    return sb.Bridge(with_rank(20, 16, 9), text_length=3.0)


def outputs(b: sb.Bridge, f: torch.Tensor) -> torch.Tensor:
    return torch.cat([b(f, **options) for options in OPTIONS], -1)


# -- copies and conversions --------------------------------------------------------------------------


@pytest.mark.parametrize("called", [False, True], ids=["fresh", "after-a-call"])
@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies(bridge: sb.Bridge, copier, called: bool):
    f = torch.randn(5, 16)
    if called:
        outputs(bridge, f)
    twin = copier(bridge)
    assert_same_bits(outputs(twin, f), outputs(bridge, f))
    assert twin.rank == bridge.rank and twin.text_length == bridge.text_length
    if copier is not copy.copy:
        before = outputs(bridge, f)
        with torch.no_grad():
            twin.inverse.add_(1.0)
        assert_same_bits(outputs(bridge, f), before, "the original must not follow its copy")
        assert not torch.equal(outputs(twin, f), before)


def test_state_dict(bridge: sb.Bridge):
    assert set(bridge.state_dict()) == {"text_projection", "inverse", "_extra_state"}
    other, f = sb.Bridge(with_rank(20, 16, 4)), torch.randn(5, 16)
    assert not torch.equal(other(f), bridge(f))
    other.load_state_dict(bridge.state_dict())
    assert_close(other(f), chain(f, bridge.text_projection), "bridge")
    assert other.rank == 9
    assert_same_bits(other.projector, bridge.projector)


def test_is_a_frozen_module_until_asked(bridge: sb.Bridge):
    assert [n for n, _ in bridge.named_parameters()] == ["inverse"] and not bridge.inverse.requires_grad
    assert not bridge(torch.randn(2, 16)).requires_grad
    bridge.requires_grad_()
    assert bridge(torch.randn(2, 16)).requires_grad
    assert re.search(r"T=20, D=16, rank=9, atol=0\.3, text_length=3\.0", repr(bridge))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_of_the_module(bridge: sb.Bridge, dtype: torch.dtype):
    f, w = torch.randn(30, 16), bridge.text_projection.clone()
    want = chain(f, w)
    bridge(f)
    assert bridge.to(dtype) is bridge
    assert bridge.inverse.dtype is bridge.text_projection.dtype is bridge.projector.dtype is dtype
    for features in (f, f.double()):
        assert bridge(features).dtype is features.dtype
        assert_row_relative(bridge(features), want, "converted", dtype=dtype, context=f"of {features.dtype}")
    assert_row_relative(bridge.float()(f), want, "converted", dtype=dtype, context="back in float32")


def test_float64_projection_is_kept_in_float64():
    w = with_rank(20, 16, 9).double()
    w += 1e-9 * torch.randn(20, 16, dtype=torch.float64)  # below float32's resolution
    b, f = sb.Bridge(w), torch.randn(7, 16).double()
    assert b.inverse.dtype is torch.float64
    assert_close(b(f), chain(f, w), "bridge")
    assert_close(b(f, project=False), chain(f, w, project=False), "bridge")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_projection_is_widened(dtype: torch.dtype):
    w = with_rank(20, 16, 9).to(dtype)
    b, f = sb.Bridge(w), torch.randn(7, 16)
    assert b.text_projection.dtype is torch.float32
    assert_close(b(f), chain(f, w), "bridge")


def test_the_given_projection_is_copied():
    w, f = with_rank(20, 16, 9), torch.randn(7, 16)
    b = sb.Bridge(w)
    want = b(f)
    w.zero_()
    assert_same_bits(b(f), want)


def test_replaced_tensors_are_seen(bridge: sb.Bridge):
    f, w = torch.randn(7, 16), with_rank(20, 16, 5)
    bridge(f)
    other = sb.Bridge(w)
    bridge.text_projection, bridge.inverse = other.text_projection, other.inverse
    assert_close(bridge(f), chain(f, w), "bridge")
    bridge.text_projection = 2 * w + torch.randn(20, 16)  # the buffer alone
    assert_close(bridge(f), chain(f, bridge.text_projection, inverse=other.inverse), "bridge")


# -- files -------------------------------------------------------------------------------------------


def test_save_and_load(bridge: sb.Bridge, tmp_path: Path):
    f = torch.randn(5, 16)
    bridge.save(tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"text_projection", "inverse"}
    loaded = sb.Bridge.load(str(tmp_path / "a.safetensors"))
    assert_same_bits(outputs(loaded, f), outputs(bridge, f))
    assert (loaded.atol, loaded.text_length, loaded.rank) == (bridge.atol, bridge.text_length, bridge.rank)
    with torch.no_grad():
        bridge.inverse.add_(torch.randn(16, 20))
    bridge.save(tmp_path / "a.safetensors")  # over the old one
    assert_same_bits(outputs(sb.Bridge.load(tmp_path / "a.safetensors"), f), outputs(bridge, f), "trained")
    assert os.listdir(tmp_path) == ["a.safetensors"], "nothing temporary is left"


def test_save_keeps_float64(tmp_path: Path):
    b = sb.Bridge(with_rank(20, 16, 9).double())
    b.save(tmp_path / "b")
    loaded = sb.Bridge.load(tmp_path / "b")
    assert loaded.inverse.dtype is torch.float64
    assert_same_bits(loaded.inverse.detach(), b.inverse.detach())


def test_truncated_file_is_named_and_refused(bridge: sb.Bridge, tmp_path: Path):
    path = tmp_path / "whole"
    bridge.save(path)
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"Bridge\.load: {re.escape(str(path))} must .*got .*; "):
            sb.Bridge.load(path)


class _Exploit:
    def __reduce__(self):
        return (os.putenv, ("SB_TEST_EXPLOITED", "1"))


def test_foreign_files_are_refused_and_nothing_is_executed(bridge: sb.Bridge, tmp_path: Path):
    good = {"text_projection": bridge.text_projection, "inverse": bridge.inverse.detach()}
    meta = {"format": "semobridge-ext bridge 1", "atol": "0.3", "text_length": "1.0"}
    (tmp_path / "text").write_text("hello " * 100)
    torch.save({"a": _Exploit()}, tmp_path / "pickle")
    (tmp_path / "raw-pickle").write_bytes(pickle.dumps(_Exploit()))
    save_file(good, tmp_path / "other-format", {"format": "pt"})
    save_file(good, tmp_path / "no-format")
    save_file({"inverse": good["inverse"]}, tmp_path / "lacks-a-tensor", meta)
    save_file(good, tmp_path / "lacks-atol", {"format": meta["format"]})
    save_file(good, tmp_path / "atol-a-word", meta | {"atol": "high"})
    save_file(good | {"inverse": torch.ones(3, 3)}, tmp_path / "other-shape", meta)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"^(Bridge|Bridge\.load): .+; \S+") as caught:
            sb.Bridge.load(path)
        assert str(path) in str(caught.value), f"{path.name} is not named: {caught.value}"
    assert "SB_TEST_EXPLOITED" not in run("env").stdout


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"Bridge\.load: path must .*got .*nothing.*; \S+"):
        sb.Bridge.load(tmp_path / "nothing")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(bridge: sb.Bridge, tmp_path: Path, monkeypatch, step: str):
    path = tmp_path / "kept"
    bridge.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        sb.Bridge(torch.eye(4)).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["kept"]


def test_killed_write_leaves_the_old_file(bridge: sb.Bridge, tmp_path: Path):
    path = tmp_path / "kept"
    bridge.save(path)
    before = path.read_bytes()
    code = (
        "import os, signal, sys, torch, semobridge_ext as sb\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sb.Bridge(torch.eye(4)).save(sys.argv[1])\n"
    )
    (done,) = run_fresh([Program(code, {}, [str(path)])])
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == before
    assert sb.Bridge.load(path).rank == 9


# -- the default bridge ------------------------------------------------------------------------------


def test_use_sets_and_returns(bridge: sb.Bridge):
    f = torch.randn(3, 16)
    assert sb.use(bridge) is bridge
    assert_same_bits(sb.bridge(f), bridge(f))
    other = sb.Bridge(torch.eye(16))
    assert_same_bits(sb.bridge(f, bridge=other), other(f), "the keyword wins")
    assert sb.use(other) is other and torch.equal(sb.bridge(f), other(f))


@pytest.mark.parametrize("model", ["openai", "", 3, None, torch.eye(3), sb.Bridge])
def test_use_refuses(bridge: sb.Bridge, model):
    sb.use(bridge)
    with pytest.raises(TypeError, match=r"must .*got .*; \S+"):
        sb.use(model)
    assert bridging._default is bridge, "a refused call changes nothing"


def test_nothing_set(bridge: sb.Bridge, monkeypatch, caplog):
    monkeypatch.setattr(bridging, "_default", None)
    monkeypatch.setattr(bridging, "embedded_bridge", lambda: bridge)
    with pytest.raises(ValueError, match=r"width 17 and no default bridge is set; .*sb\.use\(model\)"):
        sb.bridge(torch.randn(2, 17))
    f = torch.randn(2, 16)
    with caplog.at_level(logging.WARNING, logger="semobridge_ext"):
        first, second = sb.bridge(f), sb.bridge(f)
    assert_same_bits(first, bridge(f))
    assert_same_bits(second, first)
    told = [r for r in caplog.records if "sb.use(model)" in r.getMessage()]
    assert len(told) == 1, "said once"


def test_embedded_bridge_is_the_default(monkeypatch, caplog):
    monkeypatch.setattr(bridging, "_default", None)
    b = sb.use("picto")
    width = b.text_projection.shape[1]
    monkeypatch.setattr(bridging, "_default", None)
    f = torch.randn(4, width)
    assert_close(sb.bridge(f), chain(f, b.text_projection), "bridge")
    monkeypatch.setattr(bridging, "_default", None)
    with pytest.raises(ValueError, match=r"sb\.use\(model\)"):
        sb.bridge(torch.randn(2, width + 1))


# -- refusals ----------------------------------------------------------------------------------------

W, F = torch.eye(4), torch.ones(2, 4)
NAN, INF = float("nan"), float("inf")


def _bridge(**options):
    return sb.bridge(options.pop("f", F), bridge=sb.Bridge(W), **options)


BAD = {
    "W a list": (TypeError, "Bridge", "text_projection", lambda: sb.Bridge([[1.0]])),
    "W a model": (TypeError, "Bridge", "text_projection", lambda: sb.Bridge(torch.nn.Linear(2, 2))),
    "W integer": (TypeError, "Bridge", "text_projection", lambda: sb.Bridge(W.int())),
    "W sparse": (TypeError, "Bridge", "text_projection", lambda: sb.Bridge(W.to_sparse())),
    "W 1-D": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(torch.ones(4))),
    "W 3-D": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(torch.ones(1, 4, 4))),
    "W empty": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(torch.ones(0, 4))),
    "W with NaN": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(W * NAN)),
    "W infinite": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(W.clone().fill_(INF))),
    "W zero": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(W * 0)),
    "W below the cut": (ValueError, "Bridge", "text_projection", lambda: sb.Bridge(W * 0.29)),
    "atol text": (TypeError, "Bridge", "atol", lambda: sb.Bridge(W, atol="0.3")),
    "atol bool": (TypeError, "Bridge", "atol", lambda: sb.Bridge(W, atol=True)),
    "atol negative": (ValueError, "Bridge", "atol", lambda: sb.Bridge(W, atol=-0.1)),
    "atol NaN": (ValueError, "Bridge", "atol", lambda: sb.Bridge(W, atol=NAN)),
    "length zero": (ValueError, "Bridge", "text_length", lambda: sb.Bridge(W, text_length=0.0)),
    "length NaN": (ValueError, "Bridge", "text_length", lambda: sb.Bridge(W, text_length=NAN)),
    "length None": (TypeError, "Bridge", "text_length", lambda: sb.Bridge(W, text_length=None)),
    "features a list": (TypeError, "bridge", "img_feats", lambda: _bridge(f=[1.0])),
    "features an array of whole numbers": (
        TypeError,
        "bridge",
        "img_feats",
        lambda: _bridge(f=F.int().numpy()),
    ),
    "features integer": (TypeError, "bridge", "img_feats", lambda: _bridge(f=F.long())),
    "features sparse": (TypeError, "bridge", "img_feats", lambda: _bridge(f=F.to_sparse())),
    "features scalar": (ValueError, "bridge", "img_feats", lambda: _bridge(f=torch.tensor(1.0))),
    "features too wide": (ValueError, "bridge", "img_feats", lambda: _bridge(f=torch.ones(2, 5))),
    "features elsewhere": (ValueError, "bridge", "img_feats", lambda: _bridge(f=F.to("meta"))),
    "bias a number": (TypeError, "bridge", "class_bias", lambda: _bridge(class_bias=1.0)),
    "bias integer": (TypeError, "bridge", "class_bias", lambda: _bridge(class_bias=F.int())),
    "bias too wide": (ValueError, "bridge", "class_bias", lambda: _bridge(class_bias=torch.ones(5))),
    "bias other classes": (ValueError, "bridge", "class_bias", lambda: _bridge(class_bias=torch.ones(3, 4))),
    "bias elsewhere": (ValueError, "bridge", "class_bias", lambda: _bridge(class_bias=F.to("meta"))),
    "bridge a tensor": (TypeError, "bridge", "bridge", lambda: sb.bridge(F, bridge=W)),
}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, backend: str):
    kind, function, argument, call = BAD[case]
    with sb.backend(backend), pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    form = rf"^{function}: {argument} must .+, got .+; \S.+$"
    assert re.match(form, str(caught.value), re.DOTALL), str(caught.value)


def test_state_dict_keeps_the_numbers(bridge: sb.Bridge, tmp_path: Path):
    f = torch.randn(5, 16)
    other = sb.Bridge(bridge.text_projection, atol=2.0, text_length=1.0)
    assert other.rank != bridge.rank and not torch.equal(outputs(other, f), outputs(bridge, f))
    save_file(bridge.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert (other.atol, other.text_length, other.rank) == (0.3, 3.0, 9)
    assert_same_bits(outputs(other, f), outputs(bridge, f))
    inside = torch.nn.ModuleDict({"b": sb.Bridge(bridge.text_projection, atol=2.0)})
    inside.load_state_dict({f"b.{name}": value for name, value in bridge.state_dict().items()})
    assert inside["b"].text_length == 3.0


def test_state_dict_of_the_matrices_alone(bridge: sb.Bridge):
    """As 0.1.0 wrote it: the bridge that loads it keeps its own numbers."""
    old = {name: value for name, value in bridge.state_dict().items() if name != "_extra_state"}
    other = sb.Bridge(with_rank(20, 16, 4), text_length=5.0)
    other.load_state_dict(old)
    assert other.text_length == 5.0 and torch.equal(other.inverse, bridge.inverse)
    inside = torch.nn.ModuleDict({"b": sb.Bridge(with_rank(20, 16, 4))})
    inside.load_state_dict({f"b.{name}": value for name, value in old.items()})
    assert torch.equal(inside["b"].inverse, bridge.inverse)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"inverse": bridge.inverse})
    with pytest.raises(ValueError, match="extra state must be"):
        other.load_state_dict(bridge.state_dict() | {"_extra_state": torch.tensor([0.3, float("nan")])})


def test_numbers_that_change(bridge: sb.Bridge):
    f = torch.randn(5, 16)
    outputs(bridge, f)
    bridge.text_length = 7.0
    want = chain(f, bridge.text_projection, text_length=7.0, normalize=False)
    assert_close(bridge(f, normalize=False), want, "chain")
    bridge.atol = 2.0
    assert bridge.rank == int((torch.linalg.svdvals(bridge.text_projection.double()) > 2.0).sum()) < 9


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_traced(bridge: sb.Bridge, options: dict):
    """A trace records operators: one that is passed by would leave its output as it was allocated."""

    class Applied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bridge = bridge

        def forward(self, f: torch.Tensor) -> torch.Tensor:
            return self.bridge(f, **options)

    traced = torch.jit.trace(Applied(), torch.randn(3, 16), check_trace=False)
    f = torch.randn(3, 16)
    assert_close(traced(f), chain(f, bridge.text_projection, text_length=3.0, **options), "chain")


def test_saving_through_a_link_keeps_link_and_mode(tmp_path: Path):
    """As a release keeps "latest": the file behind the link is replaced, as private as it was."""
    old, new = sb.Bridge(torch.eye(3)), sb.Bridge(torch.eye(3) * 2, atol=0.1)
    old.save(tmp_path / "v1.safetensors")
    (tmp_path / "v1.safetensors").chmod(0o600)
    (tmp_path / "latest.safetensors").symlink_to("v1.safetensors")
    new.save(tmp_path / "latest.safetensors")
    assert (tmp_path / "latest.safetensors").is_symlink()
    assert (tmp_path / "v1.safetensors").stat().st_mode & 0o777 == 0o600
    assert sb.Bridge.load(tmp_path / "v1.safetensors").atol == 0.1
