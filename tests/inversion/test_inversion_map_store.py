"""A map that is fitted to disk, and inversions on disk that begin at one: resumed, refused, cleaned up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext import _digest, _locks
from semobridge_ext.inversion import invert as inversion
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.inversions import interrupt_after
from tests.support.towers import F32, open_clip_model

PILOTS, SIZE = 30, 8
OPTIONS: dict[str, Any] = {"steps": 4, "refine": (3, 2), "batch_size": SIZE, "train_steps": 0}
FEATURES = towers.targets(36, towers.D, F32)
CHUNKS = 3 * -(-PILOTS // SIZE)  # of all rounds


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return open_clip_model()


def fitted(model: nn.Module, out: Path | None, features: Tensor = FEATURES, seed: int = 4, **changed: Any):
    options = {"pilots": PILOTS, "generator": torch.Generator().manual_seed(seed), **OPTIONS, **changed}
    return sb.InversionMap.fit(model, features, out=out, **options)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def killed(model: nn.Module, out: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that ends once so many chunks are on disk."""
    save, count = inversion.Store.save, [0]

    def dies(self: Any, index: int, chunk: Any) -> None:
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        save(self, index, chunk)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(inversion.Store, "save", dies)
        fitted(model, out)
    assert not out.exists()


def chunks_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    run_chunk, seen = inversion.run_chunk, []
    monkeypatch.setattr(inversion, "run_chunk", lambda *a: (seen.append(1), run_chunk(*a))[1])
    return seen


def test_the_file_holds_the_map(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "phi.safetensors"
    plain, first = fitted(model, None), fitted(model, out)
    assert names(out.parent) == [out.name]
    seen = chunks_run(monkeypatch)
    for phi in (first, fitted(model, out), sb.InversionMap.load(out)):
        assert_same_bits(phi.matrix, plain.matrix)
        assert_same_bits(phi.offset, plain.offset)
        assert phi.ridge == plain.ridge
    assert not seen


@pytest.mark.parametrize("after", [0, 3, 6, CHUNKS - 1])
def test_a_killed_fit_goes_on(
    after: int, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "phi.safetensors", tmp_path / "whole.safetensors"
    killed(model, out, after, monkeypatch)
    with monkeypatch.context() as patch:
        seen = chunks_run(patch)
        fitted(model, out)
    assert len(seen) == CHUNKS - after, "finished pilots were inverted again"
    fitted(model, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == [out.name, whole.name]


def test_ctrl_c_ends_a_fit(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inversion returns what it has; half a fit would be no map."""
    out = tmp_path / "phi.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(20, patch)
        fitted(model, out, steps=100_000)
    assert not out.exists() and not (tmp_path / "phi.safetensors.lock").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(20, patch)
        fitted(model, None, steps=100_000)


def test_what_a_kill_leaves_behind_the_map_goes(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "phi.safetensors"
    fitted(model, out)
    (tmp_path / "phi.safetensors.pilots-1.safetensors").write_bytes(b"left")
    (tmp_path / "phi.safetensors.lock").touch()
    (tmp_path / "phi.safetensors.mine").touch()
    fitted(model, out)
    assert names(tmp_path) == [out.name, "phi.safetensors.mine"]


CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "pilots": ("pilots_digest", {"pilots": PILOTS - 1}),
    "features": ("pilots_digest", {"features": FEATURES.flip(0)}),
    "seed": ("init_digest, pilots_digest", {"seed": 5}),
    "steps": (r"steps \[4, 3, 2\] \(now \[5, 3, 2\]\)", {"steps": 5}),
    "rounds": (r"steps \[4, 3, 2\] \(now \[4, 3\]\)", {"refine": (3,)}),
    "lr": ("lr", {"lr": 0.01}),
    "weight_decay": ("weight_decay", {"weight_decay": 0.0}),
    "ridge": ("ridge", {"ridge": 0.1}),
    "weights": ("weights", {"weights": torch.bfloat16}),
    "template": ("template", {"template": "a drawing of {}"}),
    "tokens": ("vectors", {"num_tokens": 2}),
    "model": ("tower_digest", {"model": open_clip_model(quick_gelu=True)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "phi.safetensors"
    fitted(model, out)
    return out


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_fit_is_refused(case: str, model: nn.Module, written: Path) -> None:
    told, changed = CHANGED[case]
    before = written.read_bytes()
    with pytest.raises(ValueError, match=rf"InversionMap\.fit: out must be new or .* with other .*{told}"):
        fitted(changed.get("model", model), written, **{k: v for k, v in changed.items() if k != "model"})
    assert written.read_bytes() == before and names(written.parent) == [written.name]


def test_another_version_is_refused_by_fit_alone(
    model: nn.Module, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi = sb.InversionMap.load(written)
    monkeypatch.setattr(_digest, "__version__", "9.9")
    with pytest.raises(ValueError, match=r'with other version ".*" \(now "9\.9"\)'):
        fitted(model, written)
    sb.oti(model, FEATURES, init=phi, steps=1)


def test_a_second_fit_is_refused_while_one_writes(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run_chunk, told = tmp_path / "phi.safetensors", inversion.run_chunk, []

    def meanwhile(*given: Any) -> Any:
        if not told:
            told.append("")
            with pytest.raises(ValueError) as error:
                fitted(model, out)
            told.append(str(error.value))
        return run_chunk(*given)

    monkeypatch.setattr(inversion, "run_chunk", meanwhile)
    fitted(model, out)
    assert re.match(r"InversionMap\.fit: out must belong to one run, got .*phi\.safetensors, which", told[1])
    with _locks.held("another", "out", out, tmp_path / "phi.safetensors.lock"):
        with pytest.raises(ValueError, match="must belong to one run"):
            fitted(model, out)
        sb.InversionMap.load(out)


# -- inversions that begin at a map ------------------------------------------------------------------


@pytest.fixture(scope="module")
def phi(model: nn.Module) -> sb.InversionMap:
    return fitted(model, None)


def test_an_inversion_from_a_map_goes_on(model: nn.Module, phi: sb.InversionMap, tmp_path: Path) -> None:
    out = tmp_path / "inv.safetensors"
    first = sb.oti(model, FEATURES, init=phi, steps=3, out=out)
    phi.save(tmp_path / "phi.safetensors")
    loaded = sb.InversionMap.load(tmp_path / "phi.safetensors")
    again = sb.oti(model, FEATURES, init=loaded, steps=3, out=out)
    assert_same_bits(again.tokens, first.tokens)
    assert_same_bits(again.tokens, sb.oti(model, FEATURES, init=phi, steps=3).tokens)


def test_an_inversion_knows_its_start(model: nn.Module, phi: sb.InversionMap, tmp_path: Path) -> None:
    """Another map is another run, also where its start values are the same, and so is a plain tensor."""
    out = tmp_path / "inv.safetensors"
    run = {"steps": 3, "out": out}
    sb.oti(model, FEATURES, init=phi, **run)
    other = fitted(model, None, seed=9)
    with pytest.raises(ValueError, match="with other init_digest, start;"):
        sb.oti(model, FEATURES, init=other, **run)
    offset = torch.nextafter(phi.offset, torch.tensor(1.0, dtype=torch.float64))
    shifted = sb.InversionMap(phi.matrix, offset, phi.identity, ridge=phi.ridge)
    assert_same_bits(shifted(FEATURES), phi(FEATURES))
    with pytest.raises(ValueError, match="with other start;"):
        sb.oti(model, FEATURES, init=shifted, **run)
    with pytest.raises(ValueError, match=r"with other start given \(now null\)"):
        sb.oti(model, FEATURES, init=phi(FEATURES), **run)
    plain = tmp_path / "plain.safetensors"
    sb.oti(model, FEATURES, init=phi(FEATURES), steps=3, out=plain)
    with pytest.raises(ValueError, match=r"with other start null \(now given\)"):
        sb.oti(model, FEATURES, init=phi, steps=3, out=plain)
