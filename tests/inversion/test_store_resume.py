"""An inversion's file: whatever differs is refused by name, two runs do not mix, damage is noticed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import semobridge_ext as sb
from semobridge_ext import _digest, _locks, cli
from semobridge_ext.inversion import invert as inversion
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.fresh import Program, fresh_processes
from tests.support.inversions import SAMPLES, arguments
from tests.support.towers import F32, TEXT, open_clip_model

SIZE = SAMPLES // 2


def run(out: Path | None, model: torch.nn.Module | None = None, **changed: Any) -> sb.Inversion:
    positional, options = arguments(model, **{"steps": 12, "batch_size": SIZE, **changed})
    return sb.oti(*positional, out=out, **options)


@pytest.fixture(params=["finished", "unfinished"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file of a whole run, or one of its two parts as a kill leaves it."""
    out = tmp_path / "inv.safetensors"
    if request.param == "finished":
        run(out)
        return out
    save, calls = inversion.Store.save, []

    def dies(self, index, chunk):
        if index == 1:
            raise KeyboardInterrupt
        calls.append(index)
        save(self, index, chunk)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(inversion.Store, "save", dies)
        run(out)
    assert calls == [0] and not out.exists() and not out.with_name(out.name + ".lock").exists()
    return out


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out.parent)): p.read_bytes() for p in out.parent.rglob("*") if p.is_file()}


def nudged() -> torch.nn.Module:
    model = open_clip_model()
    with torch.no_grad():
        model.transformer.resblocks[0].mlp.c_fc.weight[0, 0] += 1e-3
    return model


FEATURES, START = towers.targets(SAMPLES, towers.D, F32), towers.start(SAMPLES, 1, TEXT, F32)
CHANGED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "steps": ("steps 12 \\(now 13\\)", lambda: {"steps": 13}),
    "lr": ("lr", lambda: {"lr": 0.01}),
    "weight_decay": ("weight_decay", lambda: {"weight_decay": 0.02}),
    "record_steps": ("record_steps", lambda: {"record_steps": (6,)}),
    "patience": ("patience", lambda: {"patience": 10}),
    "min_delta": ("min_delta", lambda: {"min_delta": 1e-3}),
    "weights": ("weights", lambda: {"weights": torch.bfloat16}),
    "batch_size": ("batch_size", lambda: {"batch_size": SIZE + 1}),
    "template": ("template", lambda: {"template": "a drawing of {}"}),
    "features": ("features_digest", lambda: {"features": FEATURES.flip(0)}),
    "fewer features": ("samples", lambda: {"features": FEATURES[:-1], "init": START[:-1]}),
    "permuted columns": ("features_digest", lambda: {"features": FEATURES.roll(1, 1)}),
    "start values": ("init_digest", lambda: {"init": START.flip(0)}),
    "one weight": ("model_digest", lambda: {"model": nudged()}),
    "heads": ("model_digest", lambda: {"model": open_clip_model(text={"heads": 6})}),
    "activation": ("model_digest", lambda: {"model": open_clip_model(quick_gelu=True)}),
    "a double model": ("model_digest", lambda: {"model": open_clip_model().double()}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_run_is_refused(case: str, written: Path):
    told, changed = CHANGED[case]
    before = files(written)
    with pytest.raises(
        ValueError, match=rf"out must be new or of the same run, got .* with other .*\b{told}"
    ):
        run(written, **changed())
    assert files(written) == before


def test_another_function_is_refused(written: Path):
    with pytest.raises(ValueError, match=r'with other .*function "oti" \(now "ovi"\)'):
        sb.ovi(open_clip_model(), FEATURES, steps=12, batch_size=SIZE, out=written)


def test_another_version_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_digest, "__version__", "9.9")
    with pytest.raises(
        ValueError, match=r'with other version ".*" \(now "9\.9"\); choose another name or del'
    ):
        run(written)


UNCHANGED: dict[str, dict[str, Any]] = {
    "nothing": {}, "a bar": {"progress": True}, "another object of the same model": {},
    "record_steps twice": {"record_steps": (5, 5)}, "strides": {"features": FEATURES.T.contiguous().T},
    "float64 features of the same values": {"features": FEATURES.double()},
}  # fmt: skip


@pytest.mark.parametrize("case", UNCHANGED)
def test_an_unchanged_run_goes_on(case: str, written: Path, monkeypatch: pytest.MonkeyPatch):
    whole, kept, chunks = run(None), inversion.run_chunk, []
    finished = written.exists()
    monkeypatch.setattr(inversion, "run_chunk", lambda *a: (chunks.append(1), kept(*a))[1])
    again = run(written, **UNCHANGED[case])
    assert len(chunks) == (0 if finished else 1)
    assert_same_bits(again.tokens, whole.tokens)
    assert_same_bits(again.losses, whole.losses)
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def changed_file(written: Path) -> Path:
    folder = written.with_name(written.name + ".parts")
    return written if written.exists() else folder / "chunk-000000.safetensors"


def test_an_older_format_says_what_to_do(written: Path):
    path = changed_file(written)
    tensors = load_file(path)
    save_file(tensors, path, {"format": "semobridge-ext inversion 1"})
    told = (
        "'semobridge-ext inversion 2' file, got format 'semobridge-ext inversion 1'; choose another name, or"
    )
    with pytest.raises(ValueError, match=told):
        run(written)


@pytest.mark.parametrize("name", ["tokens", "settings", "losses"])
def test_zeroed_bytes_are_refused(written: Path, name: str):
    path = changed_file(written)
    tensors = load_file(path)
    save_file(
        {**tensors, name: torch.zeros_like(tensors[name])}, path, {"format": "semobridge-ext inversion 2"}
    )
    with pytest.raises(
        ValueError, match=rf"{re.escape(path.name)} must hold what was written, got other bytes"
    ):
        run(written)


# -- several runs at once ------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, kept, told = tmp_path / "inv.safetensors", inversion.run_chunk, []

    def run_chunk(*given):
        if not told:
            told.append("")
            with pytest.raises(ValueError) as error:
                run(out)
            told.append(str(error.value))
        return kept(*given)

    monkeypatch.setattr(inversion, "run_chunk", run_chunk)
    first = run(out)
    assert re.match(
        rf"oti: out must belong to one run, got {out}, which process {os.getpid()} on \S+ has been writing "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait for it or choose another name",
        told[1],
    )
    assert_same_bits(run(out).tokens, first.tokens)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_finished_file_is_read_while_it_is_locked(tmp_path: Path):
    out = tmp_path / "inv.safetensors"
    first = run(out)
    with _locks.held("oti", "out", out, tmp_path / "inv.safetensors.lock"):
        assert_same_bits(run(out).tokens, first.tokens)


def test_a_run_that_waited_takes_what_the_other_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one ends between the look at the file and the lock."""
    out, held = tmp_path / "inv.safetensors", inversion.Store.held
    turns: list[int] = []

    def late(self):
        if not turns:
            turns.append(1)
            run(out)
        return held(self)

    monkeypatch.setattr(inversion.Store, "held", late)
    kept = inversion.run_chunk
    chunks: list[int] = []
    monkeypatch.setattr(inversion, "run_chunk", lambda *a: (chunks.append(1), kept(*a))[1])
    run(out)
    assert len(chunks) == 2  # of one run


@pytest.fixture
def features(tmp_path: Path) -> Path:
    rows = torch.randn(8, 192, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "features.npy", rows.numpy())
    return tmp_path / "features.npy"


# Parts where all is loaded and nothing has run: the commands begin at once, for the price of one start.
_AT_ONCE = """
import json, os, sys, torch
from semobridge_ext import cli
torch.set_num_threads(1)
children = []
for place in sys.argv[1:4]:
    children.append(os.fork())
    if children[-1] == 0:
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), 2)
        code = cli.main(sys.argv[4:])
        sys.stderr.flush()
        os._exit(code)
print(json.dumps([[pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] for pid in children]))
"""


def test_three_commands_at_once(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, features: Path):
    """Each has the result or names the run that has the file; the file is that of a run alone."""
    words = ["invert", str(features), "out", "--steps", "20", "--batch-size", "1", "--quiet"]
    out, alone = tmp_path / "out.safetensors", tmp_path / "alone.safetensors"
    errors = [tmp_path_factory.mktemp("told") / "stderr" for _ in range(3)]
    program = Program(_AT_ONCE, {}, [*map(str, errors), *words[:2], str(out), *words[3:]])
    done = fresh_processes("open_clip").run(program)
    assert done.returncode == 0, done.stderr
    children = dict(json.loads(done.stdout.splitlines()[-1]))
    told = [place.read_text() for place in errors]
    for code, error in zip(children.values(), told, strict=True):
        if code:
            holder = re.search(
                r"out must belong to one run, .* which (?:process (\d+) on|another process)", error
            )
            assert code == 2 and holder, error
            assert holder[1] is None or int(holder[1]) in children
    assert 0 in children.values(), told
    assert cli.main([*words[:2], str(alone), *words[3:]]) == 0
    assert out.read_bytes() == alone.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {features.name, out.name, alone.name}


COMMAND = {
    "--tokens": ("vectors", ["--tokens", "2"]), "--kind": ("function", ["--kind", "ovi"]),
    "--seed": ("init_digest", ["--seed", "3"]), "--limit": ("samples", ["--limit", "7"]),
    "--weights": ("weights", ["--weights", "bfloat16"]), "--lr": ("lr", ["--lr", "0.5"]),
}  # fmt: skip


def test_the_command_refuses_what_its_options_change(tmp_path: Path, features: Path, capsys):
    words = ["invert", str(features), str(tmp_path / "out.safetensors"), "--steps", "2", "--quiet"]
    assert cli.main(words) == 0 and cli.main(words) == 0
    for name, options in COMMAND.values():
        assert cli.main([*words, *options]) == 2
        assert re.search(rf"with other .*\b{name}\b", capsys.readouterr().err)
    np.save(features, np.load(features)[::-1])
    assert cli.main(words) == 2 and "with other features_digest" in capsys.readouterr().err


def test_the_settings_can_be_read_by_others(tmp_path: Path):
    out = tmp_path / "inv.safetensors"
    run(out)
    found = json.loads(bytes(load_file(out)["settings"].tolist()))
    assert (
        found["steps"] == 12 and found["version"] == sb.__version__ and found["template"] == "a photo of {}"
    )
