"""`semobridge-ext invert`: files in, files out, killed and resumed, errors of one line."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import semobridge_ext as sb
from semobridge_ext import cli
from tests.support.assertions import assert_same_bits
from tests.support.fresh import command_line, fresh_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "features.npy"
    np.save(path, torch.randn(12, 192, generator=generator).numpy())
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def test_file_is_the_library_call(tmp_path: Path, features: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.safetensors"
    words = ["invert", str(features), str(out), "--steps", "7", "--record-steps", "3", "--quiet"]
    assert cli.main([*words, "--tokens", "2", "--seed", "5", "--template", "{} drawn", "--limit", "10"]) == 0
    assert "10 samples, loss 0." in capsys.readouterr().out
    model, _, tokenizer = sb.load_picto_clip()
    inv = sb.oti(
        model, torch.from_numpy(np.load(features))[:10], tokenizer=tokenizer, num_tokens=2, steps=7,
        template="{} drawn", record_steps=(3,), generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    found = read(out)
    assert_same_bits(found["tokens"], inv.tokens)
    assert_same_bits(found["features"], inv.features)
    assert_same_bits(found["recorded"][0], inv.recorded[3])


def test_ovi_and_other_formats(tmp_path: Path, features: Path) -> None:
    rows = torch.from_numpy(np.load(features))[:2]
    given = tmp_path / "texts.safetensors"
    save_file({"texts": rows}, given)
    out = tmp_path / "out.safetensors"
    words = ["invert", str(given), str(out), "--kind", "ovi", "--key", "texts", "--steps", "2", "--quiet"]
    assert cli.main(words) == 0
    model, _, _ = sb.load_picto_clip()
    inv = sb.ovi(model, rows, steps=2, generator=torch.Generator().manual_seed(0))
    assert_same_bits(read(out)["tokens"], inv.tokens)


def test_embedded_images(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert cli.main(["invert", "picto:flags", str(out), "--limit", "5", "--steps", "30", "--quiet"]) == 0
    model, _, _ = sb.load_picto_clip()
    with torch.inference_mode():
        f = model.encode_image(sb.picto_transform(sb.load_picto("flags").images[:5]))
    cosine = torch.cosine_similarity(read(out)["features"], f, dim=1)
    assert float(cosine.min()) > 0.5


def test_killed_command_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, features: Path
) -> None:
    words = ["invert", str(features), "--steps", "150", "--batch-size", "2", "--quiet"]
    out, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    program = command_line(*words[:2], out, *words[2:])
    child = fresh_processes("open_clip").start(program, tmp_path_factory.mktemp("child") / "pipes")
    parts = tmp_path / "killed.safetensors.parts"
    status = child.killed_when(lambda: len(list(parts.glob("chunk-*"))) >= 2)
    assert status == -signal.SIGKILL and not out.exists()
    assert cli.main([*words[:2], str(out), *words[2:]]) == 0
    assert cli.main([*words[:2], str(whole), *words[2:]]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_pilots_and_the_map_of_an_earlier_command(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the command leaves to the library, so that both sides here train as long.
    monkeypatch.setitem(sb.InversionMap.fit.__func__.__wrapped__.__kwdefaults__, "train_steps", 30)
    out, start = tmp_path / "out.safetensors", tmp_path / "map.safetensors"
    words = ["invert", str(features), str(out), "--start", str(start), "--tokens", "2", "--quiet"]
    words += ["--template", "{} drawn", "--steps", "3"]
    assert cli.main([*words, "--pilots", "8", "--seed", "5"]) == 0
    assert f"{start}: InversionMap(192 → 2×192" in capsys.readouterr().out
    model, _, tokenizer = sb.load_picto_clip()
    rows = torch.from_numpy(np.load(features))
    same = {"tokenizer": tokenizer, "num_tokens": 2, "template": "{} drawn"}
    phi = sb.InversionMap.fit(model, rows, pilots=8, generator=torch.Generator().manual_seed(5), **same)
    assert_same_bits(sb.InversionMap.load(start).matrix, phi.matrix)
    inv = sb.oti(model, rows, init=phi, steps=3, **same)
    assert_same_bits(read(out)["tokens"], inv.tokens)

    assert cli.main([*words, "--pilots", "8", "--seed", "5"]) == 0  # read, not run
    assert cli.main([*words, "--pilots", "9", "--seed", "5"]) == 2
    assert "out must be new or of the same fit" in capsys.readouterr().err
    assert cli.main([*words[:2], str(tmp_path / "more.safetensors"), *words[3:], "--limit", "5"]) == 0
    more = sb.oti(model, rows[:5], init=phi, steps=3, **same)
    assert_same_bits(read(tmp_path / "more.safetensors")["tokens"], more.tokens)
    assert cli.main([*words, "--template", "a {}"]) == 2
    err = capsys.readouterr().err
    assert "oti: init must be a map of this model and template" in err and err.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {
        features.name, out.name, start.name, "more.safetensors"
    }  # fmt: skip


BAD = {
    "no file": (["nothing.npy"], "input must be an existing file"),
    "no set": (["picto:nothing"], "nothing"),
    "unknown kind of file": (["README.md"], "input must be .safetensors, .npy or .pt"),
    "untrained model": (["picto:flags", "--model", "ViT-B-32"], "--pretrained must be given"),
    "pilots for nothing": (
        ["picto:flags", "--pilots", "9"],
        "--pilots must stand beside --start, got 9",
    ),
    "a start for ovi": (
        ["picto:flags", "--kind", "ovi", "--start", "x"],
        "--start must stand beside --kind oti",
    ),
    "pilots for ovi": (
        ["picto:flags", "--kind", "ovi", "--pilots", "9"],
        "--pilots must stand beside --kind",
    ),
    "no map": (
        ["picto:flags", "--limit", "1", "--start", "nothing"],
        "InversionMap.load: path must be an existing file",
    ),
    "bad template": (["picto:flags", "--template", "x", "--limit", "1"], "must contain {} once"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = BAD[case]
    monkeypatch.chdir(ROOT)
    assert cli.main(["invert", words[0], str(tmp_path / "o.safetensors"), *words[1:]]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1
