"""What `map` fits for itself: its sizes, its rows, and options that would be without effect."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.cli import mapping_fits
from semobridge_ext.cli.shards import Folder
from tests.support.assertions import assert_close
from tests.support.images import command, write

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")

CLASSES = 8


@pytest.fixture(scope="module")
def feats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mappings")
    write(home / "images", CLASSES, 5)
    words = ["--quiet", "--workers", 0, "--shard-size", 15, "--dtype", "float32"]
    assert command("extract", home / "images", home / "feats", *words) == 0
    return home / "feats"


@pytest.fixture(scope="module")
def turned(feats: Path) -> tuple[Path, torch.Tensor]:
    """The same images under another model: the features turned by an orthogonal matrix."""
    width = rows(feats).shape[1]
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    other = feats.parent / "turned"
    shutil.copytree(feats, other)
    (other / "shards.jsonl").unlink()
    for path in (other / "img_emb").iterdir():
        np.save(path, (torch.from_numpy(np.load(path)).double() @ q).float().numpy())
    return other, q


def rows(folder: Path) -> torch.Tensor:
    found = Folder("test", folder)
    return torch.cat([found.features(i) for i in found.shards()]).double()


def run(feats: Path, out: Path, *words: object) -> torch.Tensor:
    assert command("map", feats, out, "--dtype", "float32", "--quiet", "--mapping", *words) == 0
    return rows(out)


def test_pca_takes_no_more_directions_than_the_texts_span(feats: Path, tmp_path: Path) -> None:
    """Half the width is more than eight class names span."""
    run(feats, tmp_path / "out", "pca")
    assert sb.LinearMap.load(tmp_path / "out" / "mapping.safetensors").out_features == CLASSES - 1
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"a drawing of {i}" for i in range(300)), encoding="utf-8")
    run(feats, tmp_path / "many", "pca", "--texts", texts)
    width = rows(feats).shape[1]
    assert sb.LinearMap.load(tmp_path / "many" / "mapping.safetensors").out_features == width // 2


def test_centering_takes_the_mean_of_each_role(feats: Path, tmp_path: Path, capsys) -> None:
    raw = normalize(rows(feats), dim=1)
    got = run(feats, tmp_path / "out", "centering")
    assert_close(got, normalize(raw - raw.mean(dim=0), dim=1), "written", dtype=torch.float32)
    roles = sb.RoleCentering.load(tmp_path / "out" / "mapping.safetensors")
    model, _, tokenizer = sb.load_picto_clip()
    names = [f"a photo of class {i:02d}" for i in range(CLASSES)]
    with torch.inference_mode():
        texts = normalize(model.encode_text(tokenizer(names)).double(), dim=1)
    assert_close(roles.means_["query_text"], texts.mean(dim=0), "written", dtype=torch.float32)
    # Searching by text moves the text, too: the first hit is that of the centred cosines.
    capsys.readouterr()
    assert command("search", tmp_path / "out", "--text", names[0], "-k", 1) == 0
    centred = normalize(texts[0] - texts.mean(dim=0), dim=0)
    best = int((got @ centred).argmax())
    assert Folder("test", feats).column("image_path")[best] in capsys.readouterr().out
    # From a file and fitted elsewhere, the same rows.
    stored = run(feats, tmp_path / "again", tmp_path / "out" / "mapping.safetensors")
    assert torch.equal(stored, got)
    elsewhere = run(feats, tmp_path / "fit", "centering", "--fit", feats)
    assert torch.equal(elsewhere, got)


@pytest.mark.parametrize("center", [False, True])
def test_procrustes_finds_the_turn(feats: Path, turned, tmp_path: Path, center: bool) -> None:
    other, q = turned
    words = ["--center"] if center else []
    got = run(feats, tmp_path / "out", "procrustes", "--onto", other, *words)
    # As few rows as these leave directions that any turn fits: only those of the rows are compared.
    assert_close(got, normalize(normalize(rows(feats), dim=1) @ q, dim=1), "written", dtype=torch.float32)


def test_procrustes_draws_rows_evenly(feats: Path, turned, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mapping_fits, "ROWS", 20)
    x, y = mapping_fits.matched(Folder("test", feats), Folder("test", turned[0]))
    assert torch.equal(x.double(), normalize(rows(feats).float(), dim=1).double()[::2])
    assert len(x) == len(y) == 20


def test_procrustes_refuses_other_images(feats: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path / "images", CLASSES, 4)
    words = ["--quiet", "--workers", 0, "--dtype", "float32"]
    assert command("extract", tmp_path / "images", tmp_path / "other", *words) == 0
    words = ["--mapping", "procrustes", "--onto", tmp_path / "other"]
    assert command("map", feats, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert "--onto must hold the same images in the same order" in told and "got row 0" in told
    assert not (tmp_path / "out" / "settings.json").exists()


def test_a_row_that_is_not_finite_is_not_averaged(feats: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(feats, broken)
    (broken / "shards.jsonl").unlink()
    path = broken / "img_emb" / "img_emb_1.npy"
    values = np.load(path)
    values[3, 2] = np.nan
    np.save(path, values)
    assert command("map", broken, tmp_path / "out", "--mapping", "centering") == 2
    assert "must hold finite rows to be fitted on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bridge", "--components", 8], "--components must stand with --mapping pca, got --components 8"),
        (["bridge", "--compress"], "--compress must stand with --mapping isoclip, got --compress with"),
        (["pca", "--atol", 0.3], "--atol must stand with --mapping bridge"),
        (["pca", "--fit", "x"], "--fit must stand with --mapping centering or procrustes"),
        (["isoclip", "--template", "a {}"], "--template must stand with --mapping centering or pca"),
        (["x.safetensors", "--k-top", 3], "--k-top must stand with --mapping isoclip, got --k-top 3"),
        (["procrustes"], "--onto must be given for procrustes"),
    ],
)
def test_options_without_effect_are_refused(
    feats: Path, tmp_path: Path, capsys, words: list[object], part: str
) -> None:
    assert command("map", feats, tmp_path / "out", "--mapping", *words) == 2
    assert part in capsys.readouterr().err
