"""The disk form: killed, resumed, refused, damaged."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.inversion import invert as inversion
from tests.support import towers
from tests.support.assertions import assert_same_bits
from tests.support.fresh import Program, fresh_processes
from tests.support.inversions import SAMPLES, SIZE, STEPS, arguments
from tests.support.towers import F32, TEXT, TEXT_MODELS

ROOT = Path(__file__).resolve().parents[2]


def parts(out: Path) -> list[Path]:
    folder = out.with_name(out.name + ".parts")
    return sorted(folder.glob("chunk-*")) if folder.is_dir() else []


def test_file_holds_the_result(tmp_path: Path) -> None:
    out = tmp_path / "inv.safetensors"
    positional, options = arguments()
    plain = sb.oti(*positional, **options)
    first = sb.oti(*positional, out=out, **options)
    again = sb.oti(*positional, out=out, **options)  # read, not run
    for inv in (first, again):
        assert_same_bits(inv.tokens, plain.tokens)
        assert_same_bits(inv.features, plain.features)
        assert_same_bits(inv.losses, plain.losses)
        assert_same_bits(inv.recorded[5], plain.recorded[5])
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


_CHILD = """
import sys, torch
from tests.support.inversions import arguments
import semobridge_ext as sb
torch.set_num_threads(1)
positional, options = arguments()
sb.oti(*positional, out=sys.argv[1], **{**options, "steps": int(sys.argv[2])})
"""


def test_killed_and_resumed_is_the_unbroken_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """kill -9 with some chunks written; the finished file has the bytes of a run in one go."""
    out, steps = tmp_path / "killed.safetensors", 2000
    program = Program(_CHILD, {}, [str(out), str(steps)])
    child = fresh_processes("open_clip").start(program, tmp_path_factory.mktemp("child") / "pipes")
    status = child.killed_when(lambda: len(parts(out)) >= 2)
    assert status == -signal.SIGKILL, "the child ended before it was killed"
    written = {p: p.stat().st_mtime_ns for p in parts(out)}
    assert 2 <= len(written) < SAMPLES // SIZE and not out.exists()

    positional, options = arguments(steps=steps)
    seen: list[int] = []
    kept = inversion.run_chunk
    try:
        inversion.run_chunk = lambda *a: (seen.append(1), kept(*a))[1]
        sb.oti(*positional, out=out, **options)
    finally:
        inversion.run_chunk = kept
    assert len(seen) == SAMPLES // SIZE - len(written), "finished chunks were run again"
    whole = tmp_path / "whole.safetensors"
    sb.oti(*positional, out=whole, **options)
    assert out.read_bytes() == whole.read_bytes()


OTHER = {
    "steps": {"steps": STEPS + 1},
    "lr": {"lr": 0.01},
    "batch_size": {"batch_size": SIZE + 1},
    "template": {"template": "a drawing of {}"},
    "record_steps": {"record_steps": (6,)},
    "features_digest": {"features": towers.targets(SAMPLES, towers.D, F32) * torch.linspace(1, 2, towers.D)},
    "init_digest": {"init": towers.start(SAMPLES, 1, TEXT, F32) + 1e-4},
    "patience": {"patience": 10},
}


def test_the_folder_of_a_new_file_is_made(tmp_path: Path) -> None:
    positional, options = arguments(steps=6)
    sb.oti(*positional, out=tmp_path / "new" / "deep" / "inv.safetensors", **options)
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["inv.safetensors"]


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "inv.safetensors"
    base = {"steps": 8}
    positional, options = arguments(**base)
    sb.oti(*positional, out=out, **options)
    before = out.read_bytes()
    positional, options = arguments(**{**base, **OTHER[name]})
    with pytest.raises(ValueError, match=f"out must be new or of the same run.*{name}"):
        sb.oti(*positional, out=out, **options)
    assert out.read_bytes() == before


def test_other_weights_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "inv.safetensors"
    positional, options = arguments(steps=6)
    sb.oti(*positional, out=out, **options)
    model = TEXT_MODELS["open_clip"]()
    with torch.no_grad():
        model.ln_final.bias[0] += 1
    positional, options = arguments(model, steps=6)
    with pytest.raises(ValueError, match="with other model_digest"):
        sb.oti(*positional, out=out, **options)


def test_damaged_part_is_named(tmp_path: Path) -> None:
    out = tmp_path / "inv.safetensors"
    positional, options = arguments(steps=6)
    sb.oti(*positional, out=out, **options)
    folder = tmp_path / "inv.safetensors.parts"
    folder.mkdir()
    out.rename(folder / "chunk-000000.safetensors")
    part = folder / "chunk-000000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"chunk-000000\.safetensors must be a whole safetensors file"):
        sb.oti(*positional, out=out, **options)


def test_parts_of_a_finished_file_go(tmp_path: Path) -> None:
    """A kill between the whole file and the removal of its parts leaves them to the next call."""
    out = tmp_path / "inv.safetensors"
    positional, options = arguments(steps=2, record_steps=())
    sb.oti(*positional, out=out, **options)
    folder = tmp_path / "inv.safetensors.parts"
    folder.mkdir()
    for name in ("chunk-000000.safetensors", ".chunk-000001.safetensors.0123456789abcdef.tmp"):
        (folder / name).write_bytes(out.read_bytes())
    (tmp_path / "inv.safetensors.lock").touch()
    sb.oti(*positional, out=out, **options)  # read, not run
    assert list(tmp_path.iterdir()) == [out]


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "inv.safetensors"
    folder = tmp_path / "inv.safetensors.parts"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    positional, options = arguments(steps=2, record_steps=())
    sb.oti(*positional, out=out, **options)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
