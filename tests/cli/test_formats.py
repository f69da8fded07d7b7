"""Folders as people have them: AVIF and HEIC photographs, hidden files, no --model."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from semobridge_ext.cli import images
from semobridge_ext.cli.shards import Folder
from tests.support.images import command, write

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def picture() -> np.ndarray:
    """[48, 64, 3], smooth enough for a codec that loses."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, 255 - x * 2], axis=-1).astype(np.uint8)


def encoded(kind: str, orientation: int = 1) -> io.BytesIO:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="needed: pip install pillow-heif")
        images._add_formats()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, kind, quality=95, exif=exif)
    data.seek(0)
    return data


# A HEIC file keeps its turn beside EXIF, and its reader applies it: there is none to write here.
@pytest.mark.parametrize(
    ("kind", "orientation"),
    [pytest.param("AVIF", 1, marks=AVIF), pytest.param("AVIF", 6, marks=AVIF), ("HEIF", 1)],
)
def test_avif_and_heic_are_read_upright(kind: str, orientation: int) -> None:
    with images.opened(encoded(kind, orientation)) as image:
        got = np.asarray(image.convert("RGB")).astype(int)
    want = picture() if orientation == 1 else np.rot90(picture(), -1)
    assert got.shape == want.shape
    assert np.abs(got - want).mean() < 4


def test_heic_without_its_reader_names_it(monkeypatch) -> None:
    data = encoded("HEIF")
    monkeypatch.setattr(images, "_add_formats", lambda: False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "AVIF")])
    told = r"it is HEIC; pip install 'semobridge-ext\[heif\]'"
    with pytest.raises(ValueError, match=told), images.opened(data):
        pass


def test_other_unknown_bytes_stay_unknown() -> None:
    with pytest.raises(Image.UnidentifiedImageError), images.opened(io.BytesIO(b"nothing of the kind")):
        pass


def test_hidden_files_and_folders_are_left_out(tmp_path: Path, capsys) -> None:
    home = tmp_path / "images"
    paths = write(home, 2, 2)
    (home / "class_00" / "._000.png").write_bytes(b"\0\5\x16\7 not an image")
    (home / ".cache").mkdir()
    (home / ".cache" / "thumb.png").write_bytes(paths[0].read_bytes())
    assert command("extract", home, tmp_path / "out", "--quiet", "--workers", 0) == 0
    assert Folder("test", tmp_path / "out").column("image_path") == [str(path) for path in paths]
    told = capsys.readouterr().out
    assert "none corrupt" in told and "2 other files ignored" in told


def test_hidden_members_of_tars_are_left_out(tmp_path: Path) -> None:
    paths = write(tmp_path / "images", 1, 2)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for i, path in enumerate(paths):
            broken = tarfile.TarInfo(f"./._{i}.png")
            tar.addfile(broken)
            tar.add(path, f"./{i}.png")
    assert command("extract", tmp_path / "images.tar", tmp_path / "out", "--quiet", "--workers", 0) == 0
    found = Folder("test", tmp_path / "out").column("image_path")
    assert [Path(name).name for name in found] == ["0.png", "1.png"]


def test_extract_says_which_model_it_takes(tmp_path: Path, capsys) -> None:
    write(tmp_path / "images", 1, 2)
    words = ["extract", tmp_path / "images", tmp_path / "out", "--quiet", "--workers", 0]
    assert command(*words) == 0
    assert "the embedded CLIP, trained on drawings" in capsys.readouterr().err
    assert command(*words, "--model", "picto") == 0
    assert "drawings" not in capsys.readouterr().err
