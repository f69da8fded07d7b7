"""The embedded files: errors, damage, size, licences, a lean import and no network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from semobridge_ext.data import list_picto, load_picto, load_picto_clip, picto, picto_transform
from tests.support.fresh import Program, fresh_processes, run_fresh

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(picto.__file__).parent
LICENCES = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "OFL-1.1",
    "BSD-3-Clause",
    "Unlicense",
}


def test_import_is_lean():
    code = """
import sys, torch
before = set(sys.modules)
import semobridge_ext.data as data
heavy = {"open_clip", "torchvision", "PIL", "safetensors", "timm"} & (set(sys.modules) - before)
assert not heavy, heavy
"""
    (done,) = run_fresh([Program(code)])
    assert done.returncode == 0, done.stderr


def test_loading_is_offline():
    code = """
import socket
import semobridge_ext.data as data
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = refuse; socket.create_connection = refuse
data.load_picto_clip(); [data.load_picto(name) for name in data.list_picto()]
print("offline")
"""
    done = fresh_processes("open_clip").run(Program(code))
    assert done.stdout.strip() == "offline", done.stderr


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: load_picto("icon"),
            ValueError,
            "load_picto: name must be one of arrows, .* got 'icon'; list_picto",
        ),
        (lambda: load_picto(3), TypeError, "load_picto: name must be a string, got int 3; list_picto"),
        (
            lambda: load_picto_clip(dtype=torch.int8),
            TypeError,
            "load_picto_clip: dtype must .* got torch.int8; pass",
        ),
        (lambda: load_picto_clip(dtype="half"), TypeError, "load_picto_clip: dtype must .* got 'half'; pass"),
        (
            lambda: load_picto_clip(device="abacus"),
            ValueError,
            "load_picto_clip: device must .* got 'abacus'.*; pass",
        ),
        (
            lambda: load_picto("arrows").texts("a drawing"),
            ValueError,
            "template must contain {}, got a drawing; write",
        ),
        (lambda: picto_transform([1]), TypeError, "picto_transform: images must be a uint8 tensor, got list"),
        (
            lambda: picto_transform(torch.zeros(1, 48, 48, 3)),
            TypeError,
            "images must be a uint8 tensor, got a float32",
        ),
        (
            lambda: picto_transform(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)),
            ValueError,
            r"images must have shape \[N, 48, 48, 3\], got a uint8 tensor of shape \[1, 3, 48, 48\]",
        ),
    ],
)
def test_bad_inputs(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("picto_clip.safetensors", load_picto_clip),
        ("picto_clip.json", load_picto_clip),
        ("picto_flags_colour.png", lambda: load_picto("flags")),
        ("picto_sets.json", lambda: load_picto("flags")),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "missing", "foreign"])
def test_damaged_files_are_named(tmp_path, monkeypatch, name, call, damage):
    for path in DATA.glob("picto_*"):
        shutil.copy(path, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage != "missing":
        (tmp_path / name).write_bytes(
            content[: len(content) // 2] if damage == "cut" else b"\x80\x04 foreign"
        )
    monkeypatch.setattr(picto, "_FOLDER", tmp_path)
    picto._read_sets.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=rf"embedded file must .* got {re.escape(name)}.*reinstall"):
            call()
    finally:
        picto._read_sets.cache_clear()


def test_files_are_small_and_hold_no_pickle():
    files = sorted(DATA.glob("picto_*"))
    assert sum(path.stat().st_size for path in files) < 16e6
    for path in files:
        start = path.read_bytes()[:9]
        assert {".png": start[1:4] == b"PNG", ".json": start[:1] == b"{", ".safetensors": start[8:9] == b"{"}[
            path.suffix
        ]


def notice_sections() -> dict[str, dict[str, str]]:
    """{section: {set: licence}} of NOTICE."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in (ROOT / "NOTICE").read_text(encoding="utf-8").splitlines():
        if line.startswith(("Embedded as", "Used for training")):
            current = sections.setdefault(line.split()[0], {})
        entry = re.match(r"- (\S+) \(.*\); .*; ([^;]+); \d+; ", line)
        if entry:
            current[entry[1]] = entry[2]
    return sections


@pytest.mark.parametrize("name", list_picto())
def test_notice_lists_every_style_under_a_free_licence(name):
    sections = notice_sections()
    embedded, trained = sections["Embedded"], sections["Used"]
    assert set(load_picto(name).styles) <= set(embedded)
    assert not set(embedded) & set(trained), "an evaluation style was trained on"
    assert len(trained) > 100 and set(embedded.values()) | set(trained.values()) <= LICENCES
